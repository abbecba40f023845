"""A small world around the scripts: slots that run tasks, clients that wait, and whatever goes wrong.

Results are not deterministic: each run of a task gives a fresh token that remembers the tokens of
its inputs. So the outputs tell whether one answer saw two runs of a task.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from driver import LONG, PYTHON, Answer, Engine, Slot
from invariants import JobView

from dask_redisq.codec import pack, unpack
from dask_redisq.keys import Keys
from dask_redisq.lease import Lease

__all__ = ["World"]


class Token(NamedTuple):
    """One run of a task, and the runs of its inputs that it saw."""

    task: int
    inputs: tuple[int, ...]


@dataclass
class Process:
    """A slot's process: what it knows, which may be wrong by now."""

    slot: Slot
    #: The lease in its hand, until the next one is answered.
    hand: Lease | None = None
    made: dict[int, int] = field(default_factory=dict)
    position: int = -1
    #: A step that was sent, or will be; its answer has not come.
    pending: dict[str, Any] | None = None
    #: Accepted tokens that it keeps, by job and task.
    cache: dict[tuple[str, int], int] = field(default_factory=dict)
    #: Blocks until a token comes.
    idle: bool = False
    #: It was told to look again after a while.
    told: bool = False
    #: What lies behind this place of the lease was given back, as its supervisor told it.
    end: int | None = None

    def __repr__(self) -> str:
        return (
            f"<Process {self.slot.id} of {self.slot.worker}, holds {self.hand and self.hand.tasks}>"
        )


class Client:
    """The client of one job."""

    def __init__(self, world: World, job: str, chunk: int) -> None:
        self.world, self.job, self.chunk = world, job, chunk
        self.graph = world.engine.graphs[job]
        self.blocks = -(-len(self.graph) // self.graph.block)
        self.sent = 0
        self.sealed = False
        self.cursor = 0
        self.generation = b""
        self.outputs: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"<Client of {self.job}, {len(self.outputs)} of {len(self.graph.outputs)} outputs>"

    @property
    def detached(self) -> bool:
        """Whether others may read the job, too."""
        return bool(self.world.engine.state().mapping("job", self.job)["ttl"] != b"0")

    @property
    def done(self) -> bool:
        """Whether all outputs have arrived."""
        return self.sealed and len(self.outputs) == len(self.graph.outputs)

    def act(self, reply_lost: bool = False) -> None:
        """Go on with the upload, or gather; the reply may be lost."""
        engine = self.world.engine
        if self.sent < self.blocks:
            engine.put_block(self.job, self.sent)
            self.sent += not reply_lost
        elif not self.sealed:
            answer = engine.seal(self.job)
            self.sealed = not reply_lost and answer != b"incomplete"
            self.sent = 0 if answer == b"incomplete" else self.sent
        else:
            self._gather(reply_lost)

    def _gather(self, reply_lost: bool) -> None:
        engine = self.world.engine
        found = engine.gather(self.job, self.cursor, generation=self.generation)
        assert found.state in {"running", "done"}, f"the job ended: {found}"
        if reply_lost:
            return
        whole = True
        for task, record in found.values.items():
            if task not in self.outputs:
                token = self.world.read_record(self.job, task, record)
                if token is None:
                    engine.call("report_missing", job=self.job, task=-1, input=task)
                    whole = False
                else:
                    self.outputs[task] = token
        self.generation = found.generation
        self.cursor = found.cursor if whole else self.cursor
        if found.wanted == 2:
            self.sent, self.sealed = 0, False
        elif found.wanted:
            with contextlib.suppress(Died):
                # What one reader of a detached job has, another one may still want.
                engine.rebuild(self.job, () if self.detached else self.outputs)


class Interrupted:
    """A link for rebuilds, between whose calls other things happen; the rebuilder may die, too."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.inside = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world.engine.link, name)

    def call(self, script: str, keys: Keys, **args: object) -> Any:
        """Let something happen, then call."""
        if not self.inside and self.world.faults:
            self.inside = True
            try:
                while self.world.rng.random() < 0.5:
                    self.world.happen()
            finally:
                self.inside = False
            if self.world.rng.random() < 0.1:
                raise Died
        return self.world.engine.link.call(script, keys, **args)


class Died(Exception):
    """The rebuilder is gone."""


class World:
    """Some random jobs on a queue with three workers of one slot each.

    Parameters
    ----------
    engine : Engine
        Where the scripts are called.
    seed : int
        Decides everything.
    lossy : bool, default False
        Let values vanish, and the server come back older.
    rash : bool, default False
        Let slots keep their results before the verdict, which breaks rule 8.
    """

    def __init__(
        self, engine: Engine, seed: int, *, lossy: bool = False, rash: bool = False
    ) -> None:
        self.engine = engine
        self.lossy = lossy
        self.rash = rash
        self.saved: Any = None
        self.faults = True
        engine.rebuilder = Interrupted(self)
        self.rng = random.Random(seed)
        self.away = random.Random(seed)  # of its own, so that all else stays as it was
        self.tokens: list[Token] = []
        self.alone: dict[str, set[int]] = {}
        self.old_calls: list[dict[str, Any]] = []
        self.greedy = self.rng.random() < 0.8
        engine.call("greet", run="first")
        self.failing = 0.1
        self.processes = [self._start(f"w{i}") for i in range(3)]
        self.clients = [self._submit() for _ in range(self.rng.choice([1, 1, 2]))]

    # -- the story ----------------------------------------------------------------------

    def run(self, events: int) -> None:
        """Let `events` things happen, good and bad, then only good ones until all is delivered."""
        for _ in range(events):
            self.happen()
        self.end_faults()
        tasks = sum(len(c.graph) for c in self.clients)
        for _ in range(40 + 8 * tasks):
            if all(c.done for c in self.clients):
                break
            self.turn()
        unfinished = [c for c in self.clients if not c.done]
        assert not unfinished, f"no end: {unfinished}, {self.engine.state().content}"
        for client in self.clients:
            self._check_answer(client)
            client.act()
            self._check_late_reader(client)
            self.engine.remove(client.job)
        left = [
            name
            for name in self.engine.state().content
            if ":job:" in name and ":value:" not in name and ":built:" not in name
        ]
        assert not left, f"keys are left: {left}"

    def happen(self) -> None:
        """Let one random thing happen."""
        if self.away.random() < 0.05:
            self._client_away(self.away.choice(self.clients))
        rng = self.rng
        process = rng.choice(self.processes)
        kinds: list[tuple[int, Callable[[], object]]] = [
            (40, lambda: self.act(process, recheck=True)),
            (12, lambda: rng.choice(self.clients).act(reply_lost=rng.random() < 0.3)),
            (6, lambda: self._reply_lost(process)),
            (6, lambda: self._value_expires(process)),
            (4, self._old_call),
            (4, lambda: self._presumed_dead(process)),
            (3, lambda: self._dies(process)),
            (2, lambda: self._vanishes(process)),
            (4, lambda: self._beats(process)),
            (6, self._given_back),
            (3, self._time_passes),
        ]
        if self.lossy:
            kinds += [(4, self._value_lost), (4, self._save), (4, self._roll_back)]
        weights, actions = zip(*kinds, strict=True)
        rng.choices(actions, weights)[0]()

    def end_faults(self) -> None:
        """From now on all goes well; one slow re-check heals tokens that were lost."""
        self.faults = False
        for client in self.clients:  # who held a job still has died long ago
            if self.engine.link.command("HEXISTS", self.engine.keys("job", client.job), "frozen"):
                self.engine.link.command(
                    "HSET", self.engine.keys("job", client.job), "frozen_at", 0
                )
        self.failing = 0
        for process in self.processes:
            self._beats(process)
        for process in self.processes:
            self.act(process, recheck=True)

    def turn(self) -> None:
        """Let everyone act who has something to do, and see that somebody has (P14)."""
        for client in self.clients:
            if not client.done:
                client.act()
        acted = [self.act(process) for process in self.processes]
        if not any(acted) and self._time_passes():
            told = [process for process in self.processes if process.idle and process.told]
            assert told, "delayed tasks are due, and no slot knows when to look"
            for process in told:
                self.act(process, recheck=True)
        elif not any(acted):
            active = self.engine.state().members("active")
            assert not active, f"all slots sleep, and {active} have ready tasks"

    # -- slots --------------------------------------------------------------------------

    def act(self, process: Process, recheck: bool = False) -> bool:
        """Let a slot do its next thing; false if it sleeps."""
        if process.pending is not None:
            self._deliver(process)
            return True
        if process.idle and not recheck:
            token = self.engine.link.command("LPOP", self.engine.keys("wake", process.slot.id))
            if token is None:
                return False
        process.idle = False
        groups: list[Any] = []
        failure: tuple[int, bytes] | None = None
        if process.hand is not None:
            self._work(process, process.hand)
            if process.made and self.rng.random() < self.failing:  # the last one raised
                failure = (process.made.popitem()[0], b"boom")
            apart = {t for t in process.made if self.rng.random() < 0.4}
            values = {t: str(token).encode() for t, token in process.made.items()}
            process.slot.lease = process.hand
            groups = self.engine.groups(process.slot, values, apart)
            self.rng.shuffle(groups)
            if self.rash:
                self._keep(process, process.made)
        want, floor = self.rng.choice([(1, 1), (2, 2), (1000, 1), (1000, 1000)])
        known = process.hand.job if process.hand else self.engine.known
        process.pending = self.engine.prepare(
            process.slot, groups, failure=failure, want=want, floor=floor, known=known, rest=True
        )
        if recheck and self.rng.random() < 0.5:
            return True  # it is on its way
        self._deliver(process)
        return True

    def _work(self, process: Process, lease: Lease) -> None:
        """Run the lease's tasks and what follows from them alone; maybe hand some back."""
        process.made = {}
        for position, task in enumerate(lease.tasks[: process.end]):
            if position and self.rng.random() < 0.15:
                break
            if task not in process.made:
                process.position = position
                self._run_tree(process, lease, task)

    def _run_tree(self, process: Process, lease: Lease, first: int) -> None:
        graph, made = self.engine.graphs[lease.job], process.made
        todo = [first]
        while todo:
            task = todo.pop(0)
            may_follow = self._may_follow(process, lease, task)
            if task in made or (task != first and not may_follow):
                continue
            inputs = []
            for i in graph.inputs[task]:
                token = made[i] if i in made else self._fetch(process, lease.job, task, i)
                if token is None:
                    break
                inputs.append(token)
            else:
                made[task] = len(self.tokens)
                self.tokens.append(Token(task, tuple(inputs)))
                todo += [u for u in graph.users[task] if made.keys() >= set(graph.inputs[u])]

    def _may_follow(self, process: Process, lease: Lease, task: int) -> bool:
        wanted = self.engine.graphs[lease.job].hard.get(task)
        if wanted is not None and not set(wanted) & set(process.slot.tags):
            return False
        full = 0 < lease.chunk <= len(process.made)
        return not lease.alone and not full and (self.greedy or self.rng.random() < 0.5)

    def _fetch(self, process: Process, job: str, task: int, needed: int) -> int | None:
        if (job, needed) in process.cache:
            return process.cache[job, needed]
        record = self.engine.link.command("HGET", self.engine.keys("values", job), needed)
        token = None if record is None else self.read_record(job, needed, record)
        if token is not None:
            return token
        answer = self.engine.call("report_missing", job=job, task=task, input=needed)
        lost = job in self.engine.doubtful
        assert answer == b"finished" or lost, f"input {needed} of task {task} is {answer}"
        return None

    def read_record(self, job: str, task: int, record: bytes | None) -> int | None:
        """Return the token that a record of `values` stands for; None if it is lost."""
        lost = job in self.engine.doubtful
        assert record or lost, f"the value of {task} is gone"
        if not record:
            return None
        data = record[25:]
        if record[:1] == b"e":
            name = self.engine.keys("value", job, task, record[1:25].decode())
            data = self.engine.link.command("GET", name)
            if data is None and lost:
                return None
        assert self.tokens[int(data)].task == task, f"{task} has the value of another task"
        return int(data)

    def _deliver(self, process: Process) -> None:
        """Let the pending step arrive, and its answer."""
        assert process.pending is not None
        answer = self._send(process.pending)
        self.old_calls.append(process.pending)
        if answer.status != "stale":
            accepted = process.made.keys() - set(answer.refused)
            self._keep(process, {t: process.made[t] for t in accepted})
        process.pending, process.made, process.position = None, {}, -1
        process.hand, process.end = answer.lease, None
        process.told = answer.retry > 0
        process.idle = answer.lease is None and answer.status == "ok"

    def _keep(self, process: Process, made: dict[int, int]) -> None:
        """Keep results of the lease in hand, for tasks that come here next."""
        if process.hand is not None:
            process.cache |= {(process.hand.job, task): token for task, token in made.items()}

    def _send(self, args: dict[str, Any]) -> Answer:
        """Send a step; note which tasks must run alone from now on, and see that they do."""
        before = self._lease_of(args["slot"])
        state = self.engine.state()
        seq = int(state.mapping("slot", args["slot"]).get("seq", 0))
        answer = self.engine.send(args)
        if seq > args["seq"]:
            assert answer.status == "stale", f"call {args['seq']} is {answer} after call {seq}"
            changed = state.difference(self.engine.state())
            assert not changed, f"the old call {args['seq']} changes {changed}"
        if answer.status == "ok" and before is not None and before[2] < args["seq"]:
            job, tasks, _ = before
            mine = set(tasks) if job == args["job"] else set()
            failed = unpack(args["failure"])[:1] if args["failure"] else []
            self.alone[job].update(mine & {*answer.refused, *failed})
        if answer.lease is not None:
            self._check_lease(answer.lease, self._given_of(args["slot"], answer.lease.job))
        return answer

    def _check_lease(self, lease: Lease, given: list[int]) -> None:
        job, tasks = lease.job, lease.tasks
        chunk = next(c.chunk for c in self.clients if c.job == job)
        assert tasks, "a lease of nothing"
        assert chunk <= 0 or len(tasks) <= chunk, f"a lease of {tasks} at chunk size {chunk}"
        # A replay tells of what was given back since; others may have failed in it by now.
        careful = self.alone[job].intersection(tasks).difference(given)
        assert not careful or (lease.alone and len(tasks) == 1), (
            f"{careful} of {tasks} must run alone"
        )

    def _given_of(self, slot: str, job: str) -> list[int]:
        lease = self.engine.link.command("HGET", self.engine.keys("leases", job), slot)
        return unpack(lease)[2] if lease is not None and len(unpack(lease)) > 2 else []

    def _lease_of(self, slot: str) -> tuple[str, list[int], int] | None:
        """Return job, tasks and number of the lease that the server holds for a slot."""
        job = self.engine.link.command("HGET", self.engine.keys("slot", slot), "job")
        if job is None:
            return None
        lease = self.engine.link.command("HGET", self.engine.keys("leases", job.decode()), slot)
        if lease is None:
            return None
        seq, tasks, *_ = unpack(lease)
        return job.decode(), tasks, seq

    # -- what goes wrong ------------------------------------------------------------------

    def _reply_lost(self, process: Process) -> None:
        """The step arrives, its answer does not: it will be sent again."""
        if process.pending is not None:
            self._send(process.pending)

    def _value_expires(self, process: Process) -> None:
        """A value stored apart is gone before the step that makes it count."""
        if process.pending is not None and process.hand is not None and process.made:
            task = self.rng.choice(list(process.made))
            attempt = f"{process.slot.id}{process.hand.seq:08x}"
            name = self.engine.keys("value", process.hand.job, task, attempt)
            record = self.engine.link.command(
                "HGET", self.engine.keys("values", process.hand.job), task
            )
            if record is None or record[1:25].decode() != attempt:
                self.engine.link.command("DEL", name)

    def _value_lost(self) -> None:
        """An accepted value vanishes: its key was evicted, or the place that held it is gone."""
        job = self.rng.choice(self.clients).job
        state = self.engine.state()
        if state.mapping("job", job).get("state") == b"running" and state.mapping("values", job):
            self.engine.lose_value(job, int(self.rng.choice(sorted(state.mapping("values", job)))))

    def _save(self) -> None:
        self.saved = self.engine.snapshot()

    def _roll_back(self) -> None:
        """The server dies, and comes back as it was some time ago."""
        if self.saved is not None:
            self.engine.roll_back(self.saved)
            self.alone = {job: set() for job in self.alone}
            for process in self.processes:
                process.idle = False  # its connection broke: it looks again

    def _old_call(self) -> None:
        """A copy of an old step arrives, of a slot that is alive, dead, or registered again."""
        if self.old_calls:
            self._send(self.rng.choice(self.old_calls))

    def _presumed_dead(self, process: Process) -> None:
        """A worker misses its beat; it lives, and will be late with its results."""
        self._lose_lease(process, upto=None)
        assert self.engine.lose_worker(process.slot.worker) in ([process.slot.worker], [])
        process.idle = False

    def _client_away(self, client: Client) -> None:
        """The client of a detached job is away for longer than its lease, and a monitor looks."""
        meta = self.engine.state().mapping("job", client.job)
        if meta.get("sealed") and client.detached:
            keys = self.engine.keys
            self.engine.link.command("DEL", keys("client", client.job), keys("monitor"))
            _, dead, gone, *_ = unpack(self.engine.call("recover", who="test", interval=LONG))
            assert (dead, gone) == ([], []), f"a monitor found {dead} and {gone}"

    def _given_back(self) -> None:
        """The longest lease takes long while the others act; the slot may hear of it too late."""
        process = max(self.processes, key=lambda p: len(p.hand.tasks) if p.hand else 0)
        others = [other for other in self.processes if other is not process]
        for other in others * self.rng.choice([0, 1, 4]):
            self.act(other)
        lease, before = process.hand, self._lease_of(process.slot.id)
        if lease is None:
            return
        position = self.rng.randrange(max(1, len(lease.tasks) - 1))
        if self.engine.give_back(process.slot, position, lease.seq) != b"given":
            return
        assert before is not None
        assert before[2] == lease.seq, f"lease {before[2]} is given back for {lease.seq}"
        after = self._lease_of(process.slot.id)
        assert after is not None
        assert after[1] == before[1][: position + 1], f"of {before[1]} it keeps {after[1]}"
        if self.rng.random() < 0.5:
            process.end = position + 1

    def _time_passes(self) -> bool:
        """All delayed tasks are due; tell whether there are any."""
        return sum(self.engine.pass_time(client.job) for client in self.clients) > 0

    def _beats(self, process: Process) -> None:
        """A supervisor beats; it registers again if the queue forgot it."""
        seq = process.hand.seq if process.hand else 0
        held = pack([process.slot.id, seq])
        if (
            self.engine.call("renew", worker=process.slot.worker, expiry=LONG, held=held)
            == b"unknown"
        ):
            unanswered = process.pending is not None
            self.engine.register(process.slot, process.slot.seq - unanswered)
            process.idle = False

    def _dies(self, process: Process) -> None:
        """A slot's process dies in a task, maybe with a step under way."""
        lease, begun = process.hand, -1
        if lease is not None:
            if process.pending is None:
                self._work(process, lease)
            begun = list(process.made)[-1] if process.made else lease.tasks[0]
            self._lose_lease(process, upto=max(process.position, 0))
        self.engine.unregister(
            process.slot, begun=begun, position=max(process.position, 0), kind=self.rng.choice(["died", "timeout", ""]),
            record=pack(["w", -9]), seq=lease.seq if lease else -1,
        )  # fmt: skip
        if process.pending is not None:
            if self.rng.random() < 0.5:
                self._send(process.pending)
            self.old_calls.append(process.pending)
        self._replace(process)

    def _vanishes(self, process: Process) -> None:
        """A worker vanishes whole and is missed."""
        self._presumed_dead(process)
        if process.pending is not None:
            self.old_calls.append(process.pending)
        self._replace(process)

    def _replace(self, process: Process) -> None:
        self.processes[self.processes.index(process)] = self._start(process.slot.worker)

    def _lose_lease(self, process: Process, upto: int | None) -> None:
        """Note that what a slot held, down to `upto`, must run alone from now on."""
        held = self._lease_of(process.slot.id)
        if held is None:
            return
        job, tasks, seq = held
        if upto is None:
            self.alone[job].update(tasks)
        elif process.hand is not None and process.hand.seq == seq:
            self.alone[job].update(tasks[: upto + 1])

    # -- making and checking -----------------------------------------------------------------

    def _start(self, worker: str) -> Process:
        return Process(self.engine.slot(worker, ("gpu",) if worker == "w0" else ()))

    def _submit(self) -> Client:
        """Create a random job of 2 to 12 tasks."""
        rng = self.rng
        n = rng.randint(2, 12)
        roots = rng.choice([1, 1, n // 2])  # wide ones give leases of several tasks
        inputs = {
            t: tuple(sorted(rng.sample(range(t), min(t, rng.choice([0, 1, 1, 2, 3])))))
            if t >= roots
            else ()
            for t in range(n)
        }
        used = {i for its in inputs.values() for i in its}
        outputs = {t for t in range(n) if t not in used or rng.random() < 0.2}
        hard = {t: ("gpu",) for t in range(n) if rng.random() < 0.2} if rng.random() < 0.2 else {}
        chunk = rng.choice([0, 0, 1, 2, 3, -1])
        job = self.engine.create(
            inputs, outputs, block=rng.choice([3, 128]), hard=hard, chunk=chunk, allowed=10**6,
            retries=10**6, retry_delay=rng.choice([0, 0, LONG]), priority=rng.choice([0, 0, 1]), patience=rng.choice([0, LONG]), python=PYTHON,
            ttl=self.away.choice([0, 0, LONG]),
        )  # fmt: skip
        self.alone[job] = set()
        return Client(self, job, chunk)

    def _check_late_reader(self, client: Client) -> None:
        """H48: of a detached job a second reader gets what the first one got, and acknowledged."""
        if not client.detached:
            return
        again = Client(self, client.job, client.chunk)
        again.sent, again.sealed = again.blocks, True
        for _ in range(1 + self.lossy * 6 * len(client.graph)):  # what was lost is made again
            again.act()
            for process in self.processes if self.lossy else ():
                self.act(process, recheck=True)
        assert again.outputs.keys() == client.outputs.keys()
        assert self.lossy or again.outputs == client.outputs

    def _check_answer(self, client: Client) -> None:
        """P9, P10: under all outputs there is one run of each task."""
        seen: dict[int, int] = {}
        todo = list(client.outputs.values())
        while todo:
            token = todo.pop()
            task, inputs = self.tokens[token]
            once = seen.setdefault(task, token) == token
            assert once or client.job in self.engine.doubtful, (
                f"the answer holds two runs of task {task}"
            )
            assert tuple(self.tokens[i].task for i in inputs) == client.graph.inputs[task]
            todo += inputs
        view = JobView(self.engine.state(), client.job, client.graph)
        doubtful = client.job in self.engine.doubtful  # it may have begun anew behind its answer
        assert len(view.finished) == len(client.graph) or doubtful
