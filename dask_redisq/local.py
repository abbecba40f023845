"""Workers on this machine, and a private server for them: all of it ends with this process.

`start_local_workers` adds a worker to a running queue, `LocalCluster` brings its own server, and
`dask_redisq.embedded` the one that a `get` without any setting uses.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Self

from dask.system import cpu_count

from dask_redisq.amounts import whole
from dask_redisq.errors import NoServerError, RedisqError
from dask_redisq.host import check_posix
from dask_redisq.inherit import inherited
from dask_redisq.keeper import GRACE, Kept
from dask_redisq.keys import check_queue_name
from dask_redisq.link import Link
from dask_redisq.queue import Queue
from dask_redisq.server import PrivateServer
from dask_redisq.settings import setting

__all__ = ["LocalCluster", "LocalWorker", "defaults", "running_clusters", "start_local_workers"]

#: Seconds that the workers of a `LocalCluster` may take to register.
START_TIMEOUT = 60.0

Log = str | os.PathLike[str] | IO[str] | None


class LocalWorker:
    """One worker process and its slots, started by `start_local_workers`.

    Attributes
    ----------
    queue : str
        The queue that it listens on.
    nworkers : int
        How many slots it has.
    pid : int
        The process id of its supervisor.
    """

    def __init__(self, kept: Kept, queue: str, nworkers: int) -> None:
        self._kept = kept
        self.queue = queue
        self.nworkers = nworkers
        self.pid = kept.pid

    @property
    def exit_code(self) -> int | None:
        """What the worker exited with, 128 + its signal, or None while it runs."""
        return self._kept.poll()

    def stop(self, timeout: float = 5.0) -> None:
        """Tell the worker to drain, and do not wait; it is killed after `timeout` seconds."""
        self._kept.stop(timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Drain the worker and wait until it is gone. Any number of calls are as good as one.

        After `timeout` seconds it is killed, and what it ran runs again elsewhere.
        """
        self._kept.close(timeout)

    def last_words(self) -> str:
        """Give the last that it wrote, once it has ended, if it was started without a log."""
        return self._kept.last_words()

    def __repr__(self) -> str:
        state = "running" if self.exit_code is None else f"ended, code {self.exit_code}"
        return f"<LocalWorker {self.queue} pid={self.pid} slots={self.nworkers} {state}>"


def start_local_workers(
    n: int,
    queue: str | None = None,
    url: str | None = None,
    tag: str | None = None,
    log: Log = None,
) -> LocalWorker:
    """Start one worker with `n` slots on this machine, and do not wait for it.

    The worker has this process's directory, environment, module search path and ``redisq``
    settings. It ends with this process at the latest, however this process ends; to have workers
    that stay, start ``dask-redisq-worker``.

    Parameters
    ----------
    n
        The number of slots: processes that run tasks.
    queue
        The queue to listen on; by default the setting ``redisq.queue``.
    url
        The server; by default the setting ``redisq.url``, else the private server of this
        process, if a `get` has started one.
    tag
        A word that the slots carry, besides the host's name.
    log
        Where the worker writes, and the tasks' prints go: nowhere, a file of this name (at its
        end), or ``sys.stdout`` (``"-"`` is the same).

    Returns
    -------
    LocalWorker
        To close it with, sooner.

    Raises
    ------
    NoServerError
        There is no server to work for.
    ValueError
        `n` is less than 1, or no queue can have that name.
    OSError
        On Windows.
    """
    check_posix()
    n = whole("n, the number of slots of a worker,", n, 1)
    url = url or setting("url") or _default_url()
    queue = check_queue_name(setting("queue", queue))
    command = [sys.executable, "-P", "-m", "dask_redisq.cli", "worker", "--nworkers", str(n)]
    command += [f"--tag={tag}", "--", queue] if tag else ["--", queue]
    with _log_descriptor(log) as output:
        kept = Kept(command, env={**os.environ, **inherited(url)}, output=output)
    return LocalWorker(kept, queue, n)


def _default_url() -> str:
    """Give the URL of the private server that serves this process, if there is one."""
    running = [cluster for cluster in defaults.values() if cluster.running]
    if running:
        return running[0].url
    raise NoServerError(
        "no Redis server to work for: pass url=, set redisq.url (DASK_REDISQ__URL), "
        "or use LocalCluster, which starts a private one"
    )


@contextmanager
def _log_descriptor(log: Log) -> Iterator[int | None]:
    """Open what the worker is to write to; None for silence."""
    if log is None:
        yield None
    elif isinstance(log, os.PathLike) or (isinstance(log, str) and log != "-"):
        with open(log, "ab") as file:  # noqa: PTH123 - takes both kinds of name
            yield file.fileno()
    else:
        stream = sys.stdout if isinstance(log, str) else log
        stream.flush()
        try:
            descriptor = stream.fileno()
        except OSError:  # a notebook's sys.stdout, which is no file
            descriptor = 1
        yield descriptor


class _OwnQueue(Queue):
    """A queue that keeps its cluster alive, for who has no more than its bound `get`."""

    cluster: LocalCluster
    owner: int

    def belong_to(self, cluster: LocalCluster) -> None:
        """Ask the cluster, at each call, whether it is still there."""
        self.cluster, self.owner = cluster, os.getpid()
        self.pool.where = lambda: self.url

    @property
    def url(self) -> str:
        """URL of its server.

        Raises
        ------
        NoServerError
            If its cluster has ended: waiting for that server would be in vain.
        """
        # A forked child cannot tell whether the server of its parent runs.
        if os.getpid() == self.owner and not self.cluster.running:
            raise NoServerError(f"{self.cluster!r} has ended, and its server with it")
        return self.cluster.url

    @property
    def links(self) -> list[Link]:
        """Its idle connections."""
        return self.pool.links


class LocalCluster:
    """A private Redis server with workers on this machine, for one queue.

    It ends by `close`, with its ``with`` block, as garbage, and with this process, however that
    ends. The workers are as those of `start_local_workers`.

    Parameters
    ----------
    n_workers
        How many slots (processes that run tasks) in all; by default one per core. 0 is allowed.
    queue
        The queue's name; by default the setting ``redisq.queue``.
    log
        Where its workers write, and the tasks' prints go: as for `start_local_workers`, of those
        that `scale` starts, too.

    Attributes
    ----------
    url : str
        The server's URL, ``unix://PATH``: for any process of the same user on this machine.
    queue : str
        The queue's name.

    Raises
    ------
    NoServerError
        No server program is installed (the message says how to get one).
    RedisqError
        The workers did not start. The message holds the last lines that one wrote, if there is
        no `log` that has them.
    ValueError
        `n_workers` is negative.

    Examples
    --------
    >>> import dask
    >>> import dask_redisq as redisq
    >>> with redisq.LocalCluster(n_workers=1) as cluster:
    ...     dask.delayed(sum)([1, 2]).compute(scheduler=cluster.get)
    3
    """

    def __init__(
        self, n_workers: int | None = None, queue: str | None = None, log: Log = None
    ) -> None:
        self.queue: str = check_queue_name(setting("queue", queue))
        self._log = log
        self._lock = threading.RLock()
        self._workers: list[LocalWorker] = []  # oldest first
        self._server = PrivateServer()
        self.url = self._server.url
        self._client = _OwnQueue(self.queue, url=self.url)
        self._client.belong_to(self)
        self._finalizer = weakref.finalize(
            self, _end, self._client.links, self._workers, self._server
        )
        try:
            self.scale(cpu_count() if n_workers is None else n_workers)
        except BaseException:
            self.close()
            raise
        _made.append(weakref.ref(self, _made.remove))

    @property
    def as_queue(self) -> Queue:
        """Its queue, for all that a `Queue` can do; it keeps the cluster alive."""
        return self._client

    @property
    def get(self) -> Callable[..., Any]:
        """The function to give to Dask as ``scheduler=``: the bound `Queue.get` of this queue."""
        return self._client.get

    @property
    def running(self) -> bool:
        """Whether it is not closed, and its server has not ended."""
        return self._finalizer.alive and self._server.running

    @property
    def is_of_parent(self) -> bool:
        """Whether this is a forked child: it cannot tell if it runs, and did not let go of it."""
        return self._finalizer.alive and self._client.owner != os.getpid()

    @property
    def n_workers(self) -> int:
        """How many slots there are."""
        return sum(worker.nworkers for worker in self._workers if worker.exit_code is None)

    def scale(self, n: int) -> None:
        """Have `n` slots in all, 0 or more, and wait until they are registered.

        Up: one more worker, with what is missing. Down: the newest workers are drained, and
        one is started with what that was too much. Tasks that a drained worker does not
        finish in time run again on others.

        Raises
        ------
        RedisqError
            New workers did not start, or the cluster is closed.
        ValueError
            `n` is negative.
        """
        n = whole("n_workers, the number of slots of a cluster,", n, 0)
        with self._lock:
            if not self.running:
                raise RedisqError(f"{self!r} has ended")
            self._drop([worker for worker in self._workers if worker.exit_code is not None])
            staying, leaving = [*self._workers], []
            while sum(worker.nworkers for worker in staying) > n:
                leaving.append(staying.pop())
            self._drop(leaving)
            if missing := n - sum(worker.nworkers for worker in staying):
                worker = start_local_workers(missing, self.queue, self.url, log=self._log)
                self._workers.append(worker)
                self._wait_for_slots(n)

    def _drop(self, workers: list[LocalWorker]) -> None:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.close()
            self._workers.remove(worker)

    def _wait_for_slots(self, n: int) -> None:
        """Wait until `n` slots are registered, or a worker has failed to start."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                # In short spells, to see a worker that ends before it registers.
                return self._client.wait_for_workers(n, timeout=0.2)
            except TimeoutError:
                worker = self._workers[-1]
                if worker.exit_code is None and time.monotonic() < deadline:
                    continue
                self._drop([worker])
                if self._log is not None:
                    raise RedisqError(f"{worker!r} did not start: its log says why") from None
                how = f"{worker!r} did not start. The last that it wrote:"
                words = worker.last_words().splitlines()[-10:]
                raise RedisqError("\n  ".join([how, *words])) from None

    def close(self) -> None:
        """Stop the workers, then the server. Any number of calls are as good as one.

        In a forked child this does nothing to them: they are the parent's.
        """
        with self._lock:
            self.let_go()

    def let_go(self) -> None:
        """Do as `close`, but wait for no other thread: in a forked child that may never answer."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"{self.url} slots={self.n_workers}" if self.running else "ended"
        return f"<LocalCluster {self.queue} {state}>"


def _end(links: list[Link], workers: list[LocalWorker], server: PrivateServer) -> None:
    """End a cluster: first who needs the server, all workers at a time, then the server."""
    for link in links:
        link.close()
    for worker in workers:
        worker.stop(GRACE)
    for worker in workers:
        worker.close(GRACE)
    server.close()


#: Those that were made; a list, whose single steps are safe from other threads.
_made: list[weakref.ref[LocalCluster]] = []


def running_clusters() -> list[LocalCluster]:
    """Return the clusters that run, oldest first: of this process, or of who forked it."""
    found = [cluster for cluster in (ref() for ref in tuple(_made)) if cluster is not None]
    return [cluster for cluster in found if cluster.running or cluster.is_of_parent]


#: The clusters that this process uses where no server is named, by queue: see `embedded`.
defaults: dict[str, LocalCluster] = {}
