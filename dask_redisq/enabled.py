"""dask-redisq as the scheduler of a process: `enable`."""

from __future__ import annotations

from typing import Any, Self

import dask

from dask_redisq.queue import Queue
from dask_redisq.scheduler import default_queue, get
from dask_redisq.xarray_locks import patch

__all__ = ["Enabled", "enable"]


class Enabled:
    """What `enable` did, until its ``with`` block ends."""

    def __init__(self, scheduler: Any) -> None:
        self._settings = dask.config.set(
            {"scheduler": scheduler, "dataframe.shuffle.method": "tasks"}
        )
        self._undo = patch(_queue_of)

    def __repr__(self) -> str:
        return "<dask-redisq is the scheduler>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._undo()
        self._settings.__exit__(*error)


def _queue_of(scheduler: Any) -> Queue | None:
    """Return the queue whose `get` this is, if it is one of ours."""
    if scheduler is get:
        return default_queue()
    owner = getattr(scheduler, "__self__", None)
    return owner if isinstance(owner, Queue) else None


def enable(queue: str | None = None, url: str | None = None) -> Enabled:
    """Make dask-redisq the scheduler of this process: doRedis's registerDoRedis.

    Sets ``scheduler``, and ``dataframe.shuffle.method`` to tasks, which is the one that is right on
    several hosts; and lets xarray take a `Lock` of the queue for files that tasks write. Use it as
    a plain call, or as a context manager that undoes all of it.

    Parameters
    ----------
    queue, url : str, optional
        Instead of the settings ``redisq.queue`` and ``redisq.url``.

    Returns
    -------
    context manager
        Leaving it restores what was before.

    Examples
    --------
    >>> import dask_redisq as redisq
    >>> with redisq.enable(queue="jobs", url="unix:///tmp/r.sock"):
    ...     print(dask.config.get("dataframe.shuffle.method"))
    tasks
    """
    return Enabled(get if queue is None and url is None else Queue(queue, url).get)
