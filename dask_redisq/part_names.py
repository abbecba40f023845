"""Which part of a persisted collection has which name.

Graphs reach a scheduler with the keys alone: a table for each queue tells which part a key is. It
forgets those that nobody holds.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from dask.typing import Key

from dask_redisq.keys import Keys
from dask_redisq.persist import Part, by_job, elsewhere
from dask_redisq.pool import Pool

__all__ = ["enter_parts", "find_part", "living_parts"]

#: Names of freed values that are remembered, for each queue.
MOST_FREED = 10_000


class _Table:
    """Which parts have which name; the newest that is still there is found by it.

    Two collections of one name may be persisted one after the other: when the later one is garbage
    the earlier one is still somebody's.
    """

    def __init__(self) -> None:
        self._parts: dict[Key, list[weakref.ref[Part]]] = {}
        self._freed: OrderedDict[Key, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._parts)

    def __repr__(self) -> str:
        return f"<_Table of {len(self._parts)} names>"

    def enter(self, key: Key, part: Part) -> None:
        """Let `part` be found by `key` until it is garbage."""
        if self.find(key) is part:
            return

        def forget(gone: weakref.ref[Part]) -> None:
            left = [ref for ref in self._parts.get(key, ()) if ref is not gone]
            if left:
                self._parts[key] = left
            else:
                self._parts.pop(key, None)
                self._freed[key] = None
                if len(self._freed) > MOST_FREED:
                    self._freed.popitem(last=False)

        self._freed.pop(key, None)
        ref = weakref.ref(part, forget)  # first: it may start the collector, which calls forget
        self._parts.setdefault(key, []).append(ref)

    def find(self, key: Key) -> Part | None:
        """Return the newest part that is there."""
        for ref in reversed(self._parts.get(key, ())):
            part = ref()
            if part is not None:
                return part
        return None

    def was_freed(self, key: Key) -> bool:
        """Tell whether there was a part of that name; only the latest are remembered."""
        return key in self._freed


_tables: dict[tuple[str, str], _Table] = {}


def enter_parts(pool: Pool, keys: Keys, parts: Mapping[Key, Part]) -> None:
    """Let later graphs on this queue find parts by these names."""
    table = _tables.setdefault((pool.url, keys.queue), _Table())
    for key, part in parts.items():
        table.enter(key, part)


def find_part(pool: Pool, keys: Keys) -> Callable[[Key], Part | None]:
    """Return a function that finds the part with a name.

    It raises a `KeyError` for one that was freed: its graph has outlived the collection. And a
    `RedisqError` for one of another queue, which a graph here cannot read.
    """

    def find(key: Key) -> Part | None:
        if not _tables:  # or a missing key would start a private server
            return None
        here = (pool.url, keys.queue)
        table = _tables.get(here)
        part = None if table is None else table.find(key)
        if part is not None:
            return part
        if table is not None and table.was_freed(key):
            raise KeyError(
                f"{key!r} was persisted by this process, and was freed, since no collection that "
                "holds it is left: keep a reference to the persisted collection"
            )
        for (url, _), other in _tables.items():
            if (part := other.find(key)) is not None:
                raise elsewhere(repr(key), part.kept, keys, "" if url == pool.url else pool.url)
        return None

    return find


def living_parts(pool: Pool, keys: Keys, names: Iterable[Key]) -> dict[Key, Part]:
    """Return those parts with some names that are, or will be, values; not what failed or is gone.

    Another computation under one of these names could give another value, which would then be the
    value of both collections: they are told apart by their names alone.
    """
    table = _tables.get((pool.url, keys.queue)) if _tables else None
    if not table:
        return {}
    found = {name: part for name in names if (part := table.find(name)) is not None}
    dead = {kept.id for kept, _ in by_job(found.values()) if not kept.lives()}
    return {name: part for name, part in found.items() if part.job not in dead}
