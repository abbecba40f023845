"""The whole queue of the model: what clients and supervisors call. No I/O."""

from __future__ import annotations

from collections.abc import Collection

from model.ready import Slot
from model.repair import Repairs

__all__ = ["Queue"]


class Queue(Repairs):
    """All jobs and slots."""

    # -- uploads and ends --------------------------------------------------------------------

    def put_block(self, name: str, number: int) -> str:
        """A block arrives; tasks that waited for it alone become ready."""
        job = self.jobs.get(name)
        if job is None or job.state != "running" or number in job.blocks:
            return job.state if job else ""
        waited = {t for t in job.tasks if job.wait(t) > 0}
        job.blocks.add(number)
        self._make_ready(name, [t for t in waited if job.wait(t) == 0])
        return job.state

    def seal(self, name: str) -> str:
        """The upload is complete."""
        job = self.jobs.get(name)
        if job is None:
            return ""
        if job.state == "failed":
            job.sealed = True
        if job.state != "running":
            return job.state
        if len(job.blocks) < len(job.numbers):
            return "incomplete"
        job.sealed = True
        self._end_if_done(name)
        return job.state

    def cancel(self, name: str) -> str:
        """Nothing of the job starts any more."""
        job = self.jobs.get(name)
        if job is None:
            return ""
        before = job.state
        if before == "running":
            self._end(name, "cancelled", ("cancelled", -1))
        return before

    def forget(self, name: str) -> str:
        """A detached job is given up."""
        job = self.jobs.get(name)
        if job is not None and not job.detached:
            return "kept"
        if job is not None:
            job.buried = True
        return self.cancel(name)

    def sweep(self, name: str) -> int:
        """An ended job is removed."""
        job = self.jobs.get(name)
        if job is not None and job.state == "running":
            return -1
        self.jobs.pop(name, None)
        return 1

    def suspend(self, turn: int, *, on: bool) -> str:
        """No further lease is given, or leases are given again; once for each `turn`."""
        if self.turns - turn == 1 and on == self.suspended:
            return "done"
        if turn != self.turns:
            return "late"
        self.turns, self.suspended = turn + 1, on
        return "done"

    # -- readers -----------------------------------------------------------------------------

    def gather(
        self, name: str, cursor: int, limit: int, generation: str
    ) -> tuple[str, tuple[str, int], int, int, list[int], int]:
        """Answer state, error, finished, the next cursor, outputs, and what is wanted of the client."""
        job = self.jobs[name]
        cursor = cursor if generation == job.generation else 0
        if job.state == "running" and job.frozen:
            return "running", ("", -1), len(job.finished), cursor, [], 1
        if cursor > job.acked and not job.detached:
            job.acked = cursor
            job.free()
        self._end_if_done(name)
        outputs: list[int] = []
        while cursor < len(job.log) and len(outputs) < limit:
            outputs += job.log[cursor]
            cursor += 1
        wanted = 1 if self._is_damaged(name) else 0
        wanted = 2 if job.state == "running" and not job.sealed else wanted
        return job.state, job.error, len(job.finished), cursor, outputs, wanted

    # -- slots -------------------------------------------------------------------------------

    def register(self, slot: str, worker: str, seq: int, tags: tuple[str, ...] = ()) -> None:
        """A slot is there; one that was is not changed."""
        self.slots.setdefault(slot, Slot(worker, seq, tags))

    def unregister(self, slot: str, seq: int, begun: int, position: int, kind: str) -> None:
        """A slot is gone; the task that was running is charged."""
        held = self.slots.get(slot)
        if held is None:
            return
        job = self.jobs.get(held.job)
        known, again, paused = held.seq == seq, False, set[int]()
        lease = job.leases.get(slot) if job else None
        charged = bool(job and job.state == "running" and known and kind and begun >= 0)
        if charged and job is not None:
            charged = begun not in {*job.finished, *(lease.given if lease else [])}
        if charged and job is not None:
            job.alone.add(begun) if kind == "died" else None
            again = kind == "timeout" and self._count_try(job, begun)
            if again and job.retry_delay > 0 and lease and begun in lease.tasks:
                paused = {begun}
        self._leave(slot, lambda i, _: known and i <= position, paused)
        for task in paused:
            self._postpone(held.job, task)
        if charged and job is not None and kind == "timeout" and not again:
            self._end(held.job, "failed", ("timeout", begun))
        if charged and job is not None and kind == "died":
            job.deaths[begun] = job.deaths.get(begun, 0) + 1
            if job.deaths[begun] >= job.allowed:
                self._end(held.job, "failed", ("died", begun))

    def pass_time(self, ms: int) -> None:
        """Time passes; nothing happens by that alone."""
        self.now += ms

    def lose(self, worker: str) -> None:
        """A worker is gone, and nobody knows what its slots had begun."""
        for slot in [s for s, held in self.slots.items() if held.worker == worker]:
            self._leave(slot, lambda *_: True)
        for name in [name for name, job in self.jobs.items() if job.state == "running"]:
            if not self._is_damaged(name):  # who looks for the dead does this, too
                self._release_due(name)
                self._end_if_done(name)

    def renew(self, worker: str, live: Collection[str]) -> str:
        """A worker beats, and tells which of its slots live."""
        for slot in [s for s, held in self.slots.items() if held.worker == worker]:
            if slot not in live:
                self._leave(slot, lambda *_: True)
        return "ok" if all(slot in self.slots for slot in live) else "unknown"

    def give_back(self, slot: str, seq: int, position: int, *, somebody_idle: bool) -> str:
        """What lies behind a long task goes to others."""
        held = self.slots.get(slot)
        job = self.jobs.get(held.job) if held else None
        lease = job.leases.get(slot) if job else None
        if held is None or job is None or lease is None:
            return "over"
        if held.seq != seq or job.state != "running":
            return "over"
        if job.frozen:
            return "nobody"
        rest = lease.tasks[position + 1 :]
        if not rest:
            return "given" if lease.given else "over"
        if not somebody_idle:
            return "nobody"
        lease.tasks, lease.given = lease.tasks[: position + 1], lease.given + rest
        self._make_ready(held.job, rest)
        return "given"
