"""What is ready, and who takes it: the part of the model that all calls share. No I/O."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from model.job import SOFT, Job

__all__ = ["STALE", "Answer", "Call", "Ready", "Slot"]

#: Priorities weigh more than how often a job was served.
PRIORITY = 2**40
#: Milliseconds for which wishes may pass over the first task of a ready set.
PASSED_OVER = 5000
#: The most tasks of one lease.
MOST = 1000


class Call(NamedTuple):
    """What a slot tells a step: what it made in `name`, and how much it wants next.

    Attributes
    ----------
    components : list of list of int
        What was run, as tasks that are accepted together.
    failure : int, optional
        The task that raised.
    epoch : str
        Of the lease.
    wishes : mapping of str to sequence of int, or False
        What policies of jobs answered; false for one that did not end.
    known : str
        The job of which `want` and `floor` are told.
    """

    slot: str
    seq: int
    name: str = ""
    components: Sequence[list[int]] = ()
    failure: int | None = None
    epoch: str = ""
    known: str = ""
    want: int = MOST
    floor: int = 1
    wishes: Mapping[str, Sequence[int] | bool] = MappingProxyType({})


class Answer(NamedTuple):
    """What step answers; `look`: in how many ms to look again, 0 if somebody will wake the slot."""

    status: str
    refused: tuple[int, ...] = ()
    job: str = ""
    tasks: tuple[int, ...] = ()
    alone: bool = False
    look: int = 0


#: Of an older call than the last, and of a slot that made none.
STALE = Answer("stale")


@dataclass
class Slot:
    """A registered slot: its worker, its last call and the answer, and the job of its lease."""

    worker: str
    seq: int
    tags: tuple[str, ...] = ()
    answer: Answer = STALE
    job: str = ""


class Ready:
    """All jobs and slots; which jobs have work, what of it a slot is given, what comes back."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.slots: dict[str, Slot] = {}
        #: Jobs with ready tasks, by the order in which they are served.
        self.active: dict[str, int] = {}
        self.serves = 0
        #: Whether no lease is given, and how often that was changed.
        self.suspended, self.turns = False, 0
        #: What time it is, in ms.
        self.now = 0

    # -- leases --------------------------------------------------------------------------------

    def _leave(
        self, slot: str, begun: Callable[[int, int], bool], kept: Collection[int] = ()
    ) -> None:
        held = self.slots.pop(slot)
        if held.job:
            self._end_lease(held.job, slot, begun, kept)

    def _end_lease(
        self, name: str, slot: str, begun: Callable[[int, int], bool], kept: Collection[int] = ()
    ) -> None:
        """What is left of a lease, but `kept`, is ready again; what may have run runs alone (rule 3)."""
        job = self.jobs.get(name)
        lease = job.leases.pop(slot, None) if job is not None else None
        if job is None or lease is None:
            return
        left = [t for t in lease.tasks if t not in job.finished and t not in kept]
        job.alone.update(t for i, t in enumerate(lease.tasks) if t in left and begun(i, t))
        left = [t for t in left if t not in job.parked]
        if job.state == "running":
            self._make_ready(name, left)

    # -- which jobs have work --------------------------------------------------------------------

    def _make_ready(self, name: str, tasks: Collection[int]) -> None:
        if tasks and not self.jobs[name].frozen:
            self.jobs[name].ready.update(tasks)
            self.jobs[name].list_sets(self.now)
            self._activate(name)

    def _postpone(self, name: str, task: int) -> None:
        """A task that failed is ready again after a pause."""
        self.jobs[name].delayed[task] = self.now + self.jobs[name].retry_delay
        if not self.jobs[name].frozen:
            self._activate(name)

    def _release_due(self, name: str) -> int | None:
        """What is due is ready; tell in how many ms the next one is, if one waits."""
        job = self.jobs[name]
        due = [t for t, at in job.delayed.items() if at <= self.now]
        job.delayed = {t: at for t, at in job.delayed.items() if at > self.now}
        self._make_ready(name, due)
        return min(job.delayed.values()) - self.now if job.delayed else None

    def _activate(self, name: str) -> None:
        """A job with ready or delayed tasks is as if just served."""
        self.active.setdefault(name, self.serves - self.jobs[name].priority * PRIORITY)

    def _settle_active(self, name: str) -> None:
        if not self.jobs[name].ready and not self.jobs[name].delayed:
            self.active.pop(name, None)

    def _serve(self, name: str) -> None:
        """The least recently served job of the highest priority is next."""
        if len(self.active) > 1 and name in self.active:
            self.serves += 1
            self.active[name] = self.serves - self.jobs[name].priority * PRIORITY
        self._settle_active(name)

    def _end(self, name: str, state: str, error: tuple[str, int] = ("", -1)) -> None:
        self.jobs[name].end(state, error)
        self.active.pop(name, None)

    def _end_if_done(self, name: str) -> None:
        job = self.jobs[name]
        if job.state != "running" or not job.sealed or job.damaged:
            return
        if len(job.finished) == len(job.inputs):
            self._end(name, "done")

    # -- what a slot is given ------------------------------------------------------------------

    def _take(self, call: Call, fresh: Collection[int]) -> Answer:
        """Choose a job and tasks of it; what just became ready here is the first choice."""
        if self.suspended:
            return Answer("ok")
        looks = list[int]()
        for name in sorted(self.active, key=lambda j: (self.active[j], j)):
            job = self.jobs[name]
            if job.asks and not job.sealed:
                continue  # the right task may be in the last block
            if job.asks and name not in call.wishes:
                return Answer("wish", job=name)
            due = self._release_due(name)
            sets, more = self._sets(job, call.slot)
            count = self._chunk(job, len(job.ready_in("")), call, name)
            wished = self._wished(job, call.wishes.get(name, ()), [s for s, _ in sets], count)
            for chosen, own in sets:
                ready = self._in_order(job, chosen, fresh if name == call.name else ())
                tasks = self._front(job, ready[:count])
                tasks = wished[1] if wished and wished[0] == chosen else [] if wished else tasks
                if tasks:
                    job.ready.difference_update(tasks)
                    job.since.update({chosen: self.now} if own else {})
                    job.list_sets(self.now)
                    return Answer("ok", job=name, tasks=tuple(tasks), alone=tasks[0] in job.alone)
            looks += [*([due] if due else []), *more]
        return Answer("ok", look=min(looks, default=0))

    def _sets(self, job: Job, slot: str) -> tuple[list[tuple[str, bool]], list[int]]:
        """The ready sets that a slot may take from, and whether they are its own; when to look for more."""
        first, last, looks = list[tuple[str, bool]](), list[tuple[str, bool]](), list[int]()
        tags = {job.set_of(t): job.hard[t] for t in job.hard}
        for name in sorted(job.since, key=lambda s: (job.since[s], s)):
            waited = self.now - job.since[name]
            if {slot, *self.slots[slot].tags} & {*tags[name]}:
                first.append((name, True))
            elif SOFT in tags[name] and waited >= job.patience:
                last.append((name, False))
            elif SOFT in tags[name]:
                looks.append(job.patience - waited)
        return [*first, ("", False), *last], looks

    def _in_order(self, job: Job, name: str, fresh: Collection[int]) -> list[int]:
        if job.alone or job.hard or job.asks:
            fresh = ()
        return sorted(job.ready_in(name), key=lambda t: (t not in fresh, t))

    def _wished(
        self, job: Job, wishes: Sequence[int] | bool, sets: list[str], count: int
    ) -> tuple[str, list[int]] | None:
        """What of the wishes is ready, all of one set; but what they passed over for too long is first."""
        if not job.asks or isinstance(wishes, bool) or not wishes:
            return None
        for name in sets:
            first = job.ready_in(name)[:1]
            task, since = job.passed.get(name, (-1, 0))
            if first == [task] and self.now - since >= PASSED_OVER:
                return name, self._front(job, job.ready_in(name)[:count])
            if first and first != [task]:
                job.passed[name] = first[0], self.now
        tasks = list[int]()
        for task in wishes:
            fits = task in job.ready and job.set_of(task) in sets and task not in tasks
            together = not tasks or (task not in job.alone and tasks[0] not in job.alone)
            if fits and together and len(tasks) < count:
                tasks += [task] if not tasks or job.set_of(task) == job.set_of(tasks[0]) else []
        return (job.set_of(tasks[0]), tasks) if tasks else None

    def _front(self, job: Job, tasks: list[int]) -> list[int]:
        """As many of these as may run together: one that must run alone only by itself."""
        careful = [i for i, t in enumerate(tasks) if t in job.alone]
        return tasks[: careful[0] or 1] if careful else tasks

    def _chunk(self, job: Job, backlog: int, call: Call, name: str) -> int:
        """How many tasks a slot may take."""
        slots = max(1, len(self.slots))
        if job.chunk > 0:
            return job.chunk
        if job.chunk < 0:
            return max(1, math.ceil(backlog / slots))
        if name != call.known:
            return 1
        return min(MOST, call.want, max(1, call.floor, math.ceil(backlog / (2 * slots))))
