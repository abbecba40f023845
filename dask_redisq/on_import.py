"""What holds from ``import dask_redisq`` on, though most of the package is not there yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dask.base import named_schedulers

from dask_redisq import xarray_locks
from dask_redisq.scheduler import default_queue, get
from dask_redisq.shared_locks import locks_made_by
from dask_redisq.unnamed import serve_unnamed_by

if TYPE_CHECKING:
    from dask_redisq.lock import Lock
    from dask_redisq.queue import Queue

__all__: list[str] = []


def _start_private(queue: str) -> str:
    from dask_redisq.embedded import default_cluster

    return default_cluster(queue).url


def _make_lock(name: str) -> Lock:
    from dask_redisq.lock import Lock

    return Lock(name)


def _is_ours(scheduler: Any) -> bool:
    from dask_redisq.queue import Queue

    return scheduler is get or isinstance(getattr(scheduler, "__self__", None), Queue)


def _queue_of(scheduler: Any) -> Queue:
    """Return the queue whose `get` this is."""
    if scheduler is get:
        return default_queue()
    owner: Queue = scheduler.__self__
    return owner


named_schedulers["redisq"] = get
serve_unnamed_by(_start_private)
locks_made_by(_make_lock)
xarray_locks.patch(_is_ours, _queue_of)
