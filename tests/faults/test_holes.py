"""Holes of the engine whose stories are told nowhere else: H12, H19, H22, H31, H33 to H36, H38, H41, H45."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import dask
import pytest
from computing import nothing_left
from conftest import WorkerProcess, wait_until
from driver import NEVER, Engine
from invariants import JobView
from test_faults import log_and_wait, pids
from test_workers_die import EXPIRY, whole

from dask_redisq.codec import Block, pack, unpack
from dask_redisq.keys import Keys
from dask_redisq.lease import INLINE_TOTAL, Lease, LeaseRun
from dask_redisq.link import Link
from dask_redisq.pace import Pace
from dask_redisq.queue import Queue
from dask_redisq.recount import Truth, recount

A, B, C, D, E = range(5)


@pytest.fixture
def engine(link: Link, keys: Keys) -> Engine:
    """The queue, with every call checked."""
    return Engine(link, keys)


def test_an_attempt_has_a_name_that_no_server_can_give_again(engine: Engine) -> None:
    """H19: the server comes back older; the same slot leases the same task again, under another name."""
    w1 = engine.slot()
    engine.job({A: (), B: (A,)}, {B}, chunk=1)
    older = engine.snapshot()
    engine.step(w1)
    first = w1.attempt
    engine.roll_back(older)
    for job in list(engine.graphs):
        engine.rebuild(job)
    engine.step(w1)
    assert w1.attempt != first


def test_a_late_value_does_not_take_the_place_of_the_accepted_one(engine: Engine) -> None:
    """H22: W1, presumed dead, writes its A after W2's A was accepted: each has a key of its own."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: (), B: (A,)}, {B}, chunk=1)
    engine.step(w1)
    engine.lose_worker("w1")
    engine.step(w2)
    engine.step(w2, engine.groups(w2, {A: b"W2's"}, apart={A}), want=0)
    engine.step(w1, engine.groups(w1, {A: b"W1's"}, apart={A}))
    record = engine.state().mapping("values", job)[str(A)]
    name = engine.keys("value", job, A, record[1:25].decode())
    assert engine.link.command("GET", name) == b"W2's"


@pytest.mark.parametrize("again", ["another call", "a call of the same number"])
def test_a_rollback_that_the_servers_run_does_not_tell_is_seen(engine: Engine, again: str) -> None:
    """H38: a snapshot is loaded into the running server; a slot's next number does not follow on."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (A,), C: (B,)}, {C}, chunk=1)
    engine.step(w1)
    engine.finish(w1, A)
    older = engine.snapshot()
    engine.finish(w1, B)
    engine.doubtful.add(job)
    engine.link.command("FLUSHALL")
    for name, (ttl, data) in older.items():
        engine.link.command("RESTORE", name, ttl, data)
    if again == "another call":
        engine.finish(w1, C)
        assert engine.state().mapping("job", job)["history"] == b"1"
        engine.rebuild(job)
    else:
        w1.seq -= 1
        engine.step(w1)
    for _ in range(4):
        if w1.lease:
            engine.finish(w1, *w1.lease.tasks)
        else:
            engine.step(w1)
    assert engine.gather(job).state == "done"


def test_counters_are_there_before_the_first_event(engine: Engine) -> None:
    """H45: a block, or a finish, before create makes nothing; create without its counters is refused."""
    job = "f" * 32
    words = {"number": 0, "first": 0, "count": 1, "payload": b"", "edges": b"", "consts": pack([])}
    words["near"], words["about"] = pack([]), b""
    assert engine.link.call("put_block", engine.keys, job=job, **words) == b""
    assert engine.link.call("seal", engine.keys, job=job, wait=0) == b""
    assert not [name for name in engine.state().content if job in name]


def test_only_one_rebuilder_has_its_way(engine: Engine) -> None:
    """H33, H34: nothing is accepted while a job is frozen; of two rebuilders the older changes nothing."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (A,)}, {B}, chunk=1)
    engine.step(w1)
    engine.doubtful.add(job)
    engine.call("freeze", job=job, generation="slow".ljust(16), previous="", life=0)
    engine.link.command("HSET", engine.keys("job", job), "frozen_at", 0)  # it holds it for too long
    late = engine.prepare(w1, engine.groups(w1, [A]))
    assert engine.send(late).status == "frozen"
    assert engine.rebuild(job)
    before = JobView(engine.state(), job, engine.graphs[job])
    words = {"epoch": "", "finished": 0, "acked": 0, "hard": pack([])}
    answer = engine.call("rebuild", job=job, generation="slow".ljust(16), **words)
    assert answer == b"late"
    after = JobView(engine.state(), job, engine.graphs[job])
    assert (after.wait, after.consumers, after.sets) == (before.wait, before.consumers, before.sets)
    assert engine.send(late).tasks == [B]


def test_a_lock_that_a_dead_one_holds_expires(engine: Engine) -> None:
    """Row 42: a monitor dies in its look; the next one looks an interval later, whoever it is."""
    engine.checking = False
    w1 = engine.slot("w1")
    job = engine.job({A: ()}, {A})
    engine.step(w1)
    assert unpack(engine.call("recover", who="dead", interval=200, deadline=NEVER))[0] == 1
    engine.link.command("DEL", engine.keys("alive", "w1"))
    assert unpack(engine.call("recover", who="other", interval=200, deadline=NEVER))[0] == 0
    time.sleep(0.25)
    assert unpack(engine.call("recover", who="other", interval=200, deadline=NEVER))[1] == [b"w1"]
    assert JobView(engine.check(), job, engine.graphs[job]).sets == {"": {A}}


def test_counters_of_a_partial_reset_are_counted_anew() -> None:
    """H35: B of A -> B -> C, with A -> D, runs again: A is used twice again, and C waits."""
    truth = Truth([(), (A,), (B,), (A,)], frozenset({C, D}), {A, B}, {A}, set())
    found = recount(truth)
    assert found.again == {B}
    assert found.consumers[A] == 2
    assert found.wait == [0, 0, 1, 0]
    assert found.ready == [B, D]


def test_a_value_that_was_freed_is_not_lost() -> None:
    """H36: A and B are done, their values gone with their last users; C was delivered: only D runs."""
    truth = Truth([(), (A,), (B,), ()], frozenset({C, D}), {A, B, C}, set(), {C})
    found = recount(truth)
    assert (found.again, found.ready) == (set(), [D])
    lost = recount(truth._replace(delivered=set()))
    assert lost.again == {A, B, C}


def lease_of(tasks: list[int], inputs: list[tuple[int, ...]], pace: Pace) -> LeaseRun:
    """Return a lease of `tasks`, in a graph of one block."""
    n = len(inputs)
    users = [tuple(u for u in range(n) if t in inputs[u]) for t in range(n)]
    ends = frozenset(t for t in range(n) if not users[t])
    tasks_ = [(take if inputs[t] else make, (t,), ()) for t in range(n)]
    block = Block(tasks_, inputs, users, ends, {}, {}, {}, {}, kept=False)
    lease = Lease("job", "epoch", 0, 128, False, tasks, 1)
    nothing: Callable[..., None] = lambda *_: None  # noqa: E731
    clock = iter(x / 1000 for x in range(10_000))
    return LeaseRun(
        lease, {0: block}, {}, pace, frozenset(), lambda: next(clock), nothing, nothing,
        lambda: True, lambda _: 2**29,
    )  # fmt: skip


def make(task: int) -> bytes:
    """Give 60 kB: as much as goes inside a call."""
    return bytes([task]) * 60_000


def take(task: int) -> int:
    """Be a task of another kind."""
    return task


def test_an_unknown_follower_does_not_hold_its_siblings_up() -> None:
    """H12: A -> B, C, of a kind that nobody ran: A is reported first, so that C can run elsewhere."""
    run = lease_of([A], [(), (A,), (A,)], Pace())
    run.run()
    assert list(run.made) == [A]
    chain = lease_of([A], [(), (A,), (B,)], Pace())
    chain.run()
    assert list(chain.made) == [A, B, C], "nothing else could follow"


def test_what_the_supervisor_gives_away_does_not_begin() -> None:
    """The slot stops between its question and B; what was read of it then must be B already.

    Found by a storm: B was given to another slot and ran in both.
    """
    run = lease_of([A, B, C], [()] * 3, Pace(budget=100.0))
    run.pace.ran(run._kind(run._node(A)), 0.001)
    begun: list[int] = []
    run.begin = lambda task, _: begun.append(task)
    seen: list[int] = []

    def go_on() -> bool:
        seen.append(begun[-1])
        return begun[-1] != C

    run.go_on = go_on
    run.run()
    assert seen == [B, C]
    assert list(run.made) == [A, B]


def test_a_call_carries_no_more_than_its_share_of_values() -> None:
    """H31: ten results of 60 kB: some go inside the call, the rest by keys of their own."""
    run = lease_of(list(range(10)), [()] * 10, Pace(budget=100.0))
    run.pace.ran(run._kind(run._node(A)), 0.001)
    run.run()
    inside = [len(p.data) for p in run.report().published if p.inline]
    assert len(run.made) == 10
    assert 0 < sum(inside) <= INLINE_TOTAL
    assert len(inside) < 10


def test_a_detached_job_is_looked_after_by_workers_alone(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """H41: no client waits, its only worker dies, and another one comes: it looks, and goes on."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    looks = {"DASK_REDISQ__FT_INTERVAL": "1", "DASK_REDISQ__ALIVE_EXPIRY": "1"}
    first = start_worker("test", "--nworkers", "1", "--alive-expiry", str(EXPIRY), env=looks)
    queue.wait_for_workers(1, timeout=90)
    future = queue.compute(dask.delayed(log_and_wait)(log, gate), detach=True)
    wait_until(lambda: len(pids(log)) == 1)
    for one in whole(first):
        one.kill()
    start_worker("test", "--nworkers", "1", "--alive-expiry", str(EXPIRY), env=looks)
    wait_until(lambda: len(pids(log)) == 2)
    gate.touch()
    assert future.result(60) == pids(log)[1]
    future.forget()
    nothing_left(queue.url)
