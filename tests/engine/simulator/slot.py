"""A slot as a generator: it steps, loads inputs, runs its lease by the package's own code, steps again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dask_redisq.batch import Batch, Published
from dask_redisq.cache import ValueCache
from dask_redisq.codec import loads, pack, unpack
from dask_redisq.errors import ServerFull
from dask_redisq.lease import Lease, LeaseRun
from dask_redisq.page import Cursor, Limit
from dask_redisq.rebuild import try_rebuild
from dask_redisq.record import read_record
from simulator.actors import Actor, Call, Command, Killed, Life, Wait, in_thread
from simulator.jobs import PYTHON, Job

if TYPE_CHECKING:
    from simulator.supervisor import Supervisor
    from simulator.world import World

__all__ = ["RECHECK", "UNSEEN", "Boom", "Slot"]

#: As in the package, in ms.
RECHECK, UNSEEN, FULL_WAIT = 5000, 600_000, 10_000
#: Between two calls while a job is rebuilt, the server is full, or a constant is gone: fewer than in
#: the package, since each of them costs a world time.
FROZEN, FULL_PAUSE, GONE = 1000, 2000, 20_000

#: Pages without a lease, and without a limit.
NOTHING, UNLIMITED = Cursor(-1, -1, 0, 0, 0, 0, b""), Limit(0, 0, -1)


class Boom(Exception):
    """What a task raises."""


@dataclass
class Page:
    """What a supervisor reads of its slot."""

    cursor: Cursor = NOTHING
    #: Of the running task, if it has one.
    limit: Limit = UNLIMITED
    answered: int = 0
    #: The job, up to which of its leases, and the lease, of which no further task begins.
    stop_job: str = ""
    stop_seq: int = 0
    given: int = 0

    def stopped(self, job: str, seq: int) -> bool:
        """Tell whether a lease was cancelled: a job that runs again gives others."""
        return self.stop_job == job and seq <= self.stop_seq


class Whim:
    """A pace by whim: in a world no task takes time, so what is short is chosen."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.budget = 1e9

    def know(self, kind: str) -> bool:
        """Tell whether the lease goes on to its next task."""
        return not self.slot.world.choices.chance(0.1)

    def short(self, kind: str) -> bool:
        """Tell whether a task may follow where others could."""
        return self.slot.world.greedy or self.slot.world.choices.chance(0.5)

    def ran(self, kind: str, seconds: float) -> None:
        """Nothing is learned."""

    def leased(self, job: str, tasks: int, seconds: float, edges: int) -> None:
        """Nothing is learned."""

    def surprised(self) -> None:
        """Nothing is learned."""


class Run(LeaseRun):
    """A lease's run that stores some values apart, however small."""

    def _publish(self, task: int) -> Published:
        published = super()._publish(task)
        world: World = self.pace.slot.world  # type: ignore[attr-defined]
        ordered = world.jobs[self.lease.job].settings["ordered"]
        apart = world.choices.chance(0.05 if ordered else 0.35)  # what is near goes first
        return published._replace(inline=not apart)


class Slot(Actor):
    """A slot's process.

    Attributes
    ----------
    page : Page
        What its supervisor reads.
    stopping : bool
        It ends after the lease in hand.
    """

    def __init__(self, world: World, worker: Supervisor) -> None:
        self.slot = world.new_id(8)
        self.worker = worker
        self.tags = (PYTHON, worker.name, *worker.tags)
        #: What its task code set.
        self.tag = ""
        self.page = Page()
        self.cache = ValueCache()
        #: Constants that it has, by job and digest.
        self._constants: set[tuple[str, str]] = set()
        self.seq = 0
        self.stopping = False
        #: Its task computes on its own queue, and waits for this client.
        self.waits_for: Actor | None = None
        #: How it ended, once it has: died, timeout, or nothing to charge.
        self.kind = ""
        #: How many tasks begin before one crashes; -1: none does.
        self._die_in = -1
        super().__init__(world, f"slot {self.slot[:4]}")

    def live(self) -> Life[None]:
        """Step, work, step again."""
        try:
            yield from self._serve()
        except Killed:
            self.ended_by("died")

    def _serve(self) -> Life[None]:
        job, epoch, batch, failure = "", "", Batch(), b""
        while True:
            lease, until, told = yield from self._step(job, epoch, batch, failure)
            job, epoch, batch, failure = "", "", Batch(), b""
            if lease is not None:
                job, epoch = lease.job, lease.epoch
                batch, failure = yield from self._work(lease)
            elif self.stopping:
                return
            else:
                yield Wait(until, self.world.server.keys("wake", self.slot), told)

    def stop(self) -> None:
        """End after the lease in hand."""
        if not self.stopping:
            self.stopping = True
            self.nudge()

    def ended(self) -> None:
        """Its supervisor sees at once that it ended."""
        self.worker.nudge()

    def die(self, kind: str) -> None:
        """End now: it crashed (died), its task ran too long (timeout), or it was killed ('')."""
        self.ended_by(kind)
        self.kill()
        self.ended()

    def ended_by(self, kind: str) -> None:
        """Note how it ended; whom that is charged to is told by its page."""
        self.kind = kind

    # -- one call ----------------------------------------------------------------------

    def _step(
        self, job: str, epoch: str, batch: Batch, failure: bytes
    ) -> Life[tuple[Lease | None, int, bool]]:
        """Report and lease; return the lease, or until when to wait and whether that was told."""
        wishes: list[Any] = []
        while True:
            status, refused, leased, retry = yield from self._call(
                job, epoch, batch, failure, wishes
            )
            self.page.answered = self.seq
            self.page.cursor = NOTHING
            if status != b"stale":
                self._keep(batch, refused)
            if status != b"wish":
                break
            wishes += [leased, self._wish(self.world.jobs[leased.decode()])]
            job, epoch, batch, failure = "", "", Batch(), b""
        world = self.world
        if not leased:
            gone = status == b"unregistered"
            most = 500 if gone else RECHECK
            return None, world.server.now + min(most, retry or most), bool(retry) or gone
        name, its_epoch, chunk, block, alone, tasks = leased
        return (
            Lease(name.decode(), its_epoch.decode(), chunk, block, bool(alone), tasks, self.seq),
            0,
            False,
        )

    def _wish(self, job: Job) -> list[int] | bool:
        """Return what a policy may answer: tasks that are ready, or are not, or not there; twice."""
        choices = self.world.choices
        if choices.chance(0.05):
            return False  # it did not end
        return [choices.below(len(job.graph) + 1) for _ in range(choices.below(5))]

    def _call(
        self, job: str, epoch: str, batch: Batch, failure: bytes, wishes: list[Any]
    ) -> Life[tuple[bytes, Any, Any, int]]:
        world = self.world
        self.seq += 1
        more = not self.stopping
        want, floor = world.choices.pick([(1000, 1000), (1000, 1), (2, 2), (1, 1)])
        args = {
            "slot": self.slot, "seq": self.seq, "job": job, "epoch": epoch,
            "batch": batch.pack() if job else b"", "failure": failure,
            "known": world.some_job(), "want": want if more else 0, "floor": floor, "rest": int(more),
            "others": b"", "tag": self.tag, "wishes": pack(wishes) if wishes else b"",
        }  # fmt: skip
        if world.off == "R8":
            self._keep(batch, ())
        while True:
            answer = yield Call("step", args)
            status, refused, leased, retry = unpack(answer)
            if status != b"frozen":
                break
            yield Wait(world.server.now + FROZEN)
        return status, refused, leased, retry

    def _keep(self, batch: Batch, refused: Any) -> None:
        for task, value, data, *_ in batch.published:
            if task not in refused:
                self.cache.put(task, value, len(data))

    # -- one lease ---------------------------------------------------------------------

    def _work(self, lease: Lease) -> Life[tuple[Batch, bytes]]:
        """Run a lease; return what to report of it."""
        world, page = self.world, self.page
        job = world.jobs[lease.job]
        page.cursor = Cursor(
            -1, -1, lease.seq, world.server.now, 0, len(lease.tasks), lease.job.encode()
        )
        self.cache.turn_to(lease.job, lease.epoch if world.off != "R13" else "")
        if not (yield from self._load_constants(job, lease)):
            return Batch(), b""
        values, tasks = yield from self._load_inputs(job, lease)
        if not tasks:
            return Batch(), b""
        if world.chance(0.25):
            yield from self._take_long(lease, tasks[0])
        elif world.nests and world.chance(0.5 if "computes" in world.often else 0.05):
            yield from self._compute(lease, tasks[0])
        whim: Any = Whim(self)
        run = Run(
            lease._replace(tasks=tasks, alone=lease.alone and world.off != "R3"), job.blocks, values,
            whim, frozenset({*self.tags, self.tag}), lambda: 0.0, self._begin, self._limit,
            lambda: not (self.stopping or page.stopped(lease.job, lease.seq) or page.given == lease.seq),
            lambda _: 10**9,
        )  # fmt: skip
        if world.chance(0.1):
            self.tag = world.choices.pick(["gpu", "lab", ""])
        self._die_in = self.world.choices.below(3) if self.world.chance(0.04) else -1
        run.run()
        batch, failure = run.report(), b""
        self._begin(-1, len(lease.tasks) - 1)
        lost = yield from self._store_apart(lease, batch)
        if lost is not None and self.stopping:
            return Batch(), b""
        if batch.failed is not None:
            job.tries[batch.failed[0]] += 1
            failure = pack([batch.failed[0], "raised", b"boom", -1])
        if lost is not None and not failure:
            job.tries[lost] += 1
            failure = pack([lost, "raised", b"full", -1])
        return batch, failure

    def _begin(self, task: int, position: int) -> None:
        self.page.cursor = self.page.cursor._replace(begun=task, position=position)
        if self._die_in == 0 and task >= 0:
            raise Killed
        self._die_in -= 1

    def _limit(self, task: int, most: float, retries: int) -> None:
        self.page.limit = Limit(self.world.server.now, round(most * 1000), retries)

    def _take_long(self, lease: Lease, task: int) -> Life[None]:
        """The first task takes a while; others act, and this process may end meanwhile."""
        job = self.world.jobs[lease.job]
        self._limit(task, job.settings["timeout"], -1)
        self._begin(task, lease.tasks.index(task))
        yield Wait(self.world.server.now + self.world.choices.pick([300, 3000, 20_000]))
        self.page.limit = UNLIMITED

    def _compute(self, lease: Lease, task: int) -> Life[None]:
        """The first task computes on its own queue; another slot stands in for this one meanwhile."""
        self._begin(task, lease.tasks.index(task))
        client = self.waits_for = self.world.compute(self, self.world.jobs[lease.job])
        self.worker.nudge()
        try:
            while not client.over:
                yield Wait(self.world.server.now + RECHECK)
        finally:  # it is one process with its client
            if not client.over:
                client.kill()
                client.job.cancelled = True
            self.waits_for = None
            self.worker.nudge()

    def _load_constants(self, job: Job, lease: Lease) -> Life[bool]:
        """Read what the blocks of a lease use; false if it is not there, since the job has ended."""
        for number in sorted({task // lease.block for task in lease.tasks}):
            for digest in job.constants(number):
                if (job.id, digest) not in self._constants:
                    name = self.world.server.keys("const", job.id, digest)
                    if (yield Command(("GET", name))) is None:
                        self.world.judge.constant_gone(job, digest)
                        yield from self._missed(job, name)
                        return False
                    self._constants.add((job.id, digest))
        return True

    def _missed(self, job: Job, name: str) -> Life[None]:
        """Have a job given up that nobody can run; if it is not all there it may yet be sent."""
        keys = self.world.server.keys
        if not (
            yield from in_thread(
                self, lambda link: try_rebuild(link, keys, job.id, ("EXISTS", name))
            )
        ):
            yield Wait(self.world.server.now + GONE)

    def _load_inputs(self, job: Job, lease: Lease) -> Life[tuple[dict[int, int], list[int]]]:
        """Return the inputs, and the tasks whose inputs are all there; the others are questions."""
        needs = {t: job.graph.inputs[t] for t in lease.tasks}
        wanted = list(dict.fromkeys(i for inputs in needs.values() for i in inputs))
        values = self.cache.found(wanted)
        missing = [t for t in wanted if t not in values]
        if missing:
            keys = self.world.server.keys
            records = yield Command(("HMGET", keys("values", job.id), *missing))
            for task, record in zip(missing, records, strict=True):
                data = yield from fetch(self.world, job.id, task, record)
                if data is not None:
                    values[task] = self.world.judge.value(job, task, loads(data))
                    self.cache.put(task, values[task], len(data))
        tasks = []
        for task, inputs in needs.items():
            lost = [i for i in inputs if i not in values]
            if not lost:
                tasks.append(task)
            elif self.world.off != "R10":
                yield Call("report_missing", {"job": job.id, "task": task, "input": lost[0]})
        return values, tasks

    def _store_apart(self, lease: Lease, batch: Batch) -> Life[int | None]:
        """Store large values; return the task of one that found no room for long."""
        deadline = self.world.server.now + FULL_WAIT
        for i, published in enumerate(batch.published):
            if published.inline:
                continue
            name = self.world.value_name(lease.job, published.task, f"{self.slot}{lease.seq:08x}")
            while True:
                try:
                    life = ("PX", UNSEEN) if self.world.off != "R7 expiry" else ()
                    yield Command(("SET", name, published.data, *life))
                    break
                except ServerFull:
                    if self.world.server.now > deadline or self.stopping:
                        return batch.published[i].task
                yield Wait(self.world.server.now + FULL_PAUSE)
        return None


def fetch(world: World, job: str, task: int, record: bytes | None) -> Life[bytes | None]:
    """Return the pickle that a record of `values` stands for; None if it is gone."""
    if not record:
        return None
    data, attempt = read_record(record)
    if data is None:
        data = yield Command(("GET", world.server.keys("value", job, task, attempt)))
    return data
