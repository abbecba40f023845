"""What a step does: finish a lease, get the next. No I/O."""

from __future__ import annotations

from collections.abc import Iterable

from model.job import Job, Lease
from model.ready import MOST, Answer, Ready

__all__ = ["Steps"]


class Steps(Ready):
    """The calls of slots."""

    def step(
        self,
        slot: str,
        seq: int,
        name: str,
        components: Iterable[list[int]],
        failure: int | None = None,
        *,
        fits: bool = True,
        known: str = "",
        want: int = MOST,
        floor: int = 1,
    ) -> Answer:
        """Finish a lease, get the next.

        Parameters
        ----------
        components : iterable of list of int
            What was run, as tasks that are accepted together.
        failure : int, optional
            The task that raised.
        fits : bool, default True
            Whether the job's epoch is that of the lease.
        """
        held = self.slots.get(slot)
        if held is not None and seq == held.seq:
            return held.answer
        if held is not None and seq < held.seq:
            return "stale", [], "", [], False
        job = self.jobs.get(name)
        alive = job is not None and job.state == "running" and fits
        lease = job.leases.get(slot) if job is not None and held and held.job == name else None
        current = lease is not None and lease.seq == seq - 1
        accepted, refused = self._judge(job if alive else None, components)

        failed = again = False
        if failure is not None and job is not None and alive and lease is not None and current:
            may = not refused or failure in lease.tasks
            failed = failure not in job.finished and may and failure not in lease.given
            again = failed and self._count_try(job, failure)
        fresh = self._accept(name, accepted) if job is not None else []
        if held is not None and held.job:
            mine = held.job == name
            begun = {*refused, failure} if mine else set()
            self._end_lease(held.job, slot, lambda _, task: task in begun)
            held.job = ""
        if failed and not again and failure is not None:
            self._end(name, "failed", ("raised", failure))
        elif alive:
            self._end_if_done(name)
        alive = alive and job is not None and job.state == "running"
        if held is None:
            self._make_ready(name, fresh if alive else [])
            return "unregistered", refused, "", [], False
        chosen, tasks, alone = "", list[int](), False
        if alive and fresh:
            self._activate(name)
        if want > 0:
            chosen, tasks, alone, fresh = self._take(
                name, fresh if alive else [], known, want, floor
            )
        self._make_ready(name, fresh if alive else [])
        if chosen:
            self.jobs[chosen].leases[slot] = Lease(seq, tasks)
            held.job = chosen
            self._serve(chosen)
        held.seq, held.answer = seq, ("ok", refused, chosen, tasks, alone)
        return "ok", refused, chosen, tasks, alone

    # -- what a step is made of ----------------------------------------------------------------

    def _judge(
        self, job: Job | None, components: Iterable[list[int]]
    ) -> tuple[list[int], list[int]]:
        """A component is accepted whole, if none of its tasks is finished (rule 1)."""
        accepted: list[int] = []
        refused: list[int] = []
        for tasks in components:
            fits = job is not None and not any(t in job.finished or t in accepted for t in tasks)
            (accepted if fits else refused).extend(tasks)
        return accepted, refused

    def _accept(self, name: str, accepted: list[int]) -> list[int]:
        """Accepting moves tasks out of everywhere (rule 2); return what they made ready."""
        job = self.jobs[name]
        if not accepted:
            return []
        waited = {t for t in job.tasks if job.wait(t) > 0}
        job.finished.update(accepted)
        job.values.update(accepted)
        job.ready.difference_update(accepted)
        job.alone.difference_update(accepted)
        for lease in job.leases.values():
            lease.tasks = [t for t in lease.tasks if t not in job.finished]
        outputs = [t for t in accepted if t in job.outputs]
        if outputs:
            job.log.append(outputs)
        job.free()
        self._settle_active(name)
        return sorted(t for t in waited - job.finished if job.wait(t) == 0)

    def _count_try(self, job: Job, task: int) -> bool:
        """A failure; tell whether the task may run again."""
        count = job.tries.get(task, 0) + 1
        if count > job.retries:
            return False
        job.tries[task] = count
        job.alone.add(task)
        return True
