"""The queue as a specification: what each script answers and leaves behind, in plain Python. No I/O.

Written from the rules of the engine and the headers of the scripts, slow and simple. Where the
scripts count, the model looks: a counter is what the graph and the finished tasks say, so there is
nothing here that could be patched wrongly. It knows jobs without restrictions, values inside the
call, failures without a pause; the simulator goes further.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

__all__ = ["Job", "Lease", "Queue", "Slot"]

#: What step answers: status, refused tasks, job, tasks of the lease, whether they run alone.
Answer = tuple[str, list[int], str, list[int], bool]
#: Priorities weigh more than how often a job was served.
PRIORITY = 2**40
#: The most tasks of one lease.
MOST = 1000


@dataclass
class Lease:
    """What a slot holds under its call `seq`, and what was given back of it."""

    seq: int
    tasks: list[int]
    given: list[int] = field(default_factory=list)


@dataclass
class Job:
    """One job.

    Attributes
    ----------
    blocks : set of int
        The blocks that are there; each is one more input of its tasks.
    values : set of int
        Finished tasks whose value is kept, since somebody needs it.
    log : list of list of int
        Finished outputs, in the order in which they finished; `acked` entries have arrived.
    alone : set of int
        Tasks that may have run before.
    """

    inputs: tuple[tuple[int, ...], ...]
    outputs: frozenset[int]
    block: int
    chunk: int = 0
    priority: int = 0
    retries: int = 0
    allowed: int = 3
    detached: bool = False
    state: str = "running"
    sealed: bool = False
    error: tuple[str, int] = ("", -1)
    blocks: set[int] = field(default_factory=set)
    finished: set[int] = field(default_factory=set)
    values: set[int] = field(default_factory=set)
    ready: set[int] = field(default_factory=set)
    leases: dict[str, Lease] = field(default_factory=dict)
    alone: set[int] = field(default_factory=set)
    tries: dict[int, int] = field(default_factory=dict)
    deaths: dict[int, int] = field(default_factory=dict)
    log: list[list[int]] = field(default_factory=list)
    acked: int = 0

    @property
    def tasks(self) -> range:
        """All tasks."""
        return range(len(self.inputs))

    def wait(self, task: int) -> int:
        """How much a task waits for: unfinished inputs, and its block."""
        missing = task // self.block not in self.blocks
        return sum(i not in self.finished for i in self.inputs[task]) + missing

    def consumers(self, task: int) -> int:
        """How often a value is still to be used."""
        delivered = {t for entry in self.log[: self.acked] for t in entry}
        users = sum(task in self.inputs[u] for u in self.tasks if u not in self.finished)
        return users + (task in self.outputs and task not in delivered)

    def free(self) -> None:
        """Drop values that nobody needs."""
        self.values = {t for t in self.values if self.consumers(t) > 0}

    def end(self, state: str, error: tuple[str, int] = ("", -1)) -> None:
        """Give the job its last state."""
        self.state, self.error = state, error


@dataclass
class Slot:
    """A registered slot: its worker, its last call and the answer, and the job of its lease."""

    worker: str
    seq: int
    answer: Answer = ("stale", [], "", [], False)
    job: str = ""


class Queue:
    """All jobs and slots."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.slots: dict[str, Slot] = {}
        #: Jobs with ready tasks, by the order in which they are served.
        self.active: dict[str, int] = {}
        self.serves = 0

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
        if len(job.blocks) < -(-len(job.inputs) // job.block):
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
        return self.cancel(name) if job is None or job.detached else "kept"

    def sweep(self, name: str) -> int:
        """An ended job is removed."""
        job = self.jobs.get(name)
        if job is not None and job.state == "running":
            return -1
        self.jobs.pop(name, None)
        return 1

    # -- readers -----------------------------------------------------------------------------

    def gather(
        self, name: str, cursor: int, limit: int
    ) -> tuple[str, tuple[str, int], int, int, list[int], int]:
        """Answer state, error, finished, the next cursor, outputs, and what is wanted of the client."""
        job = self.jobs[name]
        if cursor > job.acked and not job.detached:
            job.acked = cursor
            job.free()
        outputs: list[int] = []
        while cursor < len(job.log) and len(outputs) < limit:
            outputs += job.log[cursor]
            cursor += 1
        wanted = 2 if job.state == "running" and not job.sealed else 0
        return job.state, job.error, len(job.finished), cursor, outputs, wanted

    def report_missing(self, name: str, task: int, needed: int) -> str:
        """Answer a question about an input that is there, or that needs to be there no more."""
        job = self.jobs.get(name)
        if job is None or (job.state != "running" and not (job.state == "done" and task < 0)):
            return "finished"
        if task in job.finished:
            return "finished"
        assert needed in job.values, "the model knows no lost values"
        return "there"

    # -- slots -------------------------------------------------------------------------------

    def register(self, slot: str, worker: str, seq: int) -> None:
        """A slot is there; one that was is not changed."""
        self.slots.setdefault(slot, Slot(worker, seq))

    def unregister(self, slot: str, seq: int, begun: int, position: int, kind: str) -> None:
        """A slot is gone; the task that was running is charged."""
        held = self.slots.get(slot)
        if held is None:
            return
        job = self.jobs.get(held.job)
        known, retry = held.seq == seq, False
        lease = job.leases.get(slot) if job else None
        given = lease.given if lease else []
        charged = bool(job and job.state == "running" and known and kind and begun >= 0)
        charged = charged and job is not None and begun not in job.finished and begun not in given
        if charged and job is not None:
            job.alone.add(begun) if kind == "died" else None
            if kind == "timeout":
                retry = self._count_try(job, begun)
        self._leave(slot, lambda i, _: known and i <= position)
        if charged and job is not None and kind == "timeout" and not retry:
            self._end(held.job, "failed", ("timeout", begun))
        if charged and job is not None and kind == "died":
            job.deaths[begun] = job.deaths.get(begun, 0) + 1
            if job.deaths[begun] >= job.allowed:
                self._end(held.job, "failed", ("died", begun))

    def lose(self, worker: str) -> None:
        """A worker is gone, and nobody knows what its slots had begun."""
        for slot in [s for s, held in self.slots.items() if held.worker == worker]:
            self._leave(slot, lambda *_: True)

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
        rest = lease.tasks[position + 1 :]
        if not rest:
            return "given" if lease.given else "over"
        if not somebody_idle:
            return "nobody"
        lease.tasks, lease.given = lease.tasks[: position + 1], lease.given + rest
        self._make_ready(held.job, rest)
        return "given"

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
