"""Which queue is meant: by what has one, or where no server is named and a cluster runs here."""

from __future__ import annotations

from dask_redisq.errors import NoServerError
from dask_redisq.local import LocalCluster, defaults, running_clusters
from dask_redisq.queue import Queue
from dask_redisq.scheduler import default_queue
from dask_redisq.settings import setting

__all__ = ["cluster_meant", "queue_meant", "queue_of"]


def queue_of(owner: Queue | LocalCluster) -> Queue:
    """Return the queue itself, or that of a cluster."""
    return owner if isinstance(owner, Queue) else owner.as_queue


def cluster_meant(name: str | None = None) -> LocalCluster | None:
    """Return the cluster on whose server a queue is meant to be; None if there is none.

    None, too, if ``redisq.url`` is set, which goes before; so it is in slots.

    Parameters
    ----------
    name : str, optional
        The queue. A cluster of that name goes before others, and what the user made before what
        was started where no server was named.

    Raises
    ------
    NoServerError
        If it could be several.
    """
    if setting("url"):
        return None
    running = running_clusters()
    embedded = {id(cluster) for cluster in defaults.values()}
    made = [cluster for cluster in running if id(cluster) not in embedded]
    found = [cluster for cluster in running if cluster.queue == name] or made or running
    if len(found) > 1:
        raise NoServerError(
            f"{len(found)} clusters run in this process, and it could be of any of them: say of "
            f"which, as queue=cluster or queue=Queue(...), or set redisq.url. They are {found}"
        )
    return found[0] if found else None


def queue_meant(name: str) -> Queue:
    """Return the queue of that name where no server is named: of a cluster here, else as ever.

    Raises
    ------
    NoServerError
        If it could be several.
    """
    cluster = cluster_meant(name)
    if cluster is None:
        return default_queue(name)
    return cluster.as_queue if cluster.queue == name else default_queue(name, cluster.url)
