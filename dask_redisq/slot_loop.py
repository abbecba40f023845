"""The loop of a slot: step (report the last lease, get the next), load, run, store, step again.

With nothing to do it blocks in BLPOP on its wake list.
"""

from __future__ import annotations

import time

import dask

from dask_redisq.allowance import Allowance
from dask_redisq.codec import pack
from dask_redisq.errors import BadSignature
from dask_redisq.files import SlotFiles
from dask_redisq.job_memory import JobEnded, JobMemory, UnreadBlock
from dask_redisq.keys import Keys
from dask_redisq.lease import Lease, LeaseRun
from dask_redisq.link import Link
from dask_redisq.loading import Loader
from dask_redisq.memory import SlotMemory
from dask_redisq.monitor import Monitor
from dask_redisq.pace import Pace
from dask_redisq.page import Limit, Page
from dask_redisq.remote_error import add_note, pack_error
from dask_redisq.report import Report, kept_of, own_retries, store_apart
from dask_redisq.server_check import most_bytes
from dask_redisq.stepping import ServedQueue, Stepper
from dask_redisq.tags import SlotTags
from dask_redisq.task_warnings import WarningBox
from dask_redisq.trust import ERROR, UNSIGNED, Seal, Signer

__all__ = ["Slot"]

#: Tasks that one lease may have.
MOST = 1000
#: Seconds between two looks for work of an idle slot: heals a lost token.
RECHECK = 5
#: Seconds after which a slot turns from a queue to those that come before it.
TURN = 1.0
#: Characters that are told of why a result does not pickle.
LONGEST = 20_000


class _Wake(BaseException):
    """Raised by the signal handler to leave a blocking wait."""


class Slot:
    """The loop of one slot.

    Parameters
    ----------
    link : Link
        Its connection, which waits for the server for ever.
    slot : str
        Its start id, 16 random hexadecimal digits; with a sequence number it names an attempt.
    queues : list of str
        The queues that it serves, in order.
    tags : SlotTags
        What it carries.
    page : Page
        Where its supervisor reads what it does.
    where : str
        Name of its worker, for messages.
    signer : Signer
        Signs what it makes, and checks what it reads.
    most_kept : int, default 1 GiB
        Bytes of persisted values that stay in its memory.
    files : SlotFiles, optional
        Where uploaded files go.
    allowance : Allowance, optional
        How many tasks the slots of its worker may still begin.
    awake : bool, default False
        Whether there is a core for it, so that it may wait awake; see `spinning`.
    """

    def __init__(
        self,
        link: Link,
        slot: str,
        queues: list[str],
        tags: SlotTags,
        page: Page,
        where: str,
        signer: Signer = UNSIGNED,
        most_kept: int = 2**30,
        files: SlotFiles | None = None,
        allowance: Allowance | None = None,
        *,
        awake: bool = False,
    ) -> None:
        self.link = link
        self.files = files
        self.allowance = allowance
        self.slot = slot
        self.queues = [ServedQueue(Keys(name), i) for i, name in enumerate(queues)]
        for queue in self.queues:
            link.watch(queue.keys)
        self.monitors = [Monitor(link, queue.keys, slot) for queue in self.queues]
        self.tags = tags
        self.page = page
        self.where = where
        self.pace = Pace()
        self.memory = SlotMemory(link, signer, most_kept)
        self.warnings = WarningBox()
        self._stepper = Stepper(
            link, slot, self.pace, page, self.memory, tags, self._left, awake=awake
        )
        self.stopping = False
        self._waiting = False

    def __repr__(self) -> str:
        return f"<Slot {self.slot} of {self.where}, queues {[q.keys.queue for q in self.queues]}>"

    # -- the loop -------------------------------------------------------------------

    def run(self) -> None:
        """Serve the queues until `stop` is called."""
        while True:
            try:
                return self._serve()
            except _Wake:
                self.link.close()  # the signal came just when the wait was over: nothing is in hand

    def _serve(self) -> None:
        at, fruitless, report = 0, 0, Report()
        turned = time.monotonic()
        again = RECHECK * 1000
        while True:
            ending = self.stopping or self._left() == 0
            if ending and not report.job:
                # Nothing is in hand, and its supervisor unregisters it. A call would be more than
                # vain: the remover of a queue deleted its keys, then an idle slot heard that it is
                # to end, made a new connection, and with that the queue's key, for a day.
                return
            queue = self.queues[at]
            turn = at > 0 and time.monotonic() - turned > TURN
            lease, retry, status = self._stepper.step(queue, report, more=not ending and not turn)
            report = Report()
            if lease is not None:
                self._leave_other_queues(queue)
                report = self._work(queue, lease)
                fruitless, again = 0, RECHECK * 1000
                continue
            if ending or self.stopping:
                return
            again = min(again, retry or again, 500 if status == "unregistered" else again)
            fruitless = 0 if turn else fruitless + 1
            at, turned = 0 if turn else (at + 1) % len(self.queues), time.monotonic()
            if fruitless >= len(self.queues):
                for monitor in self.monitors:
                    monitor.run(turned)
                for other in self.queues:
                    self.memory.tidy(other.keys, turned)
                self._wait(again)
                at, fruitless, again = 0, 0, RECHECK * 1000

    def _left(self) -> int:
        """Return how many tasks may begin, as far as this slot knows."""
        return MOST if self.allowance is None else self.allowance.left

    def stop(self, *_: object) -> None:
        """End after the task in hand; a signal handler."""
        self.stopping = True
        if self._waiting:
            raise _Wake

    def _wait(self, milliseconds: int) -> None:
        """Block until a token comes, at most `milliseconds`."""
        lists = [q.keys("wake", self.slot) for q in self.queues]
        try:
            self._waiting = True
            if not self.stopping:
                self.link.command("BLPOP", *lists, max(0.01, milliseconds / 1000))
        except _Wake:
            # The BLPOP may be under way: its reply, 5 s from now, is not that of the next call.
            self.link.close()
        finally:
            self._waiting = False

    def _leave_other_queues(self, queue: ServedQueue) -> None:
        """Leave the idle sets of the other queues; a token that waits there is passed on."""
        for other in self.queues:
            if other is not queue and other.idle:
                self._stepper.step(other, Report(), more=False, rest=False)

    # -- one lease --------------------------------------------------------------------

    def _work(self, queue: ServedQueue, lease: Lease) -> Report:
        """Run a lease and return what to report of it."""
        report = Report(lease.job, lease.epoch, queue.keys.queue, self._attempt(lease))
        self.page.hold(queue.index, lease.job, lease.seq, _now_ms(), len(lease.tasks))
        job = lease.job.encode()
        if self.page.stopped(job, lease.seq):
            return report  # it was cancelled while the answer was under way
        memory = self.memory.job(queue.keys, lease.job, lease.epoch)
        if len(self.queues) > 1 and dask.config.get("redisq.queue") != queue.keys.queue:
            dask.config.set({"redisq.queue": queue.keys.queue})  # for a task that computes
        try:
            if lease.files and self.files is not None:
                self.files.sync(self.link, queue.keys, lease.files, lease.job)
            page = self.page
            loader = Loader(self.link, queue.keys, self.memory, memory, page.begin, page.reading)
            loader.load_blocks(lease)
            values, tasks = loader.load_inputs(lease)
        except JobEnded as ended:
            self.memory.missed(queue.keys, lease.job, ended)
            return report
        except BaseException as error:  # a __setstate__ that calls exit is no word to the slot
            report.failure = self._not_loaded(queue, lease, error, memory.seal)
            return report
        if not tasks:
            return report
        run = LeaseRun(
            lease._replace(tasks=tasks),
            memory.blocks,
            values,
            self.pace,
            self.tags,
            time.perf_counter,
            self.page.begin,
            lambda task, most, retries: self.page.limit(
                task, lease.seq, Limit(_now_ms(), round(most * 1000), retries)
            ),
            lambda: not self.stopping and not self.page.stopped(job, lease.seq),
            lambda size: most_bytes(self.link, size),
            memory.seal.signer_of_values(self._attempt(lease).encode()),
            None if self.allowance is None else self.allowance.take,
        )
        run.run()
        self._fill(report, queue, lease, run, memory)
        return report

    def _fill(
        self, report: Report, queue: ServedQueue, lease: Lease, run: LeaseRun, memory: JobMemory
    ) -> None:
        """Enter what a lease made, and store what is large of it."""
        report.batch = run.report()
        report.kept = kept_of(memory, lease, report.batch)
        if run.gave:
            # If it is to be made again, what it was given may be gone from the server. And it would
            # stay here for longer than `kept` says.
            self.memory.forget(lease.job)
            size = memory.given_size()  # and not what its client took it for
            report.batch.published = [p._replace(size=size) for p in report.batch.published]
        if warned := self.warnings.take():
            self.link.send_call("warn", queue.keys, job=lease.job, entries=pack(warned))
        # No task is in hand any more: what kills this process from here on is charged to none.
        self.page.begin(-1, len(lease.tasks) - 1)
        store_apart(self.link, queue.keys, report, lambda: self.stopping)
        if report.batch.failed is not None:
            retries = own_retries(memory, lease, *report.batch.failed)
            done = len(lease.tasks)
            report.failure = self._failure(*report.batch.failed, done, memory.seal, retries)
            # Frames of the task lead back to this one: a cycle, which kept their data and locks.
            run.failed = report.batch.failed = None
        elif report.batch.unpublished is not None:
            task, text = report.batch.unpublished
            told = text[:LONGEST].encode(errors="backslashreplace")  # the words of any __reduce__
            report.failure = pack([task, "unpicklable", pack([self.where, told]), 0])

    def _attempt(self, lease: Lease) -> str:
        """Return the name under which step.lua records what this lease makes."""
        return f"{self.slot}{lease.seq:08x}"

    def _not_loaded(
        self, queue: ServedQueue, lease: Lease, error: BaseException, seal: Seal
    ) -> bytes:
        """Return the failure of a lease of which something could not be read.

        It is reported of a task that is leased, and says of which tasks it is.
        """
        unread = None
        if isinstance(error, UnreadBlock) and error.__cause__ is not None:
            first, last = error.block * lease.block, (error.block + 1) * lease.block - 1
            unread = (first + error.place,) * 2 if error.place >= 0 else (first, last)
            error = error.__cause__
        add_note(error, f"dask-redisq: while loading what the task needs on worker {self.where}")
        if isinstance(error, BadSignature):  # one a lease: the first one ends it
            who = self._attempt(lease)
            self.link.call("refuse", queue.keys, job=lease.job, who=who, total=1)
        return self._failure(lease.tasks[0], error, -1, seal, unread=unread)

    def _failure(
        self,
        task: int,
        error: BaseException,
        position: int,
        seal: Seal,
        retries: int = -1,
        unread: tuple[int, int] | None = None,
    ) -> bytes:
        """Return what step.lua takes of a task that raised.

        An exception's `__reduce__` can kill the process as well. Were no task in hand then, none
        would be charged: the lease went back, killed the next slot, and so on for ever.
        """
        self.page.begin(task, position)
        signed = seal.sign(ERROR, b"", task, pack_error(error, self.where, unread))
        self.page.begin(-1, position)
        return pack([task, "raised", signed, retries])


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
