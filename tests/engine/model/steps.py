"""What a step does: finish a lease, get the next. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from model.job import Job, Lease
from model.ready import STALE, Answer, Call, Ready, Slot

__all__ = ["Steps"]


class Steps(Ready):
    """The calls of slots."""

    def step(self, call: Call) -> Answer:
        """Finish a lease, get the next."""
        held = self.slots.get(call.slot)
        if held is not None and call.seq == held.seq:
            return held.answer
        if held is not None and call.seq < held.seq:
            return STALE
        job = self.jobs.get(call.name)
        if (
            job
            and job.frozen
            and job.state == "running"
            and (call.components or call.failure is not None)
        ):
            return Answer("frozen")  # the same call again in a moment
        for name in [name for name, wishes in call.wishes.items() if wishes is False and held]:
            if name in self.jobs:
                self.jobs[name].asks = False  # a policy that does not end is asked no more
        refused, fresh = self._finish(call, held)
        if held is None:
            return Answer("unregistered", tuple(refused))
        held.seq, held.answer = (
            call.seq,
            self._next_lease(call, fresh)._replace(refused=tuple(refused)),
        )
        return held.answer

    def _finish(self, call: Call, held: Slot | None) -> tuple[list[int], list[int]]:
        """The lease before is over; return what was refused, and what became ready."""
        job, name = self.jobs.get(call.name), call.name
        lease = job.leases.get(call.slot) if job and held and held.job == name else None
        alive = job is not None and job.state == "running" and call.epoch == job.epoch
        accepted, refused = self._judge(job if alive else None, call.components)
        failed = self._failed(job, lease, call, accepted, refused) if alive else []
        again = job is not None and bool(failed) and self._count_try(job, failed[0])
        fresh = self._accept(name, accepted) if job is not None else []
        paused = {*failed} if again and job is not None and job.retry_delay > 0 else set[int]()
        if held is not None and held.job:
            begun = {*refused, call.failure} if held.job == name else set()
            self._end_lease(held.job, call.slot, lambda _, task: task in begun, paused)
            held.job = ""
        if failed and not again:
            self._end(name, "failed", ("raised", failed[0]))
        if job is None or not alive or job.state != "running":
            return refused, []
        for task in paused & {*fresh, *(lease.tasks if lease else [])}:
            self._postpone(name, task)  # one that waits for its block is ready with that
        fresh = [t for t in fresh if t not in paused]
        self._make_ready(name, fresh)
        self._end_if_done(name)
        return refused, fresh

    def _next_lease(self, call: Call, fresh: Collection[int]) -> Answer:
        """Something of what is ready, if the slot wants more."""
        answer = self._take(call, fresh) if call.want > 0 else Answer("ok")
        if answer.tasks:
            self.jobs[answer.job].leases[call.slot] = Lease(call.seq, [*answer.tasks])
            self.slots[call.slot].job = answer.job
            self._serve(answer.job)
        return answer

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

    def _failed(
        self,
        job: Job | None,
        lease: Lease | None,
        call: Call,
        accepted: list[int],
        refused: list[int],
    ) -> list[int]:
        """A late failure never counts: return the task that failed, if it is this slot's to tell."""
        task = call.failure
        if job is None or lease is None or lease.seq != call.seq - 1 or task is None:
            return []
        if task in {*job.finished, *accepted, *lease.given}:
            return []
        return [task] if not refused or task in lease.tasks else []

    def _accept(self, name: str, accepted: list[int]) -> list[int]:
        """Accepting moves tasks out of everywhere (rule 2); return what they made ready."""
        job = self.jobs[name]
        if not accepted:
            return []
        waited = {t for t in job.tasks if job.wait(t) > 0}
        job.finished.update(accepted)
        job.values.update(accepted)
        job.ready.difference_update(accepted)
        job.list_sets(self.now)
        job.alone.difference_update(accepted)
        job.parked.difference_update(accepted)
        job.delayed = {t: at for t, at in job.delayed.items() if t not in job.finished}
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
