"""What is ready, and who takes it: the part of the model that all calls share. No I/O."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from model.job import Job

__all__ = ["MOST", "Answer", "Ready", "Slot"]

#: What step answers: status, refused tasks, job, tasks of the lease, whether they run alone.
Answer = tuple[str, list[int], str, list[int], bool]
#: Priorities weigh more than how often a job was served.
PRIORITY = 2**40
#: The most tasks of one lease.
MOST = 1000


@dataclass
class Slot:
    """A registered slot: its worker, its last call and the answer, and the job of its lease."""

    worker: str
    seq: int
    answer: Answer = ("stale", [], "", [], False)
    job: str = ""


class Ready:
    """All jobs and slots; which jobs have work, what of it a slot is given, what comes back."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.slots: dict[str, Slot] = {}
        #: Jobs with ready tasks, by the order in which they are served.
        self.active: dict[str, int] = {}
        self.serves = 0

    # -- leases --------------------------------------------------------------------------------

    def _leave(self, slot: str, begun: Callable[[int, int], bool]) -> None:
        held = self.slots.pop(slot)
        if held.job:
            self._end_lease(held.job, slot, begun)

    def _end_lease(self, name: str, slot: str, begun: Callable[[int, int], bool]) -> None:
        """What is left of a lease is ready again; what may have run runs alone (rule 3)."""
        job = self.jobs.get(name)
        lease = job.leases.pop(slot, None) if job is not None else None
        if job is None or lease is None:
            return
        left = [t for t in lease.tasks if t not in job.finished]
        job.alone.update(t for i, t in enumerate(lease.tasks) if t in left and begun(i, t))
        if job.state == "running":
            self._make_ready(name, left)

    # -- which jobs have work --------------------------------------------------------------------

    def _make_ready(self, name: str, tasks: Collection[int]) -> None:
        if tasks:
            self.jobs[name].ready.update(tasks)
            self._activate(name)

    def _activate(self, name: str) -> None:
        """A job with ready tasks is as if just served."""
        self.active.setdefault(name, self.serves - self.jobs[name].priority * PRIORITY)

    def _settle_active(self, name: str) -> None:
        if not self.jobs[name].ready:
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
        if job.state == "running" and job.sealed and len(job.finished) == len(job.inputs):
            self._end(name, "done")

    # -- what a slot is given ------------------------------------------------------------------

    def _take(
        self, name: str, fresh: list[int], known: str, want: int, floor: int
    ) -> tuple[str, list[int], bool, list[int]]:
        """Choose a job and tasks of it; what just became ready here is the first choice."""
        for chosen in sorted(self.active, key=lambda j: (self.active[j], j)):
            job = self.jobs[chosen]
            new = fresh if chosen == name else []
            if not job.ready and not new:
                continue
            count = self._chunk(job, len(job.ready) + len(new), chosen == known, want, floor)
            if not job.alone:
                tasks = (new + sorted(job.ready))[:count]
                job.ready.difference_update(tasks)
                return chosen, tasks, False, [t for t in fresh if t not in tasks]
            job.ready.update(new)
            tasks = sorted(job.ready)[:count]
            careful = [i for i, t in enumerate(tasks) if t in job.alone]
            if careful:
                tasks = tasks[: careful[0] or 1]
            job.ready.difference_update(tasks)
            return chosen, tasks, careful[:1] == [0], [] if new else fresh
        return "", [], False, fresh

    def _chunk(self, job: Job, backlog: int, measured: bool, want: int, floor: int) -> int:
        """How many tasks a slot may take."""
        slots = max(1, len(self.slots))
        if job.chunk > 0:
            return job.chunk
        if job.chunk < 0:
            return max(1, math.ceil(backlog / slots))
        if not measured:
            return 1
        return min(MOST, want, max(1, floor, math.ceil(backlog / (2 * slots))))
