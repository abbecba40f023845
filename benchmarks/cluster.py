"""A redisq queue with slots and a private server, and what the server says of itself."""

from collections.abc import Iterator
from contextlib import contextmanager

import redis

import dask_redisq
from benchmarks import SLOTS

QUEUE = "bench"


@contextmanager
def open_queue(n_workers: int = SLOTS) -> Iterator[tuple[dask_redisq.Queue, redis.Redis]]:
    """Open a queue that `n_workers` slots serve, with a connection to its server."""
    with dask_redisq.LocalCluster(n_workers=n_workers, queue=QUEUE) as cluster:
        server = redis.Redis.from_url(cluster.url)
        try:
            yield dask_redisq.Queue(cluster.queue, url=cluster.url), server
        finally:
            server.close()


def server_version(server: redis.Redis) -> str:
    """Name the server's make and version."""
    info = server.info("server")
    # Valkey also gives the version of Redis that it is compatible with, under Redis's name.
    if "valkey_version" in info:
        return f"valkey {info['valkey_version']}"
    return f"redis {info['redis_version']}"
