"""xarray's locks for files that tasks write, while dask-redisq is the scheduler.

xarray takes a scheduler that it does not know for threads: it keeps a netCDF file open in the
client while tasks write into it, under a lock that does not pickle (section 1.8 of Dask's
contract). There is no other way in than its two functions that ask. They are replaced between
the first `patch` and the last undoing, and answer otherwise only where our `get` is what Dask
would take.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import dask.base

from dask_redisq.lock import Lock
from dask_redisq.queue import Queue

__all__ = ["patch"]

LOCKS = "xarray.backends.locks"
#: xarray's word for schedulers whose tasks run in other processes, which open files themselves.
PROCESSES = "multiprocessing"


def patch(queue_of: Callable[[Any], Queue | None]) -> Callable[[], None]:
    """Replace xarray's functions, now or when it is imported; return what undoes that.

    They are replaced once, and are so until each call of this was undone, in any order.

    Parameters
    ----------
    queue_of : callable
        Scheduler, as Dask finds it -> its queue, None if it is not one of ours.
    """
    with _lock:
        _asked.append(queue_of)
        if len(_asked) == 1:
            _patch.begin()
    undone = False

    def undo() -> None:
        nonlocal undone
        with _lock:
            if undone:
                return
            undone = True
            _asked.remove(queue_of)
            if not _asked:
                _patch.end()

    return undo


#: Who knows our schedulers: one entry for each call of `patch` that was not undone.
_asked: list[Callable[[Any], Queue | None]] = []
#: Reentrant: a module that is imported in `patch` may come to `apply`.
_lock = threading.RLock()


class _Patch(importlib.abc.MetaPathFinder):
    """The replacement, and the finder that waits for xarray's import."""

    def __init__(self) -> None:
        #: Replacement -> original.
        self.originals: dict[Any, Any] = {}

    def begin(self) -> None:
        """Replace them, now or when xarray is imported."""
        sys.meta_path.insert(0, self)
        if LOCKS in sys.modules:
            self.apply(sys.modules[LOCKS])

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Have `apply` called once xarray's module of locks is loaded."""
        if fullname != LOCKS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_patch(module: ModuleType) -> None:
                load(module)
                with _lock:
                    if _asked and not self.originals:  # it may have been undone meanwhile
                        self.apply(module)

            spec.loader.exec_module = load_and_patch  # type: ignore[method-assign]
        return spec

    def apply(self, locks: Any) -> None:
        """Replace the functions wherever xarray has imported them."""
        scheduler, write_lock = locks.get_dask_scheduler, locks.get_write_lock

        def get_dask_scheduler(get: Any = None, collection: Any = None) -> Any:
            queue = self._active(get, collection)
            return scheduler(get, collection) if queue is None else PROCESSES

        def get_write_lock(key: str) -> Any:
            queue = self._active()
            return write_lock(key) if queue is None else Lock(f"xarray:{key}", queue)

        self.originals = {get_dask_scheduler: scheduler, get_write_lock: write_lock}
        _replace({scheduler: get_dask_scheduler, write_lock: get_write_lock})
        locks.get_dask_scheduler, locks.get_write_lock = get_dask_scheduler, get_write_lock

    def _active(self, get: Any = None, collection: Any = None) -> Queue | None:
        scheduler = dask.base.get_scheduler(get, collection)
        found = (queue_of(scheduler) for queue_of in tuple(_asked))
        return next((queue for queue in found if queue is not None), None)

    def end(self) -> None:
        """Put the originals back."""
        sys.meta_path.remove(self)
        _replace(self.originals)
        self.originals = {}


_patch = _Patch()


def _replace(functions: dict[Any, Any]) -> None:
    """Replace functions in all modules of xarray's backends that have them."""
    for name, module in list(sys.modules.items()):
        if name.startswith("xarray.backends"):
            for word in ("get_dask_scheduler", "get_write_lock"):
                found = getattr(module, word, None)
                if found in functions:
                    setattr(module, word, functions[found])
