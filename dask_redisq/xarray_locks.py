"""xarray's locks for files that tasks write, while dask-redisq is the scheduler.

xarray takes a scheduler that it does not know for threads: it keeps a netCDF file open in the
client while tasks write into it, under a lock that does not pickle (section 1.8 of Dask's
contract). There is no other way in than its two functions that ask. They are replaced between
`patch` and its undoing, and answer otherwise only where our `get` is what Dask would take.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
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

    Parameters
    ----------
    queue_of : callable
        Scheduler, as Dask finds it -> its queue, None if it is not one of ours.
    """
    one = _Patch(queue_of)
    sys.meta_path.insert(0, one)
    if LOCKS in sys.modules:
        one.apply()
    return one.undo


class _Patch(importlib.abc.MetaPathFinder):
    """One replacement, and the finder that waits for xarray's import."""

    def __init__(self, queue_of: Callable[[Any], Queue | None]) -> None:
        self.queue_of = queue_of
        #: Replacement -> original.
        self.originals: dict[Any, Any] = {}

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
                self.apply(module)

            spec.loader.exec_module = load_and_patch  # type: ignore[method-assign]
        return spec

    def apply(self, module: ModuleType | None = None) -> None:
        """Replace the functions wherever xarray has imported them."""
        locks: Any = module or sys.modules[LOCKS]
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
        return self.queue_of(dask.base.get_scheduler(get, collection))

    def undo(self) -> None:
        """Put the originals back; any number of calls are as good as one."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        _replace(self.originals)
        self.originals = {}


def _replace(functions: dict[Any, Any]) -> None:
    """Replace functions in all modules of xarray's backends that have them."""
    for name, module in list(sys.modules.items()):
        if name.startswith("xarray.backends"):
            for word in ("get_dask_scheduler", "get_write_lock"):
                found = getattr(module, word, None)
                if found in functions:
                    setattr(module, word, functions[found])
