"""xarray's locks for files that tasks write, while dask-redisq is the scheduler.

xarray takes a scheduler that it does not know for threads: it keeps a netCDF file open in the
client while tasks write into it, under a lock that does not pickle (section 1.8 of Dask's
contract). There is no other way in than its two functions that ask. They are replaced as soon as
both packages are imported, and answer otherwise only where our `get` is what Dask would take. So
is the one that opens a file to be written, which refuses one in memory.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import dask.base

from dask_redisq.errors import RedisqError

if TYPE_CHECKING:
    from dask_redisq.queue import Queue

__all__ = ["patch"]

LOCKS, WRITERS = "xarray.backends.locks", "xarray.backends.writers"
#: xarray's word for schedulers whose tasks run in other processes, which open files themselves.
PROCESSES = "multiprocessing"


def patch(is_ours: Callable[[Any], bool], queue_of: Callable[[Any], Queue]) -> None:
    """Replace xarray's functions, now or when it is imported.

    Parameters
    ----------
    is_ours : callable
        Scheduler, as Dask finds it -> whether it is one of ours.
    queue_of : callable
        One of ours -> its queue.
    """
    waiting = _Patch(is_ours, queue_of)
    for name, apply in waiting.changes.items():
        if name in sys.modules:
            apply(sys.modules[name])
    sys.meta_path.insert(0, waiting)


class _Patch(importlib.abc.MetaPathFinder):
    """The replacement, and the finder that waits for xarray's import."""

    def __init__(self, is_ours: Callable[[Any], bool], queue_of: Callable[[Any], Queue]) -> None:
        self.is_ours = is_ours
        self.queue_of = queue_of
        self.changes = {LOCKS: self.replace_locks, WRITERS: self.replace_opening}
        self._asking: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Have a module of xarray's changed once it is loaded."""
        change = self.changes.get(fullname)
        if change is None or fullname in self._asking:
            return None
        others = [f for f in sys.meta_path if f is not self and hasattr(f, "find_spec")]
        found = (finder.find_spec(fullname, path, target) for finder in others)
        self._asking.add(fullname)  # one of them may ask all others as well
        try:
            spec = next((spec for spec in found if spec is not None), None)
        finally:
            self._asking.discard(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_patch(module: ModuleType) -> None:
                load(module)
                change(module)

            spec.loader.exec_module = load_and_patch  # type: ignore[method-assign]
        return spec

    def replace_locks(self, locks: Any) -> None:
        """Replace the functions that ask, wherever xarray has imported them."""
        scheduler = getattr(locks, "get_dask_scheduler", None)
        write_lock = getattr(locks, "get_write_lock", None)
        if scheduler is None or write_lock is None:
            return  # a later xarray: it is to be imported all the same

        @functools.wraps(scheduler)
        def get_dask_scheduler(get: Any = None, collection: Any = None) -> Any:
            active = dask.base.get_scheduler(get, collection)
            return PROCESSES if self.is_ours(active) else scheduler(get, collection)

        @functools.wraps(write_lock)
        def get_write_lock(key: Any) -> Any:
            active = dask.base.get_scheduler()
            # What is no name is a file in memory, and only this process writes into it.
            if not self.is_ours(active) or not isinstance(key, (str, os.PathLike)):
                return write_lock(key)
            from dask_redisq.lock import Lock

            return Lock(f"xarray:{key}", self.queue_of(active))

        _replace({scheduler: get_dask_scheduler, write_lock: get_write_lock})

    def replace_opening(self, writers: Any) -> None:
        """Have a file in memory refused that tasks would write into."""
        make = getattr(writers, "get_writable_netcdf_store", None)
        if make is None:
            return

        @functools.wraps(make)
        def get_writable_netcdf_store(target: Any, *args: Any, **kwargs: Any) -> Any:
            by_tasks = kwargs.get("autoclose") and not isinstance(target, (str, os.PathLike))
            if by_tasks and self.is_ours(dask.base.get_scheduler()):
                raise RedisqError(
                    "xarray would make the netCDF file in memory, of this process, and no worker "
                    "can write into it. Give to_netcdf the name of a file that all workers see, or "
                    "compute the dataset before: ds.compute().to_netcdf()"
                )
            return make(target, *args, **kwargs)

        writers.get_writable_netcdf_store = get_writable_netcdf_store


def _replace(functions: dict[Any, Any]) -> None:
    """Replace functions in all modules of xarray's backends that have them."""
    for name, module in list(sys.modules.items()):
        if name.startswith("xarray.backends"):
            for word in ("get_dask_scheduler", "get_write_lock"):
                found = getattr(module, word, None)
                if found in functions:
                    setattr(module, word, functions[found])
