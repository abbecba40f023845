"""The Dask scheduler ``"redisq"``, which is `get` on the queue of the settings."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from dask_redisq.forks import in_forked_child
from dask_redisq.frames import ShortTraceback
from dask_redisq.settings import setting
from dask_redisq.unnamed import server_url

if TYPE_CHECKING:
    from dask_redisq.queue import Queue

__all__ = ["default_queue", "get"]

_queues: dict[tuple[str, str], Queue] = {}
_queues_lock = threading.Lock()


def default_queue(name: str | None = None, url: str | None = None) -> Queue:
    """Return the queue of the settings, the same object for the same server and name."""
    from dask_redisq.queue import Queue  # half of the package, which a worker does without

    name = setting("queue", name)
    where = (url or server_url(name), name)
    with _queues_lock:
        if where not in _queues:
            _queues[where] = Queue(where[1], where[0])
        return _queues[where]


@in_forked_child
def _begin_anew() -> None:
    """Renew the lock in a forked child: another thread of the parent may have held it."""
    global _queues_lock  # noqa: PLW0603
    _queues_lock = threading.Lock()


def get(dsk: Any, keys: Any, **kwargs: Any) -> Any:
    """Compute `keys` of `dsk` on the queue of the settings; see `Queue.get`.

    This is the Dask scheduler ``"redisq"``: ``dask.compute(x, scheduler=redisq.get)``. Without
    the setting ``redisq.url`` the first call starts a private server and one slot per core, which
    end with this process.

    Parameters
    ----------
    queue, url : str, optional
        Instead of the settings ``redisq.queue`` and ``redisq.url``.

    Examples
    --------
    >>> import dask_redisq as redisq
    >>> redisq.get({"x": (sum, [1, 2])}, "x")  # doctest: +SKIP
    3
    """
    with ShortTraceback():
        queue = default_queue(kwargs.pop("queue", None), kwargs.pop("url", None))
        return queue.get(dsk, keys, **kwargs)


def _persist(collections: Any, **kwargs: Any) -> Any:
    """Persist collections on the queue of the settings; see `Queue.persist`.

    Dask finds this as an attribute of the scheduler.
    """
    queue = default_queue(kwargs.pop("queue", None), kwargs.pop("url", None))
    return queue.persist(collections, **kwargs)


get.persist = _persist  # type: ignore[attr-defined]
