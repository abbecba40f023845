"""Calls as they are drawn, in one job after the other; what they give is handed over as it comes.

A job knows how many tasks it has, and a loop over a generator does not. So its calls go in windows,
each a job of its own, followed by a thread of its own: while one window runs, the next one is on
its way, and what the one before it gave is combined. What is under way is bounded, on either side.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from itertools import count
from types import TracebackType
from typing import Any, NamedTuple, Self

from dask.typing import Key

from dask_redisq.body import is_of_the_job
from dask_redisq.call_log import CallLog
from dask_redisq.calls import CallPlan
from dask_redisq.codec import KeptValue
from dask_redisq.errors import ServerUnavailable
from dask_redisq.job import Job
from dask_redisq.keys import Keys
from dask_redisq.options import JobOptions
from dask_redisq.persist import wait_for_parts
from dask_redisq.pool import Pool
from dask_redisq.record import size_of
from dask_redisq.trust import Signer

__all__ = ["Arrived", "CallJob", "Failed", "Stream"]

logger = logging.getLogger("dask_redisq")

#: Bytes of results that are read before they are handed over, and that wait for their reader.
PORTION, PENDING = 2**22, 2**26
#: Results of which about it is known how large they are.
SAMPLE = 32


class Failed(NamedTuple):
    """What stands for the result of a call that has none."""

    error: BaseException


#: Results by the names of their calls.
Arrived = list[tuple[Any, Any]]


class _Received(dict[int, Any]):
    """Which outputs arrived; the values are in `fresh`, until they are handed over."""

    def __init__(self) -> None:
        self.fresh: list[tuple[int, Any]] = []

    def __setitem__(self, task: int, value: Any) -> None:
        super().__setitem__(task, None)
        self.fresh.append((task, value))


class CallJob(Job):
    """A job of calls: its values are handed over, and not kept; see `Job`.

    Attributes
    ----------
    deliver : callable
        Called as ``deliver(results, size)``, with about the bytes that these had on the server.
    each : bool
        Whether a failure is the result of its call, and the others go on; else it is the job's.
    unrelated : bool
        Whether the calls have nothing to do with each other, so that this holds for one that cannot
        be sent, too. In a loop that is mostly its body, and no iteration would be left.
    watch : callable
        Called with each job once it is submitted: it may be lost, and another takes its place.
    check : callable
        Called while what the calls use is waited for, before there is a job: raises to give up.
    """

    plan: CallPlan
    deliver: Callable[[Arrived, int], None]
    watch: Callable[[CallJob], None]
    check: Callable[[], None] = staticmethod(lambda: None)
    each: bool = False
    #: What a call is named in the log, where what happens to it is told; empty: it is not.
    verbose: str = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.received: _Received = _Received()

    def again(self, received: Mapping[int, Any]) -> Self:
        """Return a new job for the calls that `received` lacks; see `Job.again`."""
        job = super().again(received)
        job.deliver, job.each, job.watch = self.deliver, self.each, self.watch
        job.check = self.check
        job.unrelated, job.verbose, job.said = self.unrelated, self.verbose, self.said
        return job

    def submit(self) -> str:
        """Upload the calls, once what they use of kept jobs is there; see `Job.submit`.

        Then tell: who closed the stream meanwhile found no job to cancel.
        """
        try:
            self._wait_for_parts(self.plan)
        except Exception as error:
            if self.unrelated and not isinstance(error, ServerUnavailable):
                self.unsent = self._without_parts()
            raise
        state = super().submit()
        if self._events is not None:
            self._events.submitted()
        self.watch(self)
        return state

    @cached_property
    def _events(self) -> CallLog | None:
        if not self.verbose:
            return None
        log = CallLog(self.link, self.keys, self.id, self.names)
        log.noun = self.verbose
        return log

    def values(self) -> dict[Key, Any]:
        """Return nothing: all of it was handed over."""
        return {}

    def can_replace(self, error: BaseException) -> bool:
        """Tell whether the failure is the result of a call, and not of what comes before all."""
        if self.unsent:
            return self.unrelated
        return self.each and self.culprit is not None and not is_of_the_job(error)

    def replace(self, error: BaseException) -> None:
        """Hand it over."""
        failures: dict[int, BaseException] = dict(self.unsent)
        if not failures:
            if self.culprit is None:
                raise error
            failures = {self.culprit: error}
        for task, failure in failures.items():
            self.received[task] = Failed(failure)
        self._hand_over(0)

    def _wait_for_parts(self, plan: CallPlan) -> None:
        wait_for_parts(plan, self.link, self.keys, self.options, self.check)

    def _without_parts(self) -> dict[int, Exception]:
        """Return the calls that use what failed or is gone, with what became of it."""
        users: dict[tuple[KeptValue, ...], list[int]] = {}
        for task, some in self.plan.outer.items():
            users.setdefault(some, []).append(task)
        found: dict[int, Exception] = {}
        for some, tasks in users.items():
            one = dataclasses.replace(self.plan, outer={tasks[0]: some})
            try:
                self._wait_for_parts(one)
            except ServerUnavailable:
                raise
            except Exception as error:
                found |= dict.fromkeys(tasks, error)
        return found

    def _read_items(self, items: list[Any]) -> bool:
        complete, first, size = True, 0, 0
        for i in range(1, len(items) + 1, 2):
            size += size_of(items[i])
            if size >= PORTION or i + 1 == len(items):
                complete &= super()._read_items(items[first : i + 1])
                self._hand_over(size)
                first, size = i + 1, 0
        return complete

    def _hand_over(self, size: int) -> None:
        fresh, names = self.received.fresh, self.plan.keys
        if fresh:
            self.received.fresh = []
            self._keep_lease(size)
            self.deliver([(names[task], value) for task, value in fresh], size)


class _End(NamedTuple):
    """A job has ended, maybe by an error."""

    error: BaseException | None


class Stream:
    """Jobs of calls under way, and their results; a context manager, which cancels what is left.

    Parameters
    ----------
    pool : Pool
        The server.
    keys : Keys
        The queue.
    options : JobOptions
        The settings of each job.
    signer : Signer
        Signs what is sent, and checks what comes.
    each : bool, default False
        See `CallJob`.
    verbose : str, default ""
        See `CallJob`.
    """

    def __init__(
        self,
        pool: Pool,
        keys: Keys,
        options: JobOptions,
        signer: Signer,
        *,
        each: bool = False,
        verbose: str = "",
    ) -> None:
        self.pool = pool
        self.keys = keys
        self.options = options
        self.signer = signer
        self.each = each
        self.verbose = verbose
        #: Jobs that have not ended, and calls that have no result.
        self.active = self.outstanding = 0
        self._jobs: dict[int, CallJob] = {}  # by the number of their thread
        self._threads: list[threading.Thread] = []
        #: Bytes of a result, lately; None before the first one.
        self.typical: float | None = None
        self._numbers = count()
        self._said: set[str] = set()
        self._inbox: deque[Arrived | _End] = deque()
        self._sizes: deque[int] = deque()
        self._pending = 0
        self._closed = False
        self._news = threading.Condition()

    def __repr__(self) -> str:
        return f"<Stream of {self.active} jobs on queue {self.keys.queue}>"

    def send(self, plan: CallPlan) -> None:
        """Submit some calls, and follow them, in a thread of their own."""
        self.active += 1
        self.outstanding += len(plan)
        thread = threading.Thread(
            target=self._follow, args=(next(self._numbers), plan), name="redisq-stream"
        )
        self._threads = [other for other in self._threads if other.is_alive()]
        self._threads.append(thread)
        thread.start()

    def receive(self, patience: float | None = None) -> Arrived:
        """Wait for results, or until one more job has ended; raise what ended it.

        Parameters
        ----------
        patience : float, optional
            Seconds after which there are none.

        Raises
        ------
        BaseException
            What a call raised, or what went wrong otherwise.
        """
        with self._news:
            while not self._inbox:
                if not self._news.wait(patience):
                    return []
            told = self._inbox.popleft()
            if not isinstance(told, _End):
                size = self._sizes.popleft()
                self._pending -= size
                self._note(size, len(told))
                self._news.notify_all()
        if not isinstance(told, _End):
            self.outstanding -= len(told)
            return told
        self.active -= 1
        if told.error is not None:
            raise told.error
        return []

    def _note(self, size: int, n: int) -> None:
        old = size / n if self.typical is None else self.typical
        self.typical = (SAMPLE * old + size) / (SAMPLE + n)

    def _follow(self, number: int, plan: CallPlan) -> None:
        error: BaseException | None = None
        try:
            with self.pool.lend(self.keys) as link:
                job = CallJob(link, self.keys, plan, self.options, self.signer)
                job.deliver, job.each = self._deliver, self.each
                job.verbose, job.said = self.verbose, self._said
                job.watch = partial(self._watch, number)
                job.check = self._check
                job.compute()
        except BaseException as why:  # it is the other thread's
            error = why
        self._jobs.pop(number, None)
        with self._news:
            self._inbox.append(_End(error))
            self._news.notify_all()

    def _watch(self, number: int, job: CallJob) -> None:
        self._jobs[number] = job
        self._check()

    def _check(self) -> None:
        if self._closed:
            raise _Closed

    def _deliver(self, results: Arrived, size: int) -> None:
        """Hand results over; wait while their reader is far behind."""
        with self._news:
            while self._pending > PENDING and not self._closed:
                self._news.wait()
            if self._closed:
                raise _Closed
            self._pending += size
            self._sizes.append(size)
            self._inbox.append(results)
            self._news.notify_all()

    def close(self, reason: str = "its results are not wanted any more") -> None:
        """Cancel the jobs that are under way, and wait until all of them are gone."""
        with self._news:
            self._closed = True
            self._news.notify_all()
        jobs = list(self._jobs.values())
        try:
            if jobs:
                with self.pool.lend() as link:
                    for job in jobs:
                        link.call("cancel", self.keys, job=job.id, reason=reason, tomb="")
        except ServerUnavailable as error:
            # It must not hide why the stream is closed, nor leave threads: they give up, too.
            told = "jobs of a loop could not be cancelled, their keys expire: %s"
            logger.warning(told, str(error))
        finally:
            for thread in self._threads:
                thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()


class _Closed(BaseException):
    """The stream is closed: nobody wants what comes. Not an Exception: no task raised it."""
