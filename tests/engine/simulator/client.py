"""Clients as generators: they submit, gather, submit again; readers attach to a detached job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dask_redisq.codec import loads, unpack
from dask_redisq.errors import ServerFull
from dask_redisq.rebuild import rebuild
from dask_redisq.verdict import is_dropped
from simulator.actors import Actor, Call, Command, Life, Wait, in_thread
from simulator.jobs import LEASE, Job
from simulator.slot import fetch
from simulator.supervisor import Look

if TYPE_CHECKING:
    from simulator.world import World

__all__ = ["Client", "Reader"]

UPLOAD = 2
#: As in lua/lib/tomb.lua, in ms.
TOMB_LIFE = 600_000
#: What a constant lives before its block comes, as in the package, in ms.
STAGED = 600_000
#: Between two calls while somebody else rebuilds the job, in ms; more than in the package, as for slots.
BUSY = 500


class Dropped(Exception):
    """The job is gone, though nobody wanted that."""


class Ended(Exception):
    """The job ended without its answer, and the world found that right."""


class _Follower(Actor):
    """Who gathers the outputs of a job."""

    def __init__(self, world: World, job: Job, name: str) -> None:
        self.job = job
        #: The user's task -> token.
        self.received: dict[int, int] = {}
        self.look: Look | None = None
        self.entered = False
        super().__init__(world, name)

    def gather(self) -> Life[None]:
        """Get all outputs.

        Raises
        ------
        Dropped, Ended
            If the job ended without them.
        """
        self.look = self.look or Look(self)
        world, job = self.world, self.job
        cursor, generation, renew_at = 0, b"", world.server.now + LEASE
        if self.entered:
            self.entered = False
            yield Wait(world.server.now + 1000, world.server.keys("news", job.id))
        while True:
            limit = world.choices.pick([1000, 2, 1])
            answer = yield Call(
                "gather", {"job": job.id, "cursor": cursor, "gen": generation, "limit": limit}
            )
            before = generation
            state, reason, _, further, generation, asked, *items = unpack(answer)
            if generation != before and not job.pure:
                self._begin_anew(items)
            if (yield from self._read(items)):
                cursor = further
            if asked == UPLOAD:
                yield from self.upload()
            elif asked:
                yield from self._repair()
            if asked and not job.pure:
                continue  # what is here may be of two histories: only the next answer tells
            if all(job.origin[t] in self.received for t in job.graph.outputs):
                return
            if state != b"running" and not items:
                self._judge(state.decode(), reason)
            if not job.detached and world.server.now >= renew_at:
                renew_at = world.server.now + LEASE
                yield from self._renew_values()
            if not items:
                yield Wait(world.server.now + 1000, world.server.keys("news", job.id))
                yield from self.look.run()

    def upload(self) -> Life[None]:
        """Only who submitted the job can send what the server forgot."""
        yield from ()
        self.world.judge.dropped(self.job)
        raise Dropped

    def _begin_anew(self, items: list[Any]) -> None:
        """Forget outputs that a rebuild had made again."""
        pairs = zip(items[::2], items[1::2], strict=True)
        kept = {self.job.origin[t] for t, record in pairs if not record}
        self.received = {t: token for t, token in self.received.items() if t in kept}

    def _judge(self, state: str, reason: bytes) -> None:
        job = self.job
        if not job.detached and is_dropped(state, reason):
            self.world.judge.dropped(job)
            raise Dropped
        self.world.judge.end(job, state, reason)
        raise Ended

    def _repair(self) -> Life[None]:
        # What one reader of a detached job has, another one may still want.
        job = self.job
        have = None
        if not job.detached:
            have = [t for t in job.graph.outputs if job.origin[t] in self.received]
        keys = self.world.server.keys
        if not (yield from in_thread(self, lambda link: rebuild(link, keys, job.id, have))):
            yield Wait(self.world.server.now + BUSY)

    def _renew_values(self) -> Life[None]:
        cursor: Any = "0"
        while True:
            cursor = yield Call("renew_values", {"job": self.job.id, "cursor": cursor})
            if cursor == b"0":
                return

    def _read(self, items: list[Any]) -> Life[bool]:
        whole, job = True, self.job
        for task, record in zip(items[::2], items[1::2], strict=True):
            if job.origin[task] in self.received:
                continue
            data = yield from fetch(self.world, job.id, task, record)
            if data is None:
                whole = False
                yield from self._report_lost(task)
            else:
                self.received[job.origin[task]] = self.world.judge.value(job, task, loads(data))
        return whole

    def _report_lost(self, task: int) -> Life[None]:
        job = self.job
        answer = yield Call("report_missing", {"job": job.id, "task": -1, "input": task})
        if answer == b"finished":
            args = {"job": job.id, "cursor": 0, "gen": b"", "limit": 0}
            state, reason, *_ = unpack((yield Call("gather", args)))
            if state not in (b"running", b"done"):
                self._judge(state.decode(), reason)


class Client(_Follower):
    """Who submits a job and waits for it, or leaves once it is sealed.

    Attributes
    ----------
    outcome : str
        '' until the end; then answer, ended (the job failed or was cancelled, and rightly so),
        refused (the server was full), detached.
    """

    outcome = ""
    #: The slot whose task waits for it.
    waiter: Actor | None = None
    _begun = 0
    #: It stored a constant, and its block comes next.
    staging = False

    def ended(self) -> None:
        """Who waits for it goes on."""
        if self.waiter is not None:
            self.waiter.nudge()

    def live(self) -> Life[None]:
        """Submit; get the answer, or leave the job to the server; again if it was dropped."""
        while True:
            try:
                yield from self._once()
                return
            except Dropped:
                self.world.dropped += 1
                if not self.job.pure:
                    self.received.clear()  # what goes again may not fit to it
                self.job = self.world.submit_again(self.job, self.received)
            except Ended:
                self.outcome = "ended"
                yield from self._abandon()
                return
            except ServerFull:
                self.outcome = "refused"
                yield from self._abandon()
                return

    def _once(self) -> Life[None]:
        world, job = self.world, self.job
        self._begun = world.server.now
        yield from self._create()
        if world.chance(0.1) and self._is_recent():
            # A connection was lost, and all that had no reply comes again.
            yield from self._send_blocks(world.choices.below(job.block_count + 1))
            yield from self._create()
        yield from self.upload()
        if job.detached and not self.received:
            self.outcome = "detached"
            world.attach(job)
            return
        if not job.detached:
            yield from self.gather()
        self.outcome = "answer"
        world.judge.answer(job, self.received)
        swept = yield from self._sweep()
        if not swept:  # edges are still to be counted, and nobody needs them now
            yield from self._abandon()

    def _is_recent(self) -> bool:
        """Whether a word of the job's end would still be there: who comes later submits it anew."""
        return self.world.server.now < self._begun + TOMB_LIFE

    def _create(self) -> Life[None]:
        job, keys = self.job, self.world.server.keys
        for name, data in job.stages():
            yield Command(("SET", keys(name, job.id), data, "PX", 600_000))
        impure = {"pure": 1} if self.world.off == "pure" else {}
        yield Call("create", job.create_args() | impure)

    def upload(self) -> Life[None]:
        """Send the blocks and seal."""
        job = self.job
        state = yield from self._send_blocks()
        if state == b"" and self.world.chance(0.5) and self._is_recent():
            yield from self._create()  # so was its connection lost: see `_once`
            yield from self._send_blocks()
        state = yield Call("seal", {"job": job.id, "wait": int(not job.detached)})
        if state == b"waiting":
            self.entered, state = True, b"running"
        if state == b"incomplete":  # the server came back older meanwhile
            self.world.judge.dropped(job)
            yield from self._abandon()
            raise Dropped
        if job.detached:
            self._judge_upload(state)

    def _send_blocks(self, most: int | None = None) -> Life[bytes]:
        job, state = self.job, b""
        #: Digests of the constants that were stored, and when.
        stored: dict[str, int] = {}
        for number in range(job.block_count if most is None else most):
            for digest in job.constants(number):
                # Who is stopped for as long as that brings it again; the package's client does not.
                while self.world.server.now >= stored.get(digest, -STAGED) + STAGED:
                    yield from self._store(digest, stored)
            state = yield Call("put_block", job.block_args(number))
            self.staging = False
            if state in (b"failed", b"cancelled", b""):
                break
        return state

    def _store(self, digest: str, stored: dict[str, int]) -> Life[None]:
        self.staging = True
        yield Call("announce", {"job": self.job.id, "digest": digest})
        name, begun = self.world.server.keys("const", self.job.id, digest), self.world.server.now
        yield Command(("SET", name, b"large", "PX", STAGED))
        stored[digest] = begun

    def _judge_upload(self, state: bytes) -> None:
        if state in (b"", b"cancelled"):
            if self.job.cancelled:
                raise Ended
            self.world.judge.dropped(self.job)
            raise Dropped

    def _sweep(self) -> Life[bool]:
        while True:
            answer = yield Call("sweep", {"job": self.job.id})
            if answer:
                return bool(answer > 0)

    def _abandon(self) -> Life[None]:
        self.job.cancelled = True
        yield Call("cancel", {"job": self.job.id, "reason": "its client gave up", "tomb": ""})
        yield from self._sweep()
        keys, job = self.world.server.keys, self.job
        for name, _ in job.stages():
            yield Command(("UNLINK", keys(name, job.id)))
        for digest in dict.fromkeys(d for n in range(job.block_count) for d in job.constants(n)):
            yield Command(("UNLINK", keys("const", job.id, digest)))


class Reader(_Follower):
    """Who attaches to a detached job; the last one forgets it."""

    outcome = ""

    def __init__(self, world: World, job: Job, name: str) -> None:
        #: The epochs in which it saw the job fail.
        self._failed_in: list[bytes] = []
        super().__init__(world, job, name)

    def live(self) -> Life[None]:
        """Attach, gather."""
        world, job = self.world, self.job
        keys = world.server.keys
        meta = yield Command(("HMGET", keys("job", job.id), "state", "ttl", "sealed"))
        try:
            if meta[0] is None or meta[2] is None:
                world.judge.dropped(job)
                self.outcome = "ended"
            else:
                yield from self._read_all()
                self.outcome = "answer"
                world.judge.answer(job, self.received)
        except (Dropped, Ended):
            self.outcome = "ended"
        if world.is_last_reader(self):
            job.cancelled = True
            yield Call("forget", {"job": job.id})
            while (yield Call("sweep", {"job": job.id})) == 0:
                pass

    def _read_all(self) -> Life[None]:
        """Gather, again if the server was too full to rebuild the job, or if it failed and is run again."""
        while True:
            try:
                yield from self.gather()
                return
            except ServerFull:
                yield Wait(self.world.server.now + 1000)
            except Ended:
                if self.job.reruns >= 3 or not self.world.choices.chance(0.7):
                    raise
                try:
                    if not (yield from self._run_again()):
                        raise
                except ServerFull:
                    yield Wait(self.world.server.now + 1000)  # gather tells whether it runs

    def _run_again(self) -> Life[bool]:
        """Let the job go on if it failed, as `Queue.rerun` does; tell whether it runs."""
        world, keys, job = self.world, self.world.server.keys, self.job
        fresh, state = world.new_id(8), b"late"
        while state == b"late":
            epoch = yield Command(("HGET", keys("job", job.id), "epoch"))
            if self._failed_in and world.choices.chance(0.5):
                epoch = self._failed_in.pop()  # it saw that before somebody ran the job again
            elif epoch:
                self._failed_in.append(epoch)
            state = yield Call("rerun", {"job": job.id, "epoch": epoch or b"", "fresh": fresh})
        if state == b"rerun":
            yield from self._renew_values()
            yield from self._repair()
        return state in (b"rerun", b"running", b"done")
