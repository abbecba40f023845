"""A job that somebody may wait for, ask and leave again: here, and in any other process."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, NoReturn

from dask_redisq.amounts import deadline_of
from dask_redisq.answer import Answer
from dask_redisq.errors import JobLost, RedisqError
from dask_redisq.follow import Follower
from dask_redisq.frames import ShortTraceback, without_our_frames
from dask_redisq.job import AGAIN
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.monitor import sweep
from dask_redisq.names import Names
from dask_redisq.options import JobOptions, job_options
from dask_redisq.page import Wait
from dask_redisq.pool import Pool
from dask_redisq.refused import counting
from dask_redisq.secret import find_secret
from dask_redisq.serving import stand_in
from dask_redisq.task_warnings import issue_warnings
from dask_redisq.trust import Seal
from dask_redisq.verdict import is_dropped, why_gone

__all__ = ["Future", "attach", "cancel_job", "job_id"]

logger = logging.getLogger("dask_redisq")

#: Letters that are told of why a job was cancelled.
LONGEST = 10_000


class Future:
    """The answer of a job, now or later; `Queue.compute` and `Queue.attach` give it.

    The job of a plain one ends, with its results, when this object is garbage, or its process
    ends. If it is lost before its answer was read, with the server's data or because this process
    was stopped for longer than its lease, it is submitted again, under another id. Of a detached
    job any number of processes may hold one. None of them is needed: the job goes on without, and
    its results stay until they are older than its ``result_ttl``, or until one of them calls
    `forget`.

    Attributes
    ----------
    id : str
        The job's id, with which any process can attach to a detached one.
    kept : KeptJob or None
        What holds a plain one.

    Examples
    --------
    >>> future = queue.compute(x.sum(), detach=True)  # doctest: +SKIP
    >>> future.id  # doctest: +SKIP
    '0f343b0931126a20f133d67c2b018a3b'
    >>> redisq.Queue("jobs").attach(future.id).result()  # doctest: +SKIP
    1000000.0
    """

    def __init__(
        self,
        pool: Pool,
        keys: Keys,
        job: str,
        answer: Answer,
        kept: Any = None,
        again: Callable[[], tuple[str, Any]] | None = None,
    ) -> None:
        self.id = job
        self.kept = kept
        self._pool = pool
        self._keys = keys
        self._answer = answer
        self._again = again
        self._submitting = threading.Lock()
        self._outcome: tuple[Any, BaseException | None] | None = None
        self._trace: TracebackType | None = None

    def __repr__(self) -> str:
        if self._outcome is None:
            state = "not read"
        else:
            error = self._outcome[1]
            state = "read" if error is None else type(error).__name__
        return f"<Future {self.id} of queue {self._keys.queue}, {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} cannot be pickled: this process holds it. Persist what a graph is to use, "
            "and pass the collection; another process attaches to a detached job, by its id"
        )

    @property
    def where(self) -> tuple[Pool, Keys]:
        """The server and the queue of its job."""
        return self._pool, self._keys

    def result(self, timeout: float | None = None) -> Any:
        """Return the answer; wait for it if need be, and look after dead workers meanwhile.

        Parameters
        ----------
        timeout : float, optional
            Seconds; by default for ever.

        Returns
        -------
        object
            The value of the collection that was computed; of several, or of one inside of
            a list, what `dask.compute` returns.

        Raises
        ------
        TimeoutError
            If there is no answer in time; the job goes on.
        ValueError
            If `timeout` is no number.
        BaseException
            What a task raised, as its own type.
        JobCancelled, JobLost, RedisqError
            What went wrong otherwise.
        """
        with ShortTraceback():
            value, error = self._look(timeout)
        if error is None:
            return value
        try:
            raise error
        finally:
            # What goes on from here has the traceback as it came: each raise puts its frames before
            # the last ones, and this frame tells nobody anything.
            BaseException.with_traceback(error, self._trace)
            del self, error  # a traceback may hold this frame, which would hold them

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `result` would raise, None if it would not; waits as that does.

        Raises
        ------
        TimeoutError
            If the job has not ended in time.
        ValueError
            If `timeout` is no number.
        """
        with ShortTraceback():
            return self._look(timeout)[1]

    def done(self) -> bool:
        """Tell, without waiting, whether the job has ended, in whatever way."""
        if self._outcome is not None:
            return True
        job = self.id
        with self._pool.lend() as link:
            state, reason = link.command("HMGET", self._keys("job", job), "state", "error")
            if state is None:
                reason = link.command("GET", self._keys("tomb", job))
        if state == b"running":
            return False
        again = self._again
        if again is None or not is_dropped((state or b"").decode(), reason or b""):
            return True
        self._submit(again, job)
        return False

    def cancel(self, reason: str | None = None) -> bool:
        """Cancel the job, for all who wait for it; see `Queue.cancel`."""
        with self._pool.lend() as link:
            return cancel_job(link, self._keys, self.id, reason)

    def forget(self) -> None:
        """Remove the job and its results from the server now; who attaches later is told so."""
        self._again = None
        with self._pool.lend() as link:
            verb = "forget" if self.kept is None else "let_go"
            if link.call(verb, self._keys, job=self.id) != 0:  # 0: a job uses its values
                sweep(link, self._keys, self.id)

    def _look(self, timeout: float | None) -> tuple[Any, BaseException | None]:
        """Return the outcome, which is read once."""
        if self._outcome is None:
            value, error = self._read(timeout)
            if error is not None:
                self._trace = without_our_frames(error.__traceback__)
                BaseException.with_traceback(error, self._trace)
            self._outcome = value, error
            self._again = None  # it holds the graph
        return self._outcome

    def _submit(self, again: Callable[[], tuple[str, Any]], lost: str) -> None:
        """Have a job made once more that was lost: with the server's data, or this client's lease.

        Of two threads that wait for it one does: the other would free what the first one waits for.
        """
        with self._submitting:
            if self.id != lost:
                return
            self.id, self.kept = again()
        logger.warning("job %s of a future was lost: it goes again, as job %s", lost, self.id)

    def _read(self, timeout: float | None) -> tuple[Any, BaseException | None]:
        """Wait for the outcome; what is no outcome of the job (no server, no time) is raised."""
        deadline = deadline_of(timeout, time.monotonic())
        for _ in range(AGAIN if self._again is not None else 0):
            job = self.id
            value, error, lost = self._follow(job, deadline)
            if lost and self.id != job:
                continue  # another thread had it made again, and may have read that one's end, too
            again = self._again
            if not lost or again is None:  # who forgot it wants no other
                return value, error
            self._submit(again, job)
        return self._follow(self.id, deadline)[:2]

    def _follow(self, job: str, deadline: float | None) -> tuple[Any, BaseException | None, bool]:
        """Wait for the outcome of a job; tell whether it was lost: see `Dropped`."""
        with self._pool.lend() as link:
            seal = _seal(self._pool, self._keys, job)
            options = self.kept.options if self.kept is not None else None
            reader = _reader(link, self._keys, job, self._answer, seal, options)
            try:
                with stand_in(self._pool.url, self._keys, Wait.FUTURES):
                    reader.gather(deadline)
            except BaseException as error:
                if reader.ended is None:
                    raise
                return None, error, reader.dropped
            warned = link.command("SMEMBERS", self._keys("warnings", job))
        issue_warnings(warned)
        return self._answer.value(reader.received), None, False


def job_id(job: Any) -> str:
    """Return the id of a job; given by itself, by a row about it, or by its future.

    Raises
    ------
    TypeError
        For anything else.
    """
    found = job.id if isinstance(job, Future) else job
    if isinstance(job, Mapping):
        found = job.get("id", job.get("job"))
    if not isinstance(found, str):
        raise TypeError(
            "a job is named by its id, by a row of Queue.jobs, tasks or failed, or by the future "
            f"that Queue.compute gave; not by {job!r}"
        )
    return found


def attach(pool: Pool, keys: Keys, job: str) -> Future:
    """Do what `Queue.attach` promises."""
    seal = _seal(pool, keys, job)
    with pool.lend() as link:
        meta = link.command("HMGET", keys("job", job), "state", "ttl", "sealed")
        if meta[0] is None:
            tomb = link.command("GET", keys("tomb", job))
            raise why_gone(tomb or b"", job, keys.queue)
        if not int(meta[1]):
            raise RedisqError(
                f"job {job} of queue {keys.queue!r} is not detached: its answer goes to the client "
                "that waits for it. Submit with Queue.compute(..., detach=True) to attach later"
            )
        if meta[2] is None:
            raise RedisqError(
                f"job {job} of queue {keys.queue!r} is not sealed: its client is still sending it, "
                "and if that ends before, so does the job. Attach once compute has returned"
            )
        data = link.command("GET", keys("answer", job))
        if data is None:
            raise JobLost(
                f"job {job} of queue {keys.queue!r} is there, but what makes its answer is gone: "
                "was a key of the queue deleted by hand, or evicted? Submit it again"
            )
        with counting(link, keys, seal):
            return Future(pool, keys, job, Answer.decode(data, seal))


def cancel_job(link: Link, keys: Keys, job: str, reason: str | None) -> bool:
    """Do what `Queue.cancel` promises."""
    who = f"by process {os.getpid()} on {socket.gethostname()}"
    told = f"{who}: {reason}"[:LONGEST] if reason else who
    state = link.call("cancel", keys, job=job, reason=told, tomb="1")
    ended, ttl = link.command("HMGET", keys("job", job), "state", "ttl")
    if ended == b"cancelled" and int(ttl):
        sweep(link, keys, job)  # nobody else would: a job with a client is swept by that
    return bool(state == b"running")


def _seal(pool: Pool, keys: Keys, job: str) -> Seal:
    return find_secret(pool.url).seal(keys.queue, job)


def _reader(
    link: Link,
    keys: Keys,
    job: str,
    answer: Answer,
    seal: Seal,
    options: JobOptions | None = None,
) -> Follower:
    """Return a detached job as somebody else follows it."""
    names: Any = Names(link, keys, job, seal)
    pure = link.command("HGET", keys("job", job), "pure") != b"0"
    options = replace(options or job_options({}), result_ttl=1.0, pure=pure)
    return Follower(link, keys, job, answer.outputs.values(), names, seal, options)
