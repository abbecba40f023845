"""The embedded default: a private server and workers for a process that named no server."""

from __future__ import annotations

import logging
import sys
import threading

from dask_redisq.forks import in_forked_child
from dask_redisq.local import LocalCluster, defaults
from dask_redisq.settings import setting

__all__ = ["default_cluster"]

logger = logging.getLogger("dask_redisq")

_lock = threading.Lock()


def default_cluster(queue: str | None = None) -> LocalCluster:
    """Give the cluster that serves this process where no ``redisq.url`` is set.

    The first call starts it, with one slot per core, and says so in one line. It ends with the
    process. A forked child has its own.

    Parameters
    ----------
    queue
        The queue that it is to serve; by default the setting ``redisq.queue``. Each queue has
        a cluster of its own.

    Raises
    ------
    NoServerError, RedisqError
        As for `LocalCluster`.
    """
    queue = setting("queue", queue)
    with _lock:  # a second thread waits for the first one's cluster
        cluster = defaults.get(queue)
        if cluster is None or not cluster.running:
            cluster = defaults[queue] = LocalCluster(queue=queue)
            _announce(cluster)
        return cluster


@in_forked_child
def _begin_anew() -> None:
    """Forget the parent's clusters, in a forked child."""
    # Story: thread 1 of the parent starts a cluster and holds the lock, thread 2 forks. In the
    # child nobody will ever release that lock, nor a cluster's own. So a new one, and of the
    # parent's clusters the child closes no more than its copies of their lines of life.
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    for cluster in defaults.values():
        cluster.let_go()
    defaults.clear()


def _announce(cluster: LocalCluster) -> None:
    """Say once what was started for somebody who did not ask for it."""
    # Where logging is configured, that decides what is shown of an INFO record. Where it is not,
    # Python shows warnings alone, and this is none: so it goes to stderr then. Never both.
    line = (
        f"dask-redisq: no redisq.url is set: started a private Redis server with "
        f"{cluster.n_workers} slots for the queue {cluster.queue!r}; they end with this process"
    )
    if logger.hasHandlers():
        logger.info(line)
    elif logger.isEnabledFor(logging.WARNING):  # as logging's own last resort
        sys.stderr.write(f"{line}\n")
