"""Pauses Python's garbage collector while many objects are made that all stay."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dask_redisq.forks import in_forked_child

__all__ = ["collector_paused"]

_lock = threading.Lock()
#: How many want it paused; and whether it is to go on after the last of them.
_pauses, _enabled = 0, False


@contextmanager
def collector_paused() -> Iterator[None]:
    """Let no collection begin, in any thread, until the block ends.

    The collector looks at all objects each time that a quarter more of them stay. Planning 62,000
    tasks of an array makes half a million, none of which is garbage: 9 us a task with it, 4.5
    without.

    Examples
    --------
    >>> with collector_paused():
    ...     gc.isenabled()
    False
    """
    global _pauses, _enabled  # noqa: PLW0603 - the collector is one for the process
    with _lock:
        if _pauses == 0:
            _enabled = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _lock:
            _pauses -= 1
            if _pauses == 0 and _enabled:
                gc.enable()


@in_forked_child
def _begin_anew() -> None:
    """Let a forked child collect again: the thread that paused it is the parent's."""
    global _lock, _pauses  # noqa: PLW0603
    _lock = threading.Lock()
    if _pauses and _enabled:
        gc.enable()
    _pauses = 0
