"""About how many bytes an object takes, without a draw from the user's random numbers. No I/O.

`dask.sizeof` looks at ten random items of a list: a program that was seeded went on with others.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from dask.sizeof import sizeof

__all__ = ["bytes_of"]

#: Items of a container that are looked at, and how deep containers are.
ITEMS, DEPTH = 10, 4


def bytes_of(thing: Any) -> int:
    """Return about how many bytes an object takes; 0 if it does not like to be looked at.

    >>> bytes_of(bytearray(1000))
    1000
    >>> 4_000 < bytes_of([b"x" * 1000] * 4) < 5_000
    True
    """
    try:
        return _bytes_of(thing, DEPTH)
    except Exception:  # of code that is not ours
        return 0


def _bytes_of(thing: Any, depth: int) -> int:
    if type(thing) is dict:
        return _of_items(thing.items(), len(thing), depth)
    if type(thing) in (list, tuple, set, frozenset):
        return _of_items(thing, len(thing), depth)
    size = getattr(thing, "nbytes", None)
    if size is None and hasattr(thing, "memory_usage"):  # a data frame
        size = thing.memory_usage().sum()
    return int(sizeof(thing) if size is None else size)


def _of_items(items: Any, count: int, depth: int) -> int:
    """Return the bytes of a container by some of its items, which are evenly spread."""
    if not count or not depth:
        return 8 * count
    some = list(islice(items, 0, None, max(1, count // ITEMS)))[:ITEMS]
    return int(count * (8 + sum(_bytes_of(item, depth - 1) for item in some) / len(some)))
