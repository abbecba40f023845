"""A bar over the iterations of a loop, which Dask's own `ProgressBar` draws."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

__all__ = ["Progress"]


class Progress:
    """Counts iterations; a context manager.

    Parameters
    ----------
    total : int or None
        How many there will be; None if that is not known: then the bar is of those that were sent.
    shown : bool
        Whether to draw it.
    """

    def __init__(self, total: int | None, *, shown: bool) -> None:
        self._total = total
        self._done = 0
        self._hooks: Any = None
        # As `dask.local` shows its state to callbacks: the bar asks for the lengths of these.
        self._state: dict[str, Any] = dict.fromkeys(("ready", "waiting", "running"), ())
        if shown:
            from dask.diagnostics import ProgressBar

            self._hooks = ProgressBar()._callback  # noqa: SLF001 - what Dask's schedulers read
        self.done(0)

    def __repr__(self) -> str:
        return f"<Progress {self._done} of {self._total}>"

    def done(self, count: int) -> None:
        """Note that so many more are done."""
        self._done += count
        self._state["finished"] = range(self._done)
        self._state["ready"] = range(max(0, (self._total or self._done) - self._done))

    def __enter__(self) -> Self:
        if self._hooks:
            start, _, pretask, _, _ = self._hooks
            start({})
            pretask(None, {}, self._state)
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if self._hooks:
            self._hooks[4]({}, self._state, error is not None)
