"""The connections of a queue: held between calls, lent to one call at a time."""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dask_redisq.forks import in_forked_child
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.registry import list_workers
from dask_redisq.server_check import warn_about_server
from dask_redisq.versions import differences

__all__ = ["Pool"]

logger = logging.getLogger("dask_redisq")

#: Seconds between two looks at the versions of workers.
LOOK = 60.0
#: Idle connections that a queue keeps for its next calls.
KEEP = 4

#: What this process was told of workers: server, queue, how they differ. A `Queue` may be made for
#: each call.
_told: set[tuple[str, str, str]] = set()
#: Those of this process.
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


class Pool:
    """Connections to one server; each thread that is inside a call has its own.

    Parameters
    ----------
    url : callable
        Gives the server's URL, at each call.
    """

    def __init__(self, url: Callable[[], str]) -> None:
        #: Gives the server's URL.
        self.where = url
        #: The idle ones.
        self.links: list[Link] = []
        weakref.finalize(self, _close, self.links)
        self._closed = 0  # how often
        self._lock = threading.Lock()
        self._checked = False
        self._look_at = 0.0
        _pools.add(self)

    def __repr__(self) -> str:
        return f"<Pool of {len(self.links)} idle connections>"

    @property
    def url(self) -> str:
        """Where they lead."""
        return self.where()

    @contextmanager
    def lend(self, keys: Keys | None = None) -> Iterator[Link]:
        """Lend a held connection, or a new one; for a job, with a look at the queue's workers."""
        url = self.url
        with self._lock:
            closed = self._closed
            link = None
            while self.links and link is None:
                link = self.links.pop()
                if link.pid != os.getpid() or link.url != url:
                    link = None  # made before a fork, or for another server
        if link is None:
            link = Link(url)
        if link.unbroken_since is None:
            link.connect()
        if not self._checked:
            warn_about_server(link, logger)
            self._checked = True
        if keys is not None and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK
            self._warn_about_workers(link, keys)
        try:
            yield link
        finally:
            with self._lock:
                keep = len(self.links) < KEEP and closed == self._closed
                if keep:
                    self.links.append(link)
            if not keep:
                link.close()

    def _warn_about_workers(self, link: Link, keys: Keys) -> None:
        """Say once of each version that workers have others: what is pickled may not fit there."""
        for row in list_workers(link, keys):
            others = differences(row)
            if row["python"].rpartition(".")[0] != platform.python_version().rpartition(".")[0]:
                others = f"Python {row['python']}, so that it gets none of this client's tasks"
            told = (link.url, keys.queue, others)
            if others and told not in _told:
                _told.add(told)
                logger.warning("worker %s of queue %s has %s", row["name"], keys.queue, others)

    def close(self) -> None:
        """Close what is idle; what is lent is closed when it comes back."""
        with self._lock:
            self._closed += 1
            idle = self.links.copy()
            self.links.clear()
        _close(idle)


@in_forked_child
def _begin_anew() -> None:
    """Renew the locks in a forked child: another thread of the parent may have held one."""
    for pool in _pools:
        pool._lock = threading.Lock()  # noqa: SLF001 - of this module


def _close(links: list[Link]) -> None:
    """Close idle connections of a queue that is closed, or garbage."""
    while links:
        links.pop().close()
