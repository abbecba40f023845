"""A submitted job as it is followed: its outputs are read as they come, or why there are none.

By the client that submitted it, or by any process that attached to it. The outputs are in an
append-only log, read by a cursor.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

from dask.typing import Key

from dask_redisq import client_lease
from dask_redisq.callbacks import Observer
from dask_redisq.codec import loads, unpack
from dask_redisq.errors import JobFailed, JobLost
from dask_redisq.events import EventReader, Events
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.lookout import Lookout
from dask_redisq.monitor import Monitor, renew_values
from dask_redisq.options import JobOptions
from dask_redisq.rebuild import rebuild
from dask_redisq.record import read_record
from dask_redisq.refused import count_refused, counting
from dask_redisq.trust import VALUE, Seal
from dask_redisq.verdict import as_exception, culprit, is_dropped, what_failed, why_gone

__all__ = ["Dropped", "Follower"]

logger = logging.getLogger("dask_redisq")

#: Output values that one answer may hold.
GATHER = 2000
#: After fewer outputs than these comes a moment, in seconds, before the next question: results that
#: come one by one would else cost a question each, as much of the server's time as their tasks.
FEW, PAUSE = 64, 0.001
#: No moment comes if no more than these are missing: a job of four calls would last as long again.
LAST = 8
#: Seconds between two looks at a job of which nothing is heard.
WAIT = 1
#: Seconds after which who waits looks after the queue, too: a small job is over by then, and was
#: two calls dearer.
LOOK = 0.25
#: What gather.lua answers if it wants the upload again.
UPLOAD = 2
#: Rebuilds in a row without another finished task, after which the job is given up.
MOST_REPAIRS = 5
#: Bytes per second at which unpickling is taken to go at the worst.
SLOW = 2e6


class Dropped(JobLost):
    """The job is gone, though nobody wanted that: its client may submit what is missing."""


class Follower:
    """Reads the outputs of a job.

    Parameters
    ----------
    link : Link
        A connection for this alone.
    keys : Keys
        The queue.
    job : str
        The job's id.
    outputs : collection of int
        The tasks whose values are wanted.
    names : sequence of hashable
        The graph key of each task.
    seal : Seal
        Checks what is read.
    options : JobOptions
        The job's settings.

    Attributes
    ----------
    received : dict of int to object
        Task -> value, of the outputs that arrived.
    ended : str or None
        The state in which the job was found ended without its outputs; empty when it is gone.
    """

    #: Who wants to know what happens to the tasks.
    observer: Observer | None = None
    #: The task whose failure ended the job, and whether that was an exception of its own.
    culprit: int | None = None
    raised = False
    #: Whether the server has entered us as waiting for news.
    entered = False
    #: Task -> where it may run; None: it did not submit the job, and does not know.
    restricted: Mapping[int, tuple[str, ...]] | None = None

    def __init__(
        self,
        link: Link,
        keys: Keys,
        job: str,
        outputs: Collection[int],
        names: Sequence[Key],
        seal: Seal,
        options: JobOptions,
    ) -> None:
        self.link = link
        self.keys = keys
        link.watch(keys)
        self.id = job
        self.names = names
        self.seal = seal
        self.options = options
        link.ends_loops = bool(options.get_task)
        self.received: dict[int, Any] = {}
        #: What was said of missing workers.
        self.said: set[str] = set()
        self.ended: str | None = None
        #: Whether it ended though nobody wanted that: see `Dropped`.
        self.dropped = False
        self._outputs, self._wanted = outputs, len(set(outputs))
        self._repairs = self._repaired_at = 0
        self._born = self._heard = time.monotonic()
        self._kept = False
        #: How many outputs the last answer held.
        self.came = 0
        # Where it reads on in the log, and of which rebuild that is.
        self._cursor, self._gen = 0, b""
        self._progress, self._renew_at = -1, self._born + options.client_lease

    def __repr__(self) -> str:
        return f"<Follower of job {self.id}, {len(self.received)} of {self._wanted} outputs>"

    @property
    def detached(self) -> bool:
        """Whether others may read the job, too."""
        return self.options.result_ttl > 0

    def gather(self, deadline: float | None = None) -> dict[int, Any]:
        """Wait for the outputs; return task -> value.

        Parameters
        ----------
        deadline : float, optional
            When to give up with a `TimeoutError`; by `time.monotonic`.
        """
        if self.entered:
            self.entered = False
            self._wait(deadline, time.monotonic())
        while not self.ask():
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise TimeoutError(self.lateness())
            if not self.came:
                self._wait(deadline, now)
                self.look_after(time.monotonic())
            elif self.came < FEW and self._wanted - len(self.received) > LAST:
                time.sleep(PAUSE)
        return self.received

    def lateness(self) -> str:
        """Say what is missing, to who waits no longer."""
        done = f": {self._progress} tasks are done" if self._progress >= 0 else ""
        problem = None
        if time.monotonic() - self._born > LOOK:  # not for who asks with a timeout of 0, in a loop
            problem = self._lookout.problem(self._progress if self._progress >= 0 else None)
        return f"job {self.id} has no answer yet{done}" + (f"; {problem}" if problem else "")

    def ask(self) -> bool:
        """Ask once, and read what came; tell whether all outputs are here.

        Raises
        ------
        BaseException
            What a task raised, or why else the job has ended without its outputs.
        """
        while True:
            answer = self.link.call(
                "gather", self.keys, job=self.id, cursor=self._cursor, gen=self._gen, limit=GATHER
            )
            before = self._gen
            state, reason, progress, further, self._gen, asked, *items = unpack(answer)
            anew = self._gen != before
            if anew and not self.options.pure:
                self._begin_anew(items)
            if self._read_items(items):
                self._cursor = further
            if self._events is not None:
                self._events.read(self.received, anew=anew)
            if asked == UPLOAD:
                self._upload_again()
            elif asked:
                self._repair(progress)
            if asked and not self.options.pure:
                continue  # what is here may be of two histories: only the next answer tells
            break
        self.came = len(items) // 2
        if len(self.received) == self._wanted:
            return True
        if state != b"running" and not items:
            self.ended = state.decode()
            raise self._verdict(self.ended, reason)
        now = time.monotonic()
        self._keep_lease()
        if now >= self._renew_at:
            self.renew_values()
            self._renew_at = now + self.options.client_lease
        if progress != self._progress:
            self._progress, self._heard = progress, now
        self._lookout.look_beside(now)
        return False

    def look_after(self, now: float) -> None:
        """Look for dead workers, and for any at all, when there was nothing to read."""
        if now - self._born > LOOK:
            self._monitor.run(now)
        self._lookout.look_at_quiet(now, now - self._heard, self._progress)

    @cached_property
    def _monitor(self) -> Monitor:
        options = self.options
        return Monitor(self.link, self.keys, self.id, options.ft_interval, options.alive_expiry)

    @cached_property
    def _lookout(self) -> Lookout:
        limit = self.options.no_workers_timeout
        return Lookout(self.link, self.keys, self.id, limit, self.restricted, self._born, self.said)

    @cached_property
    def _events(self) -> Events | None:
        if self.observer is None:
            return None
        return EventReader(self.link, self.keys, self.id, self.names, self.observer, self._outputs)

    def _wait(self, deadline: float | None, now: float) -> None:
        """Wait for news, but not so long that the lease runs out."""
        left = self._lookout.wait(min(WAIT, self.options.client_lease / 4))
        if deadline is not None:
            left = max(0.01, min(left, deadline - now))
        self.link.command("BLPOP", self.keys("news", self.id), left)

    def renew_values(self) -> None:
        """Renew the expiry of large values and constants, slice by slice."""
        if not self.detached:  # else monitors do
            renew_values(self.link, self.keys, self.id)

    def _upload_again(self) -> None:
        """Send what the server forgot; only who submitted the job can."""
        raise JobLost(
            f"job {self.id} of queue {self.keys.queue!r} is lost: the server came back as it was "
            "before it had the whole graph. Submit it again"
        )

    def _repair(self, progress: int) -> None:
        """Rebuild the job on the server, unless that did not help several times in a row."""
        if progress > self._repaired_at:
            self._repaired_at, self._repairs = progress, 0
        self._repairs += 1
        if self._repairs > MOST_REPAIRS:
            raise JobFailed(
                f"job {self.id} cannot end: it was rebuilt {MOST_REPAIRS} times and got no "
                "further. Are keys of the queue deleted by hand, or evicted?"
            )
        # What one reader of a detached job has, another one may still want.
        have = None if self.detached else list(self.received)
        if not rebuild(self.link, self.keys, self.id, have):
            time.sleep(0.05)  # somebody else does
            self._repairs -= 1

    def _read_items(self, items: list[Any]) -> bool:
        """Enter the values of an answer: task, record, task, record, ...

        Returns false if one is not there: it was lost after its task had finished.
        """
        complete, values = True, self.received
        for task, record in _pairs(items):
            if task in values:
                continue
            data, attempt = read_record(record) if record else (None, "")
            if data is None and attempt:
                data = self.link.command("GET", self.keys("value", self.id, task, attempt))
            if data is None:
                complete = False
                self._report_lost(task)
                continue
            self._keep_lease(len(data))
            try:
                seal = self.seal if self.seal.signs else None  # a call costs 0.2 us
                values[task] = loads(
                    seal.open(VALUE, attempt.encode(), task, data) if seal else data
                )
            except Exception as error:
                self._note_unread(task, error)
                raise
        return complete

    def _note_unread(self, task: int, error: Exception) -> None:
        count_refused(self.link, self.keys, self.seal)
        error.add_note(f"dask-redisq: while reading the result of {self._name(task)}")

    def _begin_anew(self, items: list[Any]) -> None:
        """Forget outputs that a rebuild had made again: with others they would not fit together.

        The log of a rebuild begins with what it took for arrived, and values of these may be gone.
        All else is told again.
        """
        kept = {t: self.received[t] for t, r in _pairs(items) if not r and t in self.received}
        self.received.clear()
        self.received.update(kept)

    def _report_lost(self, task: int) -> None:
        answer = self.link.call("report_missing", self.keys, job=self.id, task=-1, input=task)
        if answer == b"finished":  # the job, that is: it ended otherwise, or is gone
            told = self.link.call("gather", self.keys, job=self.id, cursor=0, gen=b"", limit=0)
            state, reason, *_ = unpack(told)
            if state not in (b"running", b"done"):
                self.ended = state.decode()
                raise self._verdict(self.ended, reason)

    # -- the lease ------------------------------------------------------------------------

    def _keep_lease(self, upcoming: int = 0) -> None:
        """Have the lease renewed beside us if the job is old, or `upcoming` bytes may take long."""
        if self._kept or self.detached:
            return
        third = self.options.client_lease / 3
        if upcoming > SLOW * third or time.monotonic() - self._born > third:
            self._kept = True
            client_lease.hold(self.link.url, self.keys.queue, self.id, self.options.client_lease)

    def let_go(self) -> None:
        """Have the lease renewed no more."""
        if self._kept:
            client_lease.drop(self.link.url, self.id)

    # -- the end ----------------------------------------------------------------------------

    def _name(self, task: int) -> str:
        return f"task {self.names[task]!r}"

    def _verdict(self, state: str, reason: bytes) -> BaseException:
        """Return the exception for a job that ended without its outputs."""
        if state == "done":
            return JobFailed(f"job {self.id} is done, but an output is missing")
        if state == "":
            error: BaseException = why_gone(reason, self.id, self.keys.queue)
        else:
            with counting(self.link, self.keys, self.seal):
                error = as_exception(reason, self.id, self.names, self.seal)
            self.culprit = culprit(reason, self.seal)
            self.raised = what_failed(reason)[0] == "raised"
        self.dropped = is_dropped(state, reason)
        if self.dropped and not self.detached:
            return Dropped(str(error))
        return error


def _pairs(items: list[Any]) -> list[tuple[int, bytes | None]]:
    return list(zip(items[::2], items[1::2], strict=True))
