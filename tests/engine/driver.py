"""Make every call of the protocol by hand: two slots and a client in one thread, without sleeping.

`Engine` calls a script, calls it once more where a replay must change nothing, and checks the
whole state with :mod:`invariants` after each.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from invariants import UNSEEN, Graph, State, check

from dask_redisq.codec import pack, unpack
from dask_redisq.keys import Keys
from dask_redisq.lease import Lease
from dask_redisq.link import Link
from dask_redisq.pace import EDGES
from dask_redisq.rebuild import rebuild

__all__ = ["LONG", "PYTHON", "Answer", "Engine", "Gathered", "Slot"]

#: The tag that slots and jobs carry for their version of Python.
PYTHON = "python"
#: Far more than any test takes, in ms.
LONG = 3_600_000
#: A time in ms that does not come: no look is too late for it.
NEVER = 10**15

#: Scripts of which a second call must change nothing; sweep, gather and stop_workers work in steps.
_REPLAYED = {
    "announce", "cancel", "create", "forget", "give_back", "lend", "put_block", "register", "renew", "renew_client", "report_missing", "seal",
    "step", "unregister",
}  # fmt: skip
#: Their answer tells the state that is there now.
_ANSWERS_DIFFER = {"cancel", "create", "forget", "report_missing"}


class Answer(NamedTuple):
    """What step answered."""

    status: str
    refused: list[int]
    lease: Lease | None
    retry: int
    #: The job whose policy is to be asked.
    asked: str = ""

    @property
    def tasks(self) -> list[int]:
        """The tasks that were leased."""
        return self.lease.tasks if self.lease else []


class Gathered(NamedTuple):
    """What gather answered."""

    state: str
    error: list[Any]
    finished: int
    cursor: int
    values: dict[int, bytes | None]
    generation: bytes = b""
    wanted: int = 0


@dataclass
class Slot:
    """One slot as its process knows itself."""

    id: str
    worker: str
    tags: tuple[str, ...]
    #: What its task code set.
    tag: str = ""
    seq: int = 0
    lease: Lease | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<Slot {self.id} at {self.seq}, holds {self.lease and self.lease.tasks}>"

    @property
    def attempt(self) -> str:
        """The name of what it computes now."""
        assert self.lease is not None
        return f"{self.id}{self.lease.seq:08x}"


class Engine:
    """A queue whose scripts are called one by one.

    Parameters
    ----------
    link, keys
        The server and the queue.
    replay : bool, default True
        Call each script that may be replayed twice, and compare the states.
    seed : int
        Of the ids of jobs and slots.
    """

    def __init__(self, link: Link, keys: Keys, *, replay: bool = True, seed: int = 0) -> None:
        self.link = link
        self.keys = keys
        self.replay = replay
        self.checking = True
        self.graphs: dict[str, Graph] = {}
        self.epochs: dict[str, str] = {}
        #: What create was told of each job.
        self._created: dict[str, dict[str, Any]] = {}
        self.known = ""
        #: What rebuilds go over, if not the link: something may happen between their calls.
        self.rebuilder: Any = None
        #: Jobs of which a value was lost, or history, at some time.
        self.doubtful: set[str] = set()
        self._random = random.Random(seed)

    # -- calls ------------------------------------------------------------------------

    def call(self, script: str, **args: object) -> Any:
        """Call a script; check the state after it, and that a replay changes nothing."""
        answer = self.link.call(script, self.keys, **args)
        if self.checking:
            state = self.check()
            if self.replay and script in _REPLAYED:
                again = self.link.call(script, self.keys, **args)
                changed = state.difference(self.state())
                assert not changed, f"a replay of {script} changes {changed}"
                differs = script in _ANSWERS_DIFFER or _is_late(script, answer)
                assert again == answer or differs, f"a replay of {script} answers {again}"
        return answer

    def check(self) -> State:
        """Assert all invariants."""
        return check(self.link, self.keys, self.graphs, self.doubtful)

    def state(self) -> State:
        """Return all that the server holds."""
        return State(self.link, self.keys)

    # -- jobs -------------------------------------------------------------------------

    def job(
        self, inputs: Mapping[int, Iterable[int]], outputs: Collection[int], **options: Any
    ) -> str:
        """Create, upload and seal a job; return its id. See `create` for the options."""
        job = self.create(inputs, outputs, **options)
        for number in range(self._blocks(job)):
            self.put_block(job, number)
        assert self.seal(job) == b"running"
        return job

    def create(
        self,
        inputs: Mapping[int, Iterable[int]],
        outputs: Collection[int],
        *,
        block: int = 128,
        hard: Mapping[int, tuple[str, ...]] | None = None,
        chunk: int = 0,
        priority: int = 0,
        allowed: int = 3,
        retries: int = 0,
        retry_delay: int = 0,
        patience: int = LONG,
        python: str = PYTHON,
        ttl: int = 0,
        lease: int = LONG,
        pure: int = 1,
        kept: int = 0,
        watched: int = 0,
        uses: Sequence[str] = (),
        most: int = 0,
        ordered: bool = False,
        parent: str = "",
        policy: str = "",
        since: int = 0,
    ) -> str:
        """Create a job of tasks 0..n-1, none of whose blocks is there yet; return its id."""
        tasks = tuple(tuple(inputs[t]) for t in range(len(inputs)))
        graph = Graph(tasks, frozenset(outputs), block, hard or {})
        job, n = self._new_id(16), len(graph)
        self.graphs[job], self.known = graph, job
        self._created[job] = {
            "job": job, "n": n, "block": block, "blocks": self._blocks(job), "epoch": self._new_id(8), "chunk": chunk,
            "priority": priority, "python": python, "allowed": allowed, "retries": retries, "retry_delay": retry_delay,
            "patience": patience, "client_lease": lease, "ttl": ttl, "pure": pure, "watched": watched,
            "kept": kept, "uses": pack(list(uses)), "most": most, "ordered": int(ordered), "parent": parent, "by": pack(["me", "here", 1]), "policy": policy, "since": since,
            "hard": pack([list(tags) for tags in graph.restrictions]),
        }  # fmt: skip
        self.create_again(job)
        return job

    def create_again(self, job: str, *, staged: bool = True) -> bytes:
        """Send all of it again that creates the job; not `staged`: only the call itself."""
        if staged:
            self.stage(job)
        answer: bytes = self.call("create", **self._created[job])
        self._note_epoch(job)
        return answer

    def stage(self, job: str) -> None:
        """Send the counters that create takes."""
        graph, n = self.graphs[job], len(self.graphs[job])
        wait = [len(inputs) + 1 for inputs in graph.inputs]
        uses = [len(users) + (t in graph.outputs) for t, users in enumerate(graph.users)]
        stage = [("new_wait", wait, "I"), ("new_consumers", uses, "I")]
        if graph.hard:
            numbers = {tags: i for i, tags in enumerate(graph.restrictions, 1)}
            marks = [numbers.get(graph.hard.get(t, ()), 0) for t in range(n)]
            stage.append(("new_restrict", marks, "B"))
        for name, numbers_, code in stage:
            data = struct.pack(f">{n}{code}", *numbers_)
            self.link.command("SET", self.keys(name, job), data, "PX", UNSEEN)

    def put_block(
        self, job: str, number: int, near: Sequence[object] = (), consts: Sequence[str] = ()
    ) -> bytes:
        """Upload one block.

        `near`: task, kept job and task there, for values that it reads; `consts`: its large constants.
        """
        size, n = self.graphs[job].block, len(self.graphs[job])
        first, graph = number * size, self.graphs[job]
        tasks = range(first, min(first + size, n))
        edges = [[graph.inputs[t] for t in tasks], [t for t in tasks if t in graph.outputs]]
        state: bytes = self.call(
            "put_block", job=job, number=number, first=first, count=min(size, n - first), payload=b"tasks",
            edges=pack(edges), consts=pack(list(consts)), near=pack(list(near)), about=self.about(job, tasks),
        )  # fmt: skip
        return state

    def about(self, job: str, tasks: Iterable[int]) -> bytes:
        """Return what the policy of a job knows of some tasks: as keys their numbers."""
        if not self._created[job]["policy"]:
            return b""
        graph, found = self.graphs[job], list[Any]()
        for task in tasks:
            tag = next(iter(graph.hard.get(task, ())), "")
            found += [task, pack([str(task), 0, tag, list(graph.inputs[task]), []])]
        return pack(found)

    def seal(self, job: str, *, wait: bool = False) -> bytes:
        """Declare the upload complete."""
        state: bytes = self.call("seal", job=job, wait=int(wait))
        return state

    def gather(
        self, job: str, cursor: int = 0, limit: int = 1000, generation: bytes = b""
    ) -> Gathered:
        """Ask for outputs; what lies before `cursor` has arrived."""
        answer = self.call("gather", job=job, cursor=cursor, gen=generation, limit=limit)
        state, error, finished, cursor, generation, wanted, *items = unpack(answer)
        values = dict(zip(items[::2], items[1::2], strict=True))
        return Gathered(
            state.decode(), unpack(error) if error else [], finished, cursor, values, generation,
            wanted,
        )  # fmt: skip

    def rebuild(self, job: str, have: Collection[int] = ()) -> bool:
        """Rebuild a damaged job; all must hold afterwards."""
        done = rebuild(self.rebuilder or self.link, self.keys, job, have)
        self._note_epoch(job)
        self.check()
        return done

    def _note_epoch(self, job: str) -> None:
        epoch = self.link.command("HGET", self.keys("job", job), "epoch")
        self.epochs[job] = (epoch or b"").decode()

    def sweep(self, job: str) -> None:
        """Remove an ended job, and look that nothing of it is left."""
        while (answer := self.link.call("sweep", self.keys, job=job)) == 0:
            pass
        assert answer == 1, "a running job is not swept"
        self.check()

    def remove(self, job: str) -> None:
        """Cancel and sweep a job."""
        self.call("cancel", job=job, reason="", tomb="")
        self.sweep(job)

    def _blocks(self, job: str) -> int:
        return -(-len(self.graphs[job]) // self.graphs[job].block)

    # -- slots ------------------------------------------------------------------------

    def slot(self, worker: str = "w", tags: tuple[str, ...] = (), *, python: str = PYTHON) -> Slot:
        """Register a new slot of a worker."""
        slot = Slot(self._new_id(8), worker, (python, worker, *tags))
        self.register(slot)
        return slot

    def register(self, slot: Slot, seq: int | None = None) -> None:
        """Register a slot, new or forgotten, as its supervisor does, at its last answered call."""
        self.call(
            "register", worker=slot.worker, info=b"info", expiry=LONG, slot=slot.id,
            seq=slot.seq if seq is None else seq, tags=pack(list(slot.tags)),
        )  # fmt: skip

    def renew(self, *slots: Slot) -> bytes:
        """Let a worker beat; each slot tells the lease that it has in hand."""
        held = [x for s in slots for x in (s.id, s.lease.seq if s.lease else 0)]
        answer: bytes = self.call("renew", worker=slots[0].worker, expiry=LONG, held=pack(held))
        return answer

    def unregister(
        self,
        slot: Slot,
        *,
        begun: int = -1,
        position: int = -1,
        kind: str = "",
        record: bytes = b"",
        retries: int = -1,
        seq: int | None = None,
    ) -> None:
        """Unregister one slot; `begun` and `position` tell where it was in its lease."""
        if seq is None:
            seq = slot.lease.seq if slot.lease else -1
        self.call(
            "unregister", worker=slot.worker, slot=slot.id, seq=seq, begun=begun, position=position, kind=kind,
            record=record, retries=retries,
        )  # fmt: skip

    def leave(self, worker: str) -> None:
        """Let a worker leave with all its slots, which have ended."""
        self.call(
            "unregister", worker=worker, slot="", seq=-1, begun=-1, position=-1, kind="", record=b"", retries=-1,
        )  # fmt: skip

    def die(self, slot: Slot, begun: int, position: int = 0) -> None:
        """Let a slot die in a task."""
        record = pack([slot.worker, -9])
        self.unregister(slot, begun=begun, position=position, kind="died", record=record)

    def time_out(self, slot: Slot, begun: int, position: int = 0, retries: int = -1) -> None:
        """Let a slot be killed because its task ran too long."""
        record = pack([slot.worker, 1.5])
        self.unregister(
            slot, begun=begun, position=position, kind="timeout", record=record, retries=retries
        )

    def give_back(self, slot: Slot, position: int, seq: int | None = None) -> bytes:
        """Let the supervisor of a slot give back what waits behind `position` in its lease."""
        if seq is None:
            assert slot.lease is not None
            seq = slot.lease.seq
        answer: bytes = self.call("give_back", slot=slot.id, seq=seq, position=position)
        return answer

    def pass_time(self, job: str) -> bool:
        """Let all delayed tasks of a job be due; tell whether there are any."""
        name = self.keys("delayed", job)
        tasks = self.link.command("ZRANGE", name, 0, -1)
        for task in tasks:
            self.link.command("ZADD", name, 0, task)
        return bool(tasks)

    def lose_worker(self, worker: str) -> list[str]:
        """Let a worker vanish whole, and be missed; return who was found dead."""
        self.link.command("DEL", self.keys("alive", worker), self.keys("monitor"))
        _, dead, *_ = unpack(self.call("recover", who="test", interval=LONG, deadline=NEVER))
        return [name.decode() for name in dead]

    def snapshot(self) -> dict[bytes, tuple[int, bytes]]:
        """Return all keys as the server would save them."""
        dump = self.link.command
        return {
            name: (dump("PTTL", name), dump("DUMP", name))
            for name in self.link.command("KEYS", "*")
        }

    def roll_back(self, snapshot: Mapping[bytes, tuple[int, bytes]]) -> None:
        """Let the server come back with an older state, as another run."""
        self.link.command("FLUSHALL")
        for name, (ttl, data) in snapshot.items():
            self.link.command("RESTORE", name, ttl, data)
        self.doubtful.update(self.graphs)
        self.call("greet", run=self._new_id(20))

    def lose_value(self, job: str, task: int) -> None:
        """Let an accepted value vanish."""
        self.doubtful.add(job)
        record = self.link.command("HGET", self.keys("values", job), task)
        if record[:1] == b"e":
            self.link.command("DEL", self.keys("value", job, task, record[1:25].decode()))
        else:
            self.link.command("HDEL", self.keys("values", job), task)

    def tokens(self, *slots: Slot) -> list[int]:
        """Return how many wake tokens each slot has."""
        return [int(self.link.command("LLEN", self.keys("wake", slot.id))) for slot in slots]

    def pop_token(self, slot: Slot) -> None:
        """Let a slot wake up by its token; it has not stepped yet."""
        assert self.link.command("LPOP", self.keys("wake", slot.id)) is not None

    # -- steps ------------------------------------------------------------------------

    def prepare(
        self,
        slot: Slot,
        groups: Sequence[Any] = (),
        *,
        failure: tuple[int, bytes] | None = None,
        retries: int = -1,
        want: int = 1000,
        floor: int = 1,
        known: str | None = None,
        others: Sequence[str | int] = (),
        rest: bool = False,
        seq: int | None = None,
        job: str | None = None,
        tag: str | None = None,
        wishes: Mapping[str, Sequence[object] | bool] | None = None,
    ) -> dict[str, Any]:
        """Return the arguments of the slot's next step; the sequence number goes up."""
        slot.seq = slot.seq + 1 if seq is None else seq
        slot.tag = slot.tag if tag is None else tag
        if job is None:
            job = slot.lease.job if slot.lease else ""
        args = {
            "slot": slot.id, "seq": slot.seq, "job": job, "epoch": self.epochs.get(job, ""),
            "batch": pack(batch_of(groups)) if job else b"",
            "failure": pack([failure[0], "raised", failure[1], retries]) if failure else b"",
            "known": self.known if known is None else known, "want": want, "floor": floor, "rest": int(rest),
            "others": pack(list(others)) if others else b"", "tag": slot.tag,
            "wishes": pack([x for pair in wishes.items() for x in pair]) if wishes else b"",
        }  # fmt: skip
        slot.lease = None
        slot.calls.append(args)
        return args

    def send(self, args: dict[str, Any]) -> Answer:
        """Send a step that was prepared, or send it once more."""
        status, refused, leased, retry = unpack(self.call("step", **args))
        if status == b"wish":
            return Answer("wish", refused, None, retry, leased.decode())
        if not leased:
            return Answer(status.decode(), refused, None, retry)
        job, epoch, chunk, block, alone, tasks, *_ = leased
        lease = Lease(job.decode(), epoch.decode(), chunk, block, bool(alone), tasks, args["seq"])
        return Answer(status.decode(), refused, lease, retry)

    def step(self, slot: Slot, groups: Sequence[Any] = (), **options: Any) -> Answer:
        """Report `groups`, get the next lease."""
        answer = self.send(self.prepare(slot, groups, **options))
        slot.lease = answer.lease
        return answer

    def finish(
        self, slot: Slot, *tasks: int, apart: Collection[int] = (), **options: Any
    ) -> Answer:
        """Report these tasks of the slot's lease as done, each with some value, and step."""
        return self.step(slot, self.groups(slot, tasks, apart), **options)

    def groups(
        self, slot: Slot, tasks: Iterable[int] | Mapping[int, bytes], apart: Collection[int] = ()
    ) -> list[Any]:
        """Return what the slot reports of these tasks; values `apart` are stored beforehand."""
        assert slot.lease is not None
        job, attempt = slot.lease.job, slot.attempt
        values = tasks if isinstance(tasks, Mapping) else dict.fromkeys(tasks, b"value")
        graph, out = self.graphs[job], list[Any]()

        def publish(task: int) -> bytes | int:
            if task not in apart:
                return values[task]
            name = self.keys("value", job, task, attempt)
            self.link.command("SET", name, values[task], "PX", UNSEEN)
            return len(values[task])

        lone: list[Any] = [0, [], [], [], []]
        for component in components(graph, values):
            first = component[0]
            edges = len(graph.inputs[first]) + len(graph.users[first])
            if len(component) > 1 or edges > EDGES:
                out.append(_linked(graph, component, publish))
                continue
            lone[1].append(first)
            lone[2].append(publish(first))
            lone[3] += [first] * (first in graph.outputs)
            lone[4] += [1, graph.inputs[first], graph.users[first]]
        if lone[1]:
            lone[4] = pack(lone[4])
            out.append(lone)
        return out

    def _new_id(self, size: int) -> str:
        return self._random.randbytes(size).hex()


def components(graph: Graph, tasks: Iterable[int]) -> list[list[int]]:
    """Return the tasks, those linked by values passed among them together."""
    left, found = sorted(tasks), []
    inside = set(left)
    while inside:
        todo, linked = [min(inside)], set()
        while todo:
            task = todo.pop()
            if task in inside:
                inside.remove(task)
                linked.add(task)
                todo += [*graph.inputs[task], *graph.users[task]]
        found.append(sorted(linked))
    return found


def _linked(graph: Graph, tasks: list[int], publish: Any) -> list[Any]:
    """Return a group of kind 1: one component with its outer edges."""
    inside = set(tasks)
    inputs: dict[int, int] = {}
    users: dict[int, int] = {}
    for task in tasks:
        for i in set(graph.inputs[task]) - inside:
            inputs[i] = inputs.get(i, 0) + 1
        for u in set(graph.users[task]) - inside:
            users[u] = users.get(u, 0) + 1
    outputs = [t for t in tasks if t in graph.outputs]
    published = [t for t in tasks if t in graph.outputs or not inside.issuperset(graph.users[t])]
    uses = [len(inside.intersection(graph.users[t])) for t in published]
    values = [publish(t) for t in published]
    flat_in, flat_out = _pairs(inputs), _pairs(users)
    more = []
    if len(inputs) + len(users) > EDGES:
        more = [
            pack([flat_in[i : i + 2 * EDGES], [], b""]) for i in range(0, len(flat_in), 2 * EDGES)
        ]
        more += [
            pack([[], flat_out[i : i + 2 * EDGES], b""]) for i in range(0, len(flat_out), 2 * EDGES)
        ]
        flat_in = flat_out = []
    return [1, tasks, values, outputs, pack([flat_in, flat_out]), published, uses, more]


def _pairs(counts: Mapping[int, int]) -> list[int]:
    return [x for task in sorted(counts) for x in (task, counts[task])]


def batch_of(groups: Iterable[list[Any]]) -> list[Any]:
    """Return groups with the sum of their edges, as step takes them."""
    inputs, users = Counter[int](), Counter[int]()
    groups = list(groups)
    for kind, _, _, _, edges, *rest in groups:
        if kind == 0:
            for count, its_inputs, its_users in zip(*[iter(unpack(edges))] * 3, strict=True):
                for _ in range(count):
                    inputs.update(its_inputs)
                    users.update(its_users)
            continue
        for total, flat in zip((inputs, users), unpack(edges), strict=True):
            total.update(dict(zip(flat[::2], flat[1::2], strict=True)))
        inputs.update({t: n for t, n in zip(rest[0], rest[1], strict=True) if n})
    return [groups, _pairs(inputs), _pairs(users)]


def _is_late(script: str, answer: Any) -> bool:
    """Tell whether a slot that is not registered stepped: no answer of it is kept."""
    return script == "step" and unpack(answer)[0] == b"unregistered"
