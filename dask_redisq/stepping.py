"""How a slot asks: it reports its last lease, and gets the next, in one call of step.lua."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dask_redisq.codec import pack, unpack
from dask_redisq.keys import Keys
from dask_redisq.lease import Lease
from dask_redisq.link import Link
from dask_redisq.memory import SlotMemory
from dask_redisq.pace import Pace
from dask_redisq.page import Page
from dask_redisq.rebuild import try_rebuild
from dask_redisq.report import Report
from dask_redisq.tags import SlotTags, get_tag
from dask_redisq.wishes import Asker

__all__ = ["ServedQueue", "Stepper"]

#: Seconds until a step that came while its job is rebuilt is sent again.
FROZEN = 0.02
#: Seconds after which the slot rebuilds the job itself.
OVERDUE = 0.5
#: Leases in a row after which a slot may wait awake: more may come at once, and as many again.
ROW = 8
#: Seconds of a call from which the server is too far, or too busy, to wait for it awake.
NEAR = 0.0004


@dataclass
class ServedQueue:
    """One queue that a slot serves.

    Attributes
    ----------
    keys : Keys
        Its name.
    index : int
        Its place among those of the slot.
    seq : int
        The number of the slot's last call there.
    idle : bool
        Whether the slot is in its idle sets.
    """

    keys: Keys
    index: int
    seq: int = 0
    idle: bool = False


class Stepper:
    """The calls of step.lua of one slot.

    Parameters
    ----------
    link : Link
        Its connection.
    slot : str
        Its start id.
    pace : Pace
        How much it asks for.
    page : Page
        Where its supervisor reads that an answer came.
    memory : SlotMemory
        Gets the values that the server accepted.
    tags : SlotTags
        What it carries.
    left : callable
        Returns how many tasks it may still begin.
    awake : bool
        Whether it may wait awake for a reply, for a moment; see `spinning`.
    """

    def __init__(
        self,
        link: Link,
        slot: str,
        pace: Pace,
        page: Page,
        memory: SlotMemory,
        tags: SlotTags,
        left: Callable[[], int],
        *,
        awake: bool,
    ) -> None:
        self.link = link
        self.slot = slot
        self.pace = pace
        self.page = page
        self.memory = memory
        self.tags = tags
        self._left = left
        self._awake = awake
        self._row = 0
        self._asker: Asker | None = None

    def __repr__(self) -> str:
        return f"<Stepper of slot {self.slot}>"

    def step(
        self, queue: ServedQueue, report: Report, *, more: bool, rest: bool = True
    ) -> tuple[Lease | None, int, str]:
        """Report and lease in one call; return the lease, when to look again, and the status."""
        wishes: dict[bytes, list[int] | None] = {}
        while True:
            queue.seq += 1
            status, refused, leased, retry = self._call_step(
                queue, report, wishes, more=more, rest=rest
            )
            self.page.rest()
            if status != b"stale":  # refused whole: nothing of it was judged
                self._keep_accepted(report, refused)
            if status != b"wish":
                break
            wishes[leased] = self._ask(queue, leased.decode())
            report = Report()
        queue.idle = not leased and rest and more
        self._row = self._row + 1 if leased else 0
        if not leased:
            return None, retry, status.decode()
        job, epoch, chunk, block, alone, tasks, *files = leased
        lease = Lease(
            job.decode(), epoch.decode(), chunk, block, bool(alone), tasks, queue.seq, *files
        )
        return lease, 0, status.decode()

    def _ask(self, queue: ServedQueue, job: str) -> list[int] | None:
        """Return what a job's policy wishes for this slot; None if it must be asked no more."""
        if self._asker is None:
            self._asker = Asker(self.link)
        return self._asker.wishes(
            queue.keys, job, slot=self.slot, tag=get_tag(), **self._pace_words(more=True)
        )

    def _pace_words(self, *, more: bool) -> dict[str, object]:
        """Return how much the slot asks for."""
        others = self.pace.others()
        want, floor = self.pace.bounds()
        return {
            "known": self.pace.job,
            "want": min(want, self._left()) if more else 0,
            "floor": floor,
            "others": pack(others) if others else b"",
        }

    def _call_step(
        self,
        queue: ServedQueue,
        report: Report,
        wishes: Mapping[bytes, list[int] | None],
        *,
        more: bool,
        rest: bool,
    ) -> tuple[bytes, list[int], Any, int]:
        """Call step.lua until it was done; a job that nobody rebuilds this slot rebuilds first."""
        told = [
            x for job, tasks in wishes.items() for x in (job, False if tasks is None else tasks)
        ]
        args = {
            "slot": self.slot,
            "seq": queue.seq,
            "job": report.job,
            "epoch": report.epoch,
            "batch": report.batch.pack() if report.job else b"",
            "failure": report.failure,
            **self._pace_words(more=more),
            "rest": int(rest and more),
            "tag": self.tags.own,
            "wishes": pack(told) if told else b"",
        }
        since = 0.0
        while True:
            asked = time.perf_counter()
            if self._awake and self._row >= ROW and self.pace.trip < NEAR:
                answer = self.link.call_awake("step", queue.keys, **args)
            else:
                answer = self.link.call("step", queue.keys, **args)
            status, refused, leased, retry = unpack(answer)
            if status != b"frozen":
                self.pace.called(time.perf_counter() - asked)
                self.page.answered(queue.index, queue.seq)
                return status, refused, leased, retry
            # Its client rebuilds it at once, if it has one. A detached job that nobody reads would
            # wait for a monitor, which judges nothing for a whole expiry after the server was
            # away; and this slot with it, and then each other slot that leased of that job.
            since = since or time.perf_counter()
            if time.perf_counter() - since > OVERDUE:
                try_rebuild(self.link, queue.keys, report.job)
            time.sleep(FROZEN)

    def _keep_accepted(self, report: Report, refused: list[int]) -> None:
        """Keep own values that the server accepted, for tasks that come here next."""
        dropped = set(refused)
        for task, value, _, _, size in report.batch.published:
            if task not in dropped:
                self.memory.values.put(task, value, size)
                if task in report.kept:
                    name = (report.queue, report.job, task, report.attempt)
                    self.memory.kept.put(name, value, size)
