"""What is missing of a job, and how it is made whole: all but the graph and the values is made anew. No I/O."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

from model.job import ONCE, Job
from model.steps import Steps

__all__ = ["LIFE", "Built", "Repairs"]

#: Milliseconds for which a rebuilder that may have died keeps others off.
LIFE = 10_000


class Built(NamedTuple):
    """What a rebuilder made of what it read: finished tasks, those that run again, outputs that arrived."""

    finished: set[int]
    again: set[int]
    delivered: set[int]


class Repairs(Steps):
    """The calls of those who repair a job, or let it go on."""

    def rerun(self, name: str, epoch: str, fresh: str) -> str:
        """A detached job that failed in `epoch` goes on in another, `fresh`, once it is rebuilt."""
        job = self.jobs.get(name)
        if job is None:
            return ""
        if job.epoch == fresh:
            return "rerun"
        if job.state != "failed":
            return job.state
        if not job.detached:
            return "kept"
        if job.buried:
            return "over"
        if len(job.blocks) < len(job.numbers):
            return "incomplete"
        if job.epoch != epoch:
            return "late"
        job.state, job.error, job.epoch, job.sealed = "running", ("", -1), fresh, True
        job.damaged, job.frozen, job.frozen_at = ONCE, "nobody", -math.inf
        job.deaths, job.tries = {}, {}
        return "rerun"

    def lose_value(self, name: str, task: int) -> None:
        """An accepted value is gone; nobody knows that yet."""
        self.jobs[name].values.discard(task)

    def report_missing(self, name: str, task: int, needed: int) -> str:
        """Answer who did not find an input, or -1, the client an output: a missing value is a question."""
        job = self.jobs.get(name)
        if job is None or (job.state != "running" and not (job.state == "done" and task < 0)):
            return "finished"
        if task in job.finished:
            return "finished"
        if needed in job.values:
            return "there"
        job.state = "running"
        job.damage()
        job.parked.update([task] if task >= 0 else [])
        return "parked"

    def _is_damaged(self, name: str) -> bool:
        """Whether a job wants a rebuild: of one that is not finished, something is somewhere."""
        job = self.jobs[name]
        if job.state != "running" or not job.sealed:
            return False
        if not (job.damaged or job.frozen):
            somewhere = job.ready or job.delayed or job.leases or job.parked
            if not somewhere and len(job.finished) < len(job.inputs):
                job.damage()
        return bool(job.damaged or job.frozen)

    # -- a rebuild: hold the job, read it, put what follows in its place --------------------------

    def freeze(self, name: str, generation: str) -> str:
        """Nothing of the job is accepted, leased or made ready from now on."""
        job = self.jobs.get(name)
        if job is None or job.state != "running":
            return job.state if job else ""
        if not job.sealed:
            return "unsealed"
        if job.frozen == generation:
            return "frozen"
        if job.generation == generation:
            return "over"
        if job.frozen and self.now < job.frozen_at + LIFE:
            return "busy"
        job.frozen, job.frozen_at, job.damaged = generation, self.now, ONCE
        self.active.pop(name, None)
        return "frozen"

    def build(self, name: str, have: Collection[int] | None) -> Built:
        """Read a frozen job; values that nobody needs, or that are made again, go.

        `have`: outputs that the caller has; without it, those that its client said it has.
        """
        job = self.jobs[name]
        delivered = job.delivered if have is None else {*have}
        run, todo = set[int](), [*(job.outputs - delivered)]
        while todo:  # what is not needed for an output does not run, whatever became of it
            task = todo.pop()
            if task not in run and not (task in job.finished and task in job.values):
                run.add(task)
                todo += job.inputs[task]
        needed = {i for task in run for i in job.inputs[task]} | (job.outputs - delivered)
        job.values &= needed - run
        return Built({*job.tasks} - run, run & job.finished, delivered - run)

    def rebuild(self, name: str, generation: str, built: Built) -> str:
        """Put what was built in its place; of two rebuilders the older is late."""
        job = self.jobs.get(name)
        if job is None or job.state != "running" or job.frozen != generation:
            return "late"
        job.finished, job.parked, job.frozen, job.generation = (
            {*built.finished},
            set(),
            "",
            generation,
        )
        told = sorted((job.outputs & job.finished) - built.delivered)
        job.log = [entry for entry in (sorted(built.delivered), told) if entry]
        job.acked = 1 if built.delivered else 0
        self._place(job, built.again)
        job.damaged = 0 if job.damaged == ONCE else job.damaged
        self._activate(name)
        self._settle_active(name)
        self._end_if_done(name)
        return "rebuilt"

    def _place(self, job: Job, again: set[int]) -> None:
        """Each task is in one place: leases stay as far as what they hold may run."""
        job.ready = {t for t in job.tasks if t not in job.finished and job.wait(t) == 0}
        job.alone |= again
        for lease in job.leases.values():
            job.alone.update(t for t in lease.tasks if t not in job.ready)
            lease.tasks = [t for t in lease.tasks if t in job.ready]
        held = {t for lease in job.leases.values() for t in lease.tasks}
        job.delayed = {t: at for t, at in job.delayed.items() if t in job.ready}
        job.ready -= {*held, *job.delayed}
        job.alone -= job.finished
        job.since = {}
        job.list_sets(self.now)
