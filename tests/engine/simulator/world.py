"""A world: its actors take turns by choice, and things go wrong by choice; then all must end well."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Collection, Iterator
from typing import Any

from redis.exceptions import RedisError
from state import look

from dask_redisq.errors import ServerFull
from simulator.actors import Actor, Call, Command, Wait
from simulator.choices import Choices
from simulator.client import Client, Reader
from simulator.faults import FAULTS, LOSSY, advance_heard
from simulator.jobs import LEASE, RESOURCE, Job, Token, random_job
from simulator.judge import Judge
from simulator.operators import Suspender
from simulator.oracle import Oracle
from simulator.replays import replay
from simulator.server import Server
from simulator.slot import Boom, Slot
from simulator.supervisor import EXPIRY, INTERVAL, Supervisor
from simulator.tokens import look_for_tokens

__all__ = ["World"]

#: What some workers carry.
GPU = ("gpu", RESOURCE)
#: Turns for each job, and weights of a plain turn and a fault.
TURNS, PLAIN = 30, 150
#: How much more often the faults come that a world is to have often.
OFTEN = 6


class World:
    """Some jobs on a queue, and what happens to them.

    Parameters
    ----------
    server : Server
        Empty.
    choices : Choices
        Decide everything.
    every : int
        After how many calls the whole state is checked.
    off : str
        A rule of clients and slots that is switched off.
    often : collection of str
        Faults that come more often than others; if one loses values or history, such things
        happen in each world, not in every second one.
    jobs, tasks : int
        The most jobs, and the most tasks of one.

    Attributes
    ----------
    story : list of tuple
        Who called what, and the answer.
    faults : Counter of str
        What went wrong, and how often.
    """

    def __init__(
        self, server: Server, choices: Choices, *, every: int = 4, off: str = "", often: Collection[str] = (),
        jobs: int = 4, tasks: int = 12,
    ) -> None:  # fmt: skip
        self.server, self.choices, self.every = server, choices, every
        self.off, self.often = off, often
        self._ids = random.Random(1)
        self.calm = False
        self.calls = self.dropped = 0
        self.back_at = self.jumps = 0
        self.story: list[tuple[int, str, str, Any, Any]] = []
        self.faults: Counter[str] = Counter()
        self.tokens: list[Token] = []
        self.jobs: dict[str, Job] = {}
        self.slots: dict[str, Slot] = {}
        self.workers: dict[str, Supervisor] = {}
        self.actors: list[Actor] = []
        #: The last calls of each script.
        self.sent: dict[str, deque[Call]] = {}
        self.stored: list[tuple[str, str, int, str]] = []
        self.rolled_back = self.value_gone = False
        #: A slot that was judged dead was registered again by an old copy of a call.
        self.ghosts = False
        self.oracle = Oracle(self)
        self.judge = Judge(self)
        self.run_id = self.new_id(20)
        self._next = 0
        choices.begin(0)
        #: How many more jobs tasks may compute.
        self.nests = choices.pick([0, 3])
        self.lossy = choices.chance(0.5) or any(name in often for name, _, _ in LOSSY)
        self.greedy = not choices.chance(0.2)
        self._greet()
        for tags in (GPU, (), ())[: choices.pick([2, 3])]:
            self.start_worker(tags, choices.pick([1, 2]))
        self.clients: list[Client] = []
        for _ in range(1 + choices.below(jobs)):
            self._submit(tasks)

    def __repr__(self) -> str:
        return f"<World, {len(self.jobs)} jobs, {self.calls} calls, {sum(self.faults.values())} faults>"

    # -- the course of things --------------------------------------------------------------

    def run(self) -> None:
        """Take turns, with faults; then without; at last nothing may be left."""
        given = self.choices.given
        turns = TURNS * len(self.clients) if given is None else max(0, given - 2)
        for turn in range(turns):
            self.choices.begin(turn + 1)
            self.turn()
        self.choices.begin(-1)
        self.end_faults()
        self._until(lambda: all(self._ended(a) for a in self.actors), "no end")
        self._wait_for_leases()
        self.judge.runs()
        for worker in self.of(Supervisor):
            worker.stop()
        self._until(lambda: not self.actors, "workers stay")
        self.advance(EXPIRY)
        self.call(
            "a last look",
            Call("recover", {"who": "last", "interval": INTERVAL, "deadline": self.server.now}),
        )
        self.judge.check()
        self.judge.left()

    def close(self) -> None:
        """End all actors, and leave the server as it was found."""
        for actor in self.actors:
            actor.kill()
        self.server.full = False

    def turn(self) -> None:
        """Let somebody go on, or something go wrong."""
        kinds = FAULTS + LOSSY if self.lossy else FAULTS
        weights = [weight * (OFTEN if name in self.often else 1) for name, weight, _ in kinds]
        chosen = self.choices.weighted([PLAIN, *weights])
        if chosen:
            name, _, happen = kinds[chosen - 1]
            if happen(self):
                self.faults[name] += 1
                self._tell("", name, None, None)
        if not self.go_on(self.choices.below(len(self.actors) or 1)):
            self.pass_time()

    def go_on(self, first: int = 0) -> bool:
        """Let the next actor that can go on do so; false if none can."""
        self.actors = [a for a in self.actors if not a.over]
        begin = (self._next + first) % (len(self.actors) or 1)
        order = self.actors[begin:] + self.actors[:begin]
        for i, actor in enumerate(order):
            if actor.over or actor.frozen:
                continue
            if isinstance(actor.op, Wait) and actor.looked != self.calls:
                look_for_tokens(self, order[i:])
            if self.step(actor):
                self._next += first + i + 1
                return True
        return False

    def step(self, actor: Actor) -> bool:
        """Answer what an actor asks, and let it go on; false if it still waits."""
        op = actor.op
        if isinstance(op, Wait):
            token = None
            if op.wake and actor.looked != self.calls:
                actor.looked = self.calls
                token = self._send(actor, Command(("LPOP", op.wake)))
            if token is None and op.until > self.server.now:
                return False
            actor.resume(None)
            return True
        try:
            answer = self._send(actor, op)
        except (ServerFull, RedisError) as error:
            actor.fail(error)
        else:
            actor.resume(answer)
        return True

    def pass_time(self) -> None:
        """Nobody can go on: let it be as late as the first of them waits for."""
        waits = [a.op for a in self.actors if not a.frozen and isinstance(a.op, Wait)]
        until = min((w.until for w in waits), default=self.server.now + 1000)
        if self.calm:
            self.judge.sleepers()
        self.advance(max(1, until - self.server.now))

    def advance(self, ms: int, renewed: dict[str, int] | None = None) -> list[int]:
        """Let time pass, in which some keys are renewed; tell which of them are there."""
        found = self.server.advance(ms, renewed)
        if ms >= 60_000:
            self.jumps += 1
        return found

    def end_faults(self) -> None:
        """From now on all goes well; one look around heals tokens that were lost."""
        self.calm = True
        self.server.full = False
        for actor in self.actors:
            actor.frozen = False
        if not any(w.tags for w in self.of(Supervisor)):
            self.start_worker(GPU, 1)
        for actor in self.actors:
            if isinstance(actor, Slot | Supervisor | Suspender):
                actor.nudge()
        # A server that came back older may be suspended though somebody resumed it.
        self.actors.append(Suspender(self, only_resume=True))

    def _wait_for_leases(self) -> None:
        """Let the leases of clients that died run out, and what nobody forgot grow old."""
        for _ in range(6):
            if self._no_jobs():
                return
            advance_heard(self, LEASE)
            end = self.server.now + 8 * INTERVAL
            self._until(lambda end=end: self._no_jobs() or self.server.now >= end, "jobs stay")
        assert self._no_jobs(), f"jobs stay: {self.server.command('KEYS', '*')}"

    def _until(self, done: Any, what: str) -> None:
        """Let all go on until something holds, in a bounded number of calls and of time (P12)."""
        share = 300 + 60 * sum(len(job.graph) for job in self.jobs.values())
        calls, end = self.calls + share, self.server.now + 3 * LEASE + 3_600_000
        orphans = False
        while not done():
            if self.calls >= calls and not orphans and (orphans := self.judge.is_orphan_there()):
                advance_heard(self, LEASE)
                calls += share
            assert self.calls < calls, (
                f"{what}, which was bound to end by call {calls}: {self.actors}"
            )
            assert self.server.now < end, f"{what}, which was bound to end by now: {self.actors}"
            if not self.go_on() and self.actors:
                self.pass_time()

    def _ended(self, actor: Actor) -> bool:
        return actor.over or isinstance(actor, Slot | Supervisor)

    def _no_jobs(self) -> bool:
        return not self.server.command("EXISTS", self.server.keys("jobs"))

    # -- calls -----------------------------------------------------------------------------

    def _send(self, actor: Actor, op: Call | Command) -> Any:
        """Carry one question to the server and the answer back; a lost connection is made again."""
        if actor.unbroken_since is None:
            self._greet()
            actor.unbroken_since = self.server.now
            if isinstance(op, Call) and op.once:
                return None
        if isinstance(op, Command):
            return self.command(actor.name, op)
        return self.call(actor.name, op)

    def command(self, who: str, op: Command) -> Any:
        """Send a command of an actor."""
        answer = self.server.command(*op.words)
        if op.words[0] == "SET":
            self.judge.stored(op.words[1])
        if op.words[0] != "LPOP":
            self._tell(who, op.words[0], op.words[1:], answer)
        return answer

    def call(self, who: str, op: Call, *, late: bool = False) -> Any:
        """Call a script; look at the answer, and now and then at everything."""
        self.calls += 1
        script, args, _ = op
        if script == "sweep":
            self.jobs[args["job"]].swept = True
        seen = b""
        if self.calls % self.every == 0:
            answer, seen = self.server.call_and_look(script, args, look(self.judge.state))
        else:
            answer = self.server.call(script, args)
        self._tell(who, script, args, answer)
        self.oracle.note(script, args, answer, late=late)
        self.note_sent(op)
        if seen:
            replay(self, self.judge.check(seen), op)
        return answer

    def note_sent(self, op: Call) -> None:
        """Keep a call of which a copy may arrive later."""
        self.sent.setdefault(op.script, deque(maxlen=12)).append(op)

    def _tell(self, who: str, what: str, asked: Any, answer: Any) -> None:
        self.story.append((self.server.elapsed, who, what, asked, answer))

    def _greet(self) -> None:
        self.server.call("greet", {"run": self.run_id})

    # -- who is there ------------------------------------------------------------------------

    def of(self, kind: type[Any]) -> Iterator[Any]:
        """Yield the living actors of a kind."""
        return (a for a in list(self.actors) if isinstance(a, kind) and not a.over)

    def new_id(self, size: int) -> str:
        """Return a name that was not there."""
        return self._ids.randbytes(size).hex()

    def start_worker(self, tags: tuple[str, ...], slots: int) -> None:
        """Start a worker."""
        name = f"w{len(self.workers)}"
        worker = Supervisor(self, name, tags, slots)
        self.workers[name] = worker
        self.actors.append(worker)

    def _submit(self, tasks: int) -> None:
        job = random_job(
            self.choices, len(self.jobs), self.new_id(16), self.new_id(8), tasks, self.often
        )
        self._enter(job)
        client = Client(self, job, f"client {len(self.clients)}")
        self.clients.append(client)
        self.actors.append(client)

    def compute(self, slot: Slot, parent: Job) -> Client:
        """Let a task of a job submit one, and wait for it; return who waits."""
        self.nests -= 1
        ids = self.new_id(16), self.new_id(8)
        job = random_job(self.choices, len(self.jobs), *ids, 3, self.often, parent.id)
        self._enter(job)
        client = Client(self, job, f"a task in {slot.name}")
        client.waiter = slot
        self.clients.append(client)
        self.actors.append(client)
        return client

    def submit_again(self, job: Job, received: dict[int, int]) -> Job:
        """Return a job for what is missing of one that was dropped."""
        again = job.without(received, self.new_id(16), self.new_id(8))
        self._enter(again)
        return again

    def _enter(self, job: Job) -> None:
        job.make_blocks(self.make)
        job.doubtful = self.ghosts
        self.jobs[job.id] = job

    def attach(self, job: Job) -> None:
        """Let one or two readers follow a detached job."""
        for i in range(self.choices.pick([1, 2])):
            self.actors.append(Reader(self, job, f"reader {i}"))

    def is_last_reader(self, reader: Reader) -> bool:
        """Tell whether no other reader of its job is left."""
        others = [r for r in self.of(Reader) if r.job is reader.job and r is not reader]
        return not others

    def some_job(self) -> str:
        """Return the job of which a slot knows how long its tasks take: of that it gets several."""
        found = self.server.command("ZRANGE", self.server.keys("active"), 0, 0)
        if found and not self.choices.chance(0.3):
            return str(found[0].decode())  # the one that it gets, most likely
        return next(reversed(self.jobs), "")

    def value_name(self, job: str, task: int, attempt: str) -> str:
        """Return the key of a value that is stored apart."""
        if self.off == "R7 task":
            attempt = "0" * 24
        self.jobs[job].apart = True
        self.stored.append((self.server.keys("value", job, task, attempt), job, task, attempt))
        return self.stored[-1][0]

    def chance(self, share: float) -> bool:
        """Choose whether something goes wrong; nothing does at the end."""
        return not self.calm and self.choices.chance(share)

    def make(self, job: Job, task: int, inputs: tuple[int, ...]) -> int:
        """Run a task: make a token, or raise."""
        if self.chance(job.fragile):
            raise Boom
        job.runs += 1
        user_task = job.origin[task]
        made = dict(zip((job.origin[i] for i in job.graph.inputs[task]), inputs, strict=True))
        seen = tuple(made[i] if i in made else job.known[i] for i in job.whole.inputs[user_task])
        self.tokens.append(Token(job.family, user_task, seen))
        return len(self.tokens) - 1
