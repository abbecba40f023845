"""What must hold of the whole state of a queue after every script.

P1 to P8 are those of the engine's rules, section 2. `check` names the job, the task, and what
is wrong with it.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from state import State

from dask_redisq.codec import unpack
from dask_redisq.keys import PATTERNS, Keys
from dask_redisq.link import Link

__all__ = ["Graph", "JobView", "State", "check", "check_state"]

#: Milliseconds after which a value that nobody accepted is gone.
UNSEEN = 600_000
_ATTEMPT = 24


@dataclass(frozen=True)
class Graph:
    """What the engine was told of a job's graph.

    Attributes
    ----------
    inputs : tuple of tuple of int
        For each task the tasks whose values it needs.
    outputs : frozenset of int
        Tasks whose value the client waits for.
    block : int
        Tasks in a block.
    hard : mapping of int to tuple of str
        Task -> the tags of which its slot must carry one.
    """

    inputs: tuple[tuple[int, ...], ...]
    outputs: frozenset[int]
    block: int = 128
    hard: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.inputs)

    @cached_property
    def users(self) -> tuple[tuple[int, ...], ...]:
        """For each task the tasks that need its value."""
        found: list[list[int]] = [[] for _ in self.inputs]
        for task, inputs in enumerate(self.inputs):
            for i in inputs:
                found[i].append(task)
        return tuple(tuple(users) for users in found)

    @cached_property
    def restrictions(self) -> list[tuple[str, ...]]:
        """The different restrictions; task.hard is number i + 1 of them."""
        return list(dict.fromkeys(self.hard.values()))


class JobView:
    """One job as its keys tell it."""

    def __init__(self, state: State, job: str, graph: Graph) -> None:
        self.graph = graph
        n = len(graph)
        self.meta: dict[str, bytes] = state.mapping("job", job)
        bits = state.get("finished", job) or b""
        self.finished = {t for t in range(len(bits) * 8) if bits[t // 8] & (128 >> t % 8)}
        self.wait = _counters(state.get("wait", job), n)
        self.consumers = _counters(state.get("consumers", job), n)
        self.blocks = {int(number) for number in state.mapping("blocks", job)}
        self.values: dict[int, bytes] = {int(t): v for t, v in state.mapping("values", job).items()}
        self.sets: dict[str, set[int]] = {}
        common, tagged = state.keys("ready", job), state.keys("tagged", job, "")
        for name in state.content:
            if name == common or name.startswith(tagged):
                self.sets[name[len(tagged) :]] = {int(t) for t in state.content[name]}
        held = {slot: unpack(lease) for slot, lease in state.mapping("leases", job).items()}
        self.leases: dict[str, tuple[int, list[int]]] = {
            slot: (lease[0], lease[1]) for slot, lease in held.items()
        }
        self.parked = {int(t) for t in state.members("parked", job)}
        self.given: dict[str, list[int]] = {s: x[2] for s, x in held.items() if len(x) > 2}
        self.due = {int(t): int(at) for t, at in state.mapping("delayed", job).items()}
        self.delayed = set(self.due)
        self.alone = {int(t) for t in state.members("alone", job)}
        self.log = [unpack(entry) for entry in state.get("log", job) or ()]
        # Of a detached or a kept job another reader may want what one has.
        shared = int(self.meta.get("ttl", b"0")) > 0 or "kept" in self.meta
        acked = 0 if shared else int(self.meta.get("acked", b"0"))
        delivered = {t for entry in self.log[:acked] for t in entry}
        self.awaited = graph.outputs - delivered
        self.used: Counter[int] = Counter()
        self.fed: Counter[int] = Counter()
        for piece in state.get("settle", job) or ():
            inputs, users, _ = unpack(piece)
            self.used.update(dict(zip(inputs[::2], inputs[1::2], strict=True)))
            self.fed.update(dict(zip(users[::2], users[1::2], strict=True)))

    def needs(self, task: int) -> int:
        """Return how often the value of a task is still to be used."""
        users = sum(u not in self.finished for u in self.graph.users[task])
        return users + (task in self.awaited) + self.used[task]


def _counters(text: bytes | None, n: int) -> tuple[int, ...]:
    text = text or b""
    assert len(text) <= 4 * n, f"{len(text)} bytes of counters for {n} tasks"
    return struct.unpack(f">{n}I", text.ljust(4 * n, b"\0"))


def check(
    link: Link,
    keys: Keys,
    graphs: Mapping[str, Graph],
    doubtful: Collection[str] = (),
    *,
    much_later: bool = False,
) -> State:
    """Read the state of a queue, and assert P1 to P8 of it; see `check_state`."""
    state = State(link, keys)
    check_state(state, graphs, doubtful, much_later=much_later)
    return state


def check_state(
    state: State,
    graphs: Mapping[str, Graph],
    doubtful: Collection[str] = (),
    *,
    much_later: bool = False,
) -> None:
    """Assert P1 to P8 for every job of `graphs` that is there.

    Of a `doubtful` job values may be gone. When it is `much_later` the keys of a job may have expired
    before anybody removed its name.
    """
    _check_keys(state, much_later=much_later)
    _check_slots(state)
    there = {job for job in graphs if state.get("job", job)}
    assert there == state.members("jobs") or (much_later and there < state.members("jobs")), (
        f"jobs lists {state.members('jobs')}, there are {there}"
    )
    active = set()
    for job in there:
        view = JobView(state, job, graphs[job])
        try:
            _check_values(state, job, view, whole=job not in doubtful)
            if view.meta["state"] == b"running" and "frozen" not in view.meta:
                _check_places(view)
                assert job in doubtful or "damaged" not in view.meta, "it is marked as damaged"
                _check_counts(view)
                _check_sets(state, job, view)
                _check_leases(state, job, view)
                if view.sets or view.delayed:
                    active.add(job)
            elif view.meta["state"] == b"done":
                assert len(view.finished) == len(view.graph), "it is done with unfinished tasks"
                assert not state.get("settle", job), "it is done with edges to settle"
        except AssertionError as error:
            raise AssertionError(f"job {job}: {error}") from error
    listed = state.members("active")
    assert listed == active, f"active lists {listed}, but ready tasks have {active}"


_NAMES = [re.compile(re.escape(pattern).replace("%s", "(.+)")) for pattern, _ in PATTERNS.values()]


@lru_cache(maxsize=4096)  # a world has the same names all the time
def _parts(name: str) -> tuple[str, ...]:
    """Return the parts of a key's name behind the prefix; none if it is not in the table."""
    return tuple(name.split(":")) if any(n.fullmatch(name) for n in _NAMES) else ()


def _check_keys(state: State, *, much_later: bool) -> None:
    """Every key is in the table and has an expiry; nothing is left of a job that is gone."""
    prefix = state.keys.prefix
    for name, ttl in state.ttl.items():
        assert name.startswith(prefix), f"the key {name} is outside of the queue"
        parts = _parts(name[len(prefix) :])
        assert parts, f"{name} is not in the table"
        assert ttl > 0, f"the key {name} has no expiry"
        if parts[0] == "job" and not state.get("job", parts[1]):
            staged = parts[2] in {"new", "const", "built"}
            unseen = parts[2] == "value" and ttl <= UNSEEN
            assert staged or unseen or much_later, f"the key {name} is left of a job that is gone"


def _check_slots(state: State) -> None:
    """Idle means blocked and registered (rule 18); slots that are gone leave nothing."""
    slots = state.members("slots")
    prefix = state.keys.prefix
    for name, content in state.content.items():
        kind, _, rest = name[len(prefix) :].partition(":")
        if kind == "slot":
            assert rest in slots, f"slot {rest} is not registered, but has a hash"
            assert rest in state.members("worker_slots", content["worker"].decode()), (
                f"slot {rest} is not among those of its worker"
            )
        elif kind == "wake":
            assert rest in slots, f"a token waits for slot {rest}, which is not registered"
        elif kind == "idle":
            for slot in content:
                assert slot in slots, f"slot {slot} is idle and not registered"
                own = state.mapping("slot", slot)
                assert "idle" in own, f"slot {slot} is in idle:{rest}, and does not know it"
                assert "job" not in own, f"slot {slot} is idle and holds a lease"
                assert not state.get("wake", slot), f"slot {slot} is idle and has a token"
    for slot in slots:
        own = state.mapping("slot", slot)
        assert own, f"slot {slot} is registered, but has no hash"
        if "idle" in own:
            for tag in [*unpack(own["tags"]), *filter(None, [own.get("tag")])]:
                assert slot in state.members("idle", tag.decode()), f"{slot} is not in idle:{tag}"
        if "job" in own:
            job = own["job"].decode()
            if state.mapping("job", job).get("state") == b"running":
                assert slot in state.mapping("leases", job), f"slot {slot} has lost its lease"


def _check_places(view: JobView) -> None:
    """P1 and P3: each task is in exactly one place, a finished one in none."""
    places: dict[int, list[str]] = {t: [] for t in range(len(view.graph))}
    for name, tasks in view.sets.items():
        for task in tasks:
            places[task].append(f"ready set {name!r}")
    for slot, (_, tasks_) in view.leases.items():
        for task in tasks_:
            places[task].append(f"lease of {slot}")
    for task, found in places.items():
        if task in view.delayed:
            found.append("delayed")
            assert task in view.alone, f"task {task} runs again, and not alone"
        if task in view.finished:
            assert not found, f"task {task} is finished, and in {found}"
            continue
        if view.wait[task] > 0:
            found.append("waiting")
        elif task in view.parked and not found:
            found.append("parked")
        assert len(found) == 1, f"task {task} is in {found or 'no place'}"
    lingering = (view.alone | view.parked) & view.finished
    assert not lingering, f"tasks {lingering} are finished, and still marked as alone or parked"


def _check_counts(view: JobView) -> None:
    """P2, P5, P8: the counters are what the graph and the finished tasks say."""
    count = int(view.meta["finished"])
    assert count == len(view.finished), f"{count} finished, and {len(view.finished)} bits"
    for task, inputs in enumerate(view.graph.inputs):
        if task not in view.finished:
            block = task // view.graph.block not in view.blocks
            right = sum(i not in view.finished for i in inputs) + block + view.fed[task]
            assert view.wait[task] == right, f"wait[{task}] is {view.wait[task]}, not {right}"
        if task not in view.finished or task in view.values:
            right = view.needs(task)
            assert view.consumers[task] == right, (
                f"consumers[{task}] is {view.consumers[task]}, not {right}"
            )
    logged = [t for entry in view.log for t in entry]
    assert sorted(logged) == sorted(view.graph.outputs & view.finished), (
        f"the log holds {logged}; finished outputs are {view.graph.outputs & view.finished}"
    )


def _check_values(state: State, job: str, view: JobView, *, whole: bool) -> None:
    """P4 and P6: `values` names what is there and needed; if it is `whole`, all that is needed."""
    named = set()
    for task, record in view.values.items():
        assert task in view.finished, f"task {task} has a value, and is not finished"
        if record[:1] == b"e":
            name = state.keys("value", job, task, record[1 : 1 + _ATTEMPT].decode())
            named.add(name)
            assert name in state.content or not whole, f"the value of task {task} does not exist"
            assert "expiring" in view.meta or state.ttl.get(name, UNSEEN + 1) > UNSEEN, (
                f"{name} was accepted, and expires soon"
            )
        if view.meta["state"] == b"running" and "damaged" not in view.meta:
            assert view.needs(task) > 0, f"the value of task {task} is kept, and nobody needs it"
    for task in view.finished - view.values.keys() if whole else ():
        open_users = set(view.graph.users[task]) - view.finished
        assert not open_users, f"task {task} has no value, and {open_users} need it"
        assert task not in view.awaited, f"output {task} has no value"
    others = state.keys("value", job, "", "")[:-1]
    for name, ttl in state.ttl.items():
        if name.startswith(others) and name not in named:
            assert ttl <= UNSEEN, f"{name} is no accepted value, and stays"


def _check_sets(state: State, job: str, view: JobView) -> None:
    """A restricted task sits in the set of its restriction; `sets` lists those that hold something."""
    numbers = {tags: f"hard:{i}" for i, tags in enumerate(view.graph.restrictions, 1)}
    for name, tasks in view.sets.items():
        for task in tasks:
            wanted = numbers.get(view.graph.hard.get(task, ()))
            assert name == wanted or (wanted is None and not name.startswith("hard:")), (
                f"task {task} is in the ready set {name!r}, not {wanted!r}"
            )
    listed = state.members("sets", job)
    found = view.sets.keys() - {""}
    assert listed == found, f"sets lists {listed}, there are {found}"


def _check_leases(state: State, job: str, view: JobView) -> None:
    """P7: a lease is held by a registered slot that knows of it, under its last call."""
    for slot, (seq, tasks) in view.leases.items():
        assert slot in state.members("slots"), f"slot {slot} holds {tasks} and is not registered"
        own = state.mapping("slot", slot)
        assert own.get("job", b"").decode() == job, f"slot {slot} does not know its lease {tasks}"
        assert int(own["seq"]) == seq, f"slot {slot} is at {own['seq']}, its lease at {seq}"
