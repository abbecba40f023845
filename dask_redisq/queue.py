"""A queue as its users see it: compute on it, look at it, remove it, close it."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import dask
from dask.typing import Key

from dask_redisq import status
from dask_redisq.dask_input import plain_graph, refuse_disk_shuffle, restrictions
from dask_redisq.errors import NoServerError, NoWorkersError
from dask_redisq.graph import plan_graph
from dask_redisq.job import Job, JobOptions
from dask_redisq.keys import Keys, check_queue_name
from dask_redisq.link import Link, redact
from dask_redisq.registry import list_workers, live_slots
from dask_redisq.server_check import warn_about_server
from dask_redisq.settings import setting, whole

__all__ = ["Queue", "default_queue", "enable", "get"]

import logging

logger = logging.getLogger("dask_redisq")

#: Idle connections that a queue keeps for its next calls.
KEEP = 4


class Queue:
    """A named family of Redis keys that workers listen on.

    Parameters
    ----------
    name : str, optional
        Text without braces; by default the setting ``redisq.queue``.
    url : str, optional
        ``redis://``, ``rediss://`` or ``unix://PATH``, with options of redis-py such as
        ``?ssl_ca_certs=/PATH/ca.crt``; by default the setting ``redisq.url``, and
        without that the private server of this process, started at the first use.

    Raises
    ------
    ValueError
        For a name that is empty or has braces.

    Examples
    --------
    >>> import dask
    >>> import dask_redisq as redisq
    >>> with redisq.Queue("jobs") as queue:  # doctest: +SKIP
    ...     dask.compute(dask.delayed(sum)([1, 2]), scheduler=queue.get)
    (3,)

    Without the ``with`` block its connections are closed by `close`, or when it is garbage.
    """

    def __init__(self, name: str | None = None, url: str | None = None) -> None:
        self.name = check_queue_name(setting("queue") if name is None else name)
        self.keys = Keys(self.name)
        self._url = url
        self._links: list[Link] = []
        weakref.finalize(self, _close, self._links)
        self._closed = 0  # how often
        self._lock = threading.Lock()
        self._checked = False

    def __repr__(self) -> str:
        where = redact(self._url or setting("url") or "the private server")
        return f"<Queue {self.name} on {where}>"

    @property
    def url(self) -> str:
        """URL of its server; starts the private one if there is no other."""
        return self._url or _server_url(self.name)

    # -- compute -----------------------------------------------------------------------

    def get(self, dsk: Any, keys: Any, **kwargs: Any) -> Any:
        """Compute `keys` of the graph `dsk` on the workers of this queue: a Dask scheduler.

        Parameters
        ----------
        dsk : Expr, HighLevelGraph or dict
            Whatever Dask passes.
        keys : hashable, or nested list of hashable
            What to return.
        chunk_size, chunksize : int, optional
            Tasks per lease at most; -1 spreads them evenly; by default by their duration.
        allowed_failures : int, default 3
            Deaths of its process at which a task fails the job.
        locality_wait, ft_interval, alive_expiry, no_workers_timeout : float, optional
            Seconds; see ``redisq.yaml``.
        priority : int, default 0
            Jobs of a higher one come first; -4096 to 4096.
        workers : str or list of str, optional
            Names, hosts or tags: only such workers run the tasks, unless `allow_other_workers`.
        **kwargs
            Keywords of other schedulers are ignored, as Dask's own do.

        Returns
        -------
        object
            The value of a single key; for a list a tuple, recursively.

        Raises
        ------
        KeyError, ValueError, RuntimeError
            For a key that is not in the graph, a missing dependency, a cycle; nothing was sent.
        BaseException
            What a task raised, as its own type, with the remote traceback.
        RedisqError
            What went wrong otherwise: see `dask_redisq.errors`.
        """
        options = _job_options(kwargs)
        graph, keys, annotations = plain_graph(dsk, keys)
        plan = plan_graph(graph, keys, setting("order", kwargs.get("order")))
        refuse_disk_shuffle(plan.keys)
        plan.restricted = restrictions(
            annotations,
            plan.keys,
            kwargs.get("workers"),
            others=bool(kwargs.get("allow_other_workers")),
        )
        values = dict(plan.constants)
        if len(plan):
            with self._link() as link:
                values.update(Job(link, self.keys, plan, options).compute())
        for key, node in plan.local.items():
            values[key] = node({k: values[k] for k in node.dependencies})
        return _nested(keys, values)

    # -- look ----------------------------------------------------------------------------

    def workers(self) -> list[dict[str, Any]]:
        """Return one row per living worker: id, name, host, pid, versions, tags, slots."""
        with self._link() as link:
            return list_workers(link, self.keys)

    def stats(self) -> dict[str, int]:
        """Return counts: waiting, ready, running, finished (only grows), workers, slots."""
        with self._link() as link:
            return status.counts(link, self.keys)

    def wait_for_workers(self, n: int, timeout: float | None = None) -> None:
        """Wait until `n` slots of living workers are registered.

        Parameters
        ----------
        n : int
            Slots, over all workers.
        timeout : float, optional
            Seconds; by default for ever.

        Raises
        ------
        NoWorkersError
            If there are fewer when the time is over.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._link() as link:
            while True:
                slots = link.command("SCARD", self.keys("slots"))
                if slots >= n:  # perhaps some of workers that vanished
                    slots = live_slots(link, self.keys)
                if slots >= n:
                    return
                if deadline is not None and time.monotonic() >= deadline:
                    raise NoWorkersError(
                        f"queue {self.name!r} has {slots} slots after {timeout:g} s, not {n}"
                    )
                time.sleep(0.01)

    # -- remove --------------------------------------------------------------------------

    def remove(self, timeout: float = 15.0) -> None:
        """Cancel the jobs, tell every worker to leave, then delete all keys: doRedis's removeQueue.

        Waits until the workers left, or until those that do not answer are past their expiry; at
        most `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        with self._link() as link:
            link.call("stop_workers", self.keys, reason="its queue was removed")
            while time.monotonic() < deadline:
                workers = link.command("HKEYS", self.keys("workers"))
                names = [self.keys("alive", w.decode()) for w in workers]
                if not names or not link.command("EXISTS", *names):
                    break
                time.sleep(0.02)
            cursor = b"0"
            while True:
                pattern = self.keys.pattern()
                cursor, found = link.command("SCAN", cursor, "MATCH", pattern, "COUNT", 500)
                if found:
                    link.command("UNLINK", *found)
                if cursor == b"0":
                    return

    # -- close ---------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connections that this object holds for its next calls.

        The queue itself stays, with its workers and jobs: see `remove`. A call that is under way
        in another thread goes on, and its connection is closed when it ends. Any number of
        closes are as good as one, and a later call connects again.

        Examples
        --------
        >>> import dask_redisq as redisq
        >>> queue = redisq.Queue("jobs")
        >>> queue.stats()["workers"]  # doctest: +SKIP
        4
        >>> queue.close()
        """
        with self._lock:
            self._closed += 1
            idle = self._links.copy()
            self._links.clear()
        _close(idle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- connections -----------------------------------------------------------------------

    @contextmanager
    def _link(self) -> Iterator[Link]:
        """Lend a held connection; each thread that is inside a call has its own."""
        url = self.url
        with self._lock:
            closed = self._closed
            link = None
            while self._links and link is None:
                link = self._links.pop()
                if link.pid != os.getpid() or link.url != url:
                    link = None  # made before a fork, or for another server
        if link is None:
            link = Link(url)
        if link.unbroken_since is None:
            link.connect()
        if not self._checked:
            warn_about_server(link, logger)
            self._checked = True
        try:
            yield link
        finally:
            with self._lock:
                keep = len(self._links) < KEEP and closed == self._closed
                if keep:
                    self._links.append(link)
            if not keep:
                link.close()


def _close(links: list[Link]) -> None:
    """Close idle connections of a queue that is closed, or garbage."""
    while links:
        links.pop().close()


def _job_options(kwargs: dict[str, Any]) -> JobOptions:
    """Return a job's options from keywords of `get`, then from the settings."""
    chunk = kwargs.get("chunk_size", kwargs.get("chunksize"))
    chunk = setting("chunk-size", chunk)
    if chunk is not None:
        chunk = whole("chunk_size, a number of tasks or -1 to spread them evenly,", chunk, -1)
        if chunk == 0:
            raise ValueError("chunk_size is a number of tasks, or -1 to spread them evenly, not 0")
    priority = whole("priority", kwargs.get("priority") or 0, -(2**31))
    return JobOptions(
        chunk_size=chunk or 0,
        priority=max(-4096, min(4096, priority)),
        allowed_failures=setting("allowed-failures", kwargs.get("allowed_failures")),
        locality_wait=setting("locality-wait", kwargs.get("locality_wait")),
        ft_interval=setting("ft-interval", kwargs.get("ft_interval")),
        alive_expiry=setting("alive-expiry", kwargs.get("alive_expiry")),
        client_lease=setting("client-lease"),
        no_workers_timeout=setting("no-workers-timeout", kwargs.get("no_workers_timeout")),
    )


def _nested(keys: Any, values: dict[Key, Any]) -> Any:
    if isinstance(keys, list):
        return tuple(_nested(key, values) for key in keys)
    return values[keys]


_start_private: Callable[[str], str] | None = None


def serve_unnamed_by(start: Callable[[str], str]) -> None:
    """Let `start`, queue name -> URL, provide the server for queues without a URL.

    `dask_redisq.embedded` does so on import; it is built on queues, and they cannot import it.
    """
    global _start_private  # noqa: PLW0603
    _start_private = start


def _server_url(queue: str) -> str:
    """Return the configured URL, or that of this process's private server."""
    url = setting("url")
    if url:
        return str(url)
    if _start_private is None:
        raise NoServerError("no redisq.url is set: import dask_redisq starts a private server")
    return _start_private(queue)


_queues: dict[tuple[str, str], Queue] = {}
_queues_lock = threading.Lock()


def default_queue(name: str | None = None, url: str | None = None) -> Queue:
    """Return the queue of the settings, the same object for the same server and name."""
    name = setting("queue", name)
    where = (url or _server_url(name), name)
    with _queues_lock:
        if where not in _queues:
            _queues[where] = Queue(where[1], where[0])
        return _queues[where]


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
    return default_queue(kwargs.pop("queue", None), kwargs.pop("url", None)).get(
        dsk, keys, **kwargs
    )


def enable(queue: str | None = None, url: str | None = None) -> Any:
    """Make dask-redisq the scheduler of this process: doRedis's registerDoRedis.

    Sets ``scheduler``, and ``dataframe.shuffle.method`` to tasks, which is the one that is right on
    several hosts. Use it as a plain call, or as a context manager that undoes it.

    Parameters
    ----------
    queue, url : str, optional
        Instead of the settings ``redisq.queue`` and ``redisq.url``.

    Returns
    -------
    context manager
        Leaving it restores what was set before.

    Examples
    --------
    >>> import dask_redisq as redisq
    >>> with redisq.enable(queue="jobs", url="unix:///tmp/r.sock"):
    ...     print(dask.config.get("dataframe.shuffle.method"))
    tasks
    """
    scheduler = get if queue is None and url is None else Queue(queue, url).get
    return dask.config.set({"scheduler": scheduler, "dataframe.shuffle.method": "tasks"})
