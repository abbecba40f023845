"""dask-redisq as the scheduler of a process: `enable`."""

from __future__ import annotations

import threading
from typing import Any, Self

import dask

from dask_redisq.local import LocalCluster
from dask_redisq.meant import queue_of
from dask_redisq.queue import Queue
from dask_redisq.scheduler import get

__all__ = ["Enabled", "enable"]


#: What is enabled now, the oldest first.
_enabled: list[Enabled] = []
_lock = threading.Lock()


class Enabled:
    """What `enable` did, until its ``with`` block ends."""

    def __init__(self, scheduler: Any) -> None:
        with _lock:
            self._settings = dask.config.set(
                {"scheduler": scheduler, "dataframe.shuffle.method": "tasks"}
            )
            _enabled.append(self)

    def inherit(self, settings: Any) -> None:
        """Restore at the end what `settings` of an earlier one would have restored."""
        self._settings = settings

    def __repr__(self) -> str:
        return "<dask-redisq is the scheduler>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with _lock:
            if self not in _enabled:
                return
            at = _enabled.index(self)
            _enabled.remove(self)
            if at == len(_enabled):
                self._settings.__exit__(*error)
            else:
                # Of two threads the one that came first leaves first. What holds now is of a later
                # one, which remembers what this one set: at its end that would be set for good.
                # So it is to restore what this one would have.
                _enabled[at].inherit(self._settings)


def enable(queue: str | Queue | LocalCluster | None = None, url: str | None = None) -> Enabled:
    """Make dask-redisq the scheduler of this process: doRedis's registerDoRedis.

    Sets ``scheduler``, and ``dataframe.shuffle.method`` to tasks, which is the one that is right on
    several hosts. Use it as a plain call, or as a context manager that undoes both. xarray takes a
    `Lock` of the queue for files that tasks write wherever the scheduler that is set is ours.

    Parameters
    ----------
    queue, url : str, optional
        Instead of the settings ``redisq.queue`` and ``redisq.url``. A `Queue` or `LocalCluster` is
        both.

    Raises
    ------
    TypeError
        If a server is named twice.

    Returns
    -------
    context manager
        Leaving it restores what was before. Several may be left in any order: what was before
        the first of them is there after the last. That is not so with other contexts of
        `dask.config.set`, which must end inside of it or begin outside.

    Examples
    --------
    >>> import dask_redisq as redisq
    >>> with redisq.enable(queue="jobs", url="unix:///tmp/r.sock"):
    ...     print(dask.config.get("dataframe.shuffle.method"))
    tasks
    """
    if isinstance(queue, Queue | LocalCluster):
        if url is not None:
            raise TypeError(f"url= goes with the name of a queue: {queue!r} has its server")
        return Enabled(queue_of(queue).get)
    return Enabled(get if queue is None and url is None else Queue(queue, url).get)
