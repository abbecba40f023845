"""What a slot keeps in memory: values of the job that it works for, and of kept ones; LRU."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Any, TypeVar

__all__ = ["ValueCache"]

#: Bytes that an entry and a small object take besides what the pickle says.
OVERHEAD = 256

K = TypeVar("K", bound=Hashable)


class ValueCache:
    """Accepted values of one job and epoch, or of kept jobs; at most `limit` bytes of them.

    A value enters only after the server accepted or served it. W1 kept its own result of A
    at once; the server had accepted another's; W1 then ran a user of A with a value that
    nobody else saw, and one answer held both.

    Parameters
    ----------
    limit : int, default 128 MB
        Bytes, by the size of the pickles; more than that drops what was used longest ago.
    """

    def __init__(self, limit: int = 128 * 2**20) -> None:
        self.limit = limit
        self.bytes = 0
        self._of: tuple[str, str] | None = None
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<ValueCache {len(self._values)} values, {self.bytes} bytes>"

    def __contains__(self, task: Hashable) -> bool:
        return task in self._values

    def turn_to(self, job: str, epoch: str) -> None:
        """Serve another job, or another epoch of it: what is here is of no use, or wrong."""
        if self._of != (job, epoch):
            self._of = (job, epoch)
            self._values.clear()
            self.bytes = 0

    def found(self, tasks: Iterable[K]) -> dict[K, Any]:
        """Return those values of `tasks` that are here, and note their use."""
        values, used = self._values, self._values.move_to_end
        found = {}
        for task in tasks:
            if task in values:
                used(task)
                found[task] = values[task][0]
        return found

    def put(self, task: Hashable, value: Any, size: int) -> None:
        """Keep a value that takes `size` bytes."""
        size += OVERHEAD
        if size > self.limit or task in self._values:
            return
        self._values[task] = (value, size)
        self.bytes += size
        while self.bytes > self.limit:
            _, (_, dropped) = self._values.popitem(last=False)
            self.bytes -= dropped

    def names(self) -> list[Any]:
        """Return what the values that are here are of."""
        return list(self._values)

    def drop(self, keys: Iterable[Hashable]) -> None:
        """Forget some values."""
        for key in keys:
            _, size = self._values.pop(key, (None, 0))
            self.bytes -= size
