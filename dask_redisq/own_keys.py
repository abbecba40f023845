"""A Redis client for task code, for keys of its own on the server of its queue: `get_redis`."""

from __future__ import annotations

import threading

from redis import Redis

from dask_redisq.forks import in_forked_child
from dask_redisq.link import redis_options
from dask_redisq.serving import served_url
from dask_redisq.settings import setting
from dask_redisq.unnamed import server_url
from dask_redisq.url import check_url

__all__ = ["get_redis"]

_clients: dict[str, Redis] = {}
_lock = threading.Lock()


def get_redis() -> Redis:
    """Return a client of the server whose queue this task is of, for keys of your own.

    doRedis's ``redisGet``, ``redisIncrBy`` and so on: a counter, or data that tasks read when they
    need it. One per process and server, made at the first call; it has connections of its own,
    and threads may share it. In the client's process it is one of the server of `redisq.url`.

    A task may run twice, and so may what it writes. A call is not repeated: if the connection is
    lost it raises, and what it wrote may be there or not. A reply may take 15 s, so a call that
    blocks waits for less. Leave keys that begin with ``redisq:`` alone; where the server has rules
    for its users, that of the workers needs the right to your keys.

    Returns
    -------
    redis.Redis
        As redis-py has it; answers are bytes.

    Examples
    --------
    >>> import dask_redisq as redisq
    >>> def draw(i):
    ...     redisq.get_redis().incr("count")
    ...     return i
    >>> queue = redisq.Queue("jobs")
    >>> queue.foreach(draw, 100, combine=sum)  # doctest: +SKIP
    4950
    >>> redisq.get_redis().get("count")  # doctest: +SKIP
    b'100'
    """
    url = served_url() or server_url(setting("queue"))
    with _lock:
        if url not in _clients:
            _clients[url] = Redis.from_url(check_url(url), **redis_options(url))
        return _clients[url]


@in_forked_child
def _begin_anew() -> None:
    """Forget, in a forked child, what the parent has: a lock may be held, a socket is not ours."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _clients.clear()
