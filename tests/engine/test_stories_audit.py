"""The audit: doRedis's queued + started + finished = total, for each task; property P1."""

from __future__ import annotations

import random

import pytest
from driver import LONG, NEVER, Engine
from invariants import State

from dask_redisq.codec import pack, unpack
from dask_redisq.monitor import Monitor
from dask_redisq.rebuild import rebuild

A, B, C, D = range(4)


def audit(engine: Engine, job: str) -> tuple[int, str]:
    """Compare the counts of a job with its graph, as if it were old and nobody had done so lately."""
    engine.link.command("DEL", engine.keys("monitor"))
    engine.link.command("ZADD", engine.keys("jobs"), 0, job)
    args = {"who": "test", "interval": LONG}
    blocks, damaged = unpack(engine.link.call("audit", engine.keys, **args))
    assert damaged[::2] == ([job.encode()] if damaged else [])
    return blocks, damaged[1].decode() if damaged else ""


def test_a_sound_job_is_found_sound_at_every_moment(engine: Engine) -> None:
    """Ready, leased, delayed, given back, finished, with edges left to count or not."""
    rng = random.Random(7)
    graph = {t: tuple(sorted(rng.sample(range(t), min(t, 3)))) for t in range(24)}
    job = engine.job(graph, {20, 21, 22, 23}, block=4, retries=50, retry_delay=5)
    slots = [engine.slot() for _ in range(3)]
    while engine.gather(job).finished < len(graph):
        assert audit(engine, job)[1] == ""
        slot = rng.choice(slots)
        tasks = slot.lease.tasks if slot.lease else []
        if not tasks:
            engine.step(slot, want=3)
        elif rng.random() < 0.2:
            engine.give_back(slot, 0)
        elif rng.random() < 0.2:
            engine.finish(slot, *tasks[:-1], failure=pack([tasks[-1], "raised", b"", -1]), want=2)
        else:
            engine.finish(slot, *tasks, want=2)
        engine.pass_time(job)
    assert audit(engine, job) == (0, "")


@pytest.mark.parametrize("junk", [
    b"junk", pack(1), pack([1, 2]), b"", pack([[1, 2], []]), pack([b"ab", []]),
    pack([[["x"], []], []]),
])  # fmt: skip
def test_a_graph_that_cannot_be_read_is_damage_that_nobody_repairs(
    engine: Engine, junk: bytes
) -> None:
    """Its client is told, and submits it again; the others of the queue have their answers."""
    job = engine.job({A: (), B: (A,)}, {B})
    engine.link.command("HSET", engine.keys("edges", job), 0, junk)
    assert audit(engine, job)[1] == "the graph of block 0 cannot be read"
    engine.checking = False
    assert not rebuild(engine.link, engine.keys, job)
    state, reason = engine.link.command("HMGET", engine.keys("job", job), "state", "error")
    assert (state, unpack(reason)[0]) == (b"failed", b"damaged")


def test_a_rebuild_of_a_sound_job_leaves_it_as_it_was(engine: Engine) -> None:
    """P17, at every moment: its counters, its log, and which tasks may be leased, or are."""

    def state() -> tuple[object, ...]:
        seen = State(engine.link, engine.keys)
        places = [seen.members("tagged", job, s) for s in seen.members("sets", job)]
        ready = set().union(seen.members("ready", job), *places)
        leases = {slot: unpack(lease)[:2] for slot, lease in seen.mapping("leases", job).items()}
        log = sorted(task for entry in seen.get("log", job) or () for task in unpack(entry))
        finished = (seen.get("finished", job) or b"").rstrip(b"\0")
        names = ("wait", "consumers", "values", "delayed", "parked")
        return ready, leases, log, finished, *[seen.get(name, job) for name in names]

    rng = random.Random(5)
    graph = {t: tuple(sorted(rng.sample(range(t), min(t, 3)))) for t in range(20)}
    unused = graph.keys() - {i for inputs in graph.values() for i in inputs}
    job = engine.job(graph, unused, block=4, retries=50, retry_delay=5)
    slots = [engine.slot() for _ in range(3)]
    while engine.gather(job).finished < len(graph):
        before = state()
        assert engine.rebuild(job)
        assert state() == before
        slot = rng.choice(slots)
        tasks = slot.lease.tasks if slot.lease else []
        if tasks and rng.random() < 0.3:
            engine.finish(slot, *tasks[:-1], failure=pack([tasks[-1], "raised", b"", -1]), want=2)
        elif tasks:
            engine.finish(slot, *tasks, want=2)
        else:
            engine.step(slot, want=3)
        engine.pass_time(job)


def test_a_task_that_is_nowhere_is_found(engine: Engine) -> None:
    """Somebody deleted a ready set: the job would wait for ever, while others of it run."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (), C: (A, B)}, {C})
    engine.step(w1, want=1)
    engine.link.command("DEL", engine.keys("ready", job))
    assert audit(engine, job)[1] == "task 1 waits for nothing, and is neither ready nor leased"
    engine.rebuild(job)
    assert engine.finish(w1, A, want=1).tasks == [B]


def test_a_lease_of_a_slot_that_the_server_forgot_is_found(engine: Engine) -> None:
    """Its hash was evicted: it registers again, and knows nothing of its lease."""
    w1, w2 = engine.slot(), engine.slot()
    job = engine.job({A: (), B: (A,)}, {B})
    engine.step(w1, want=1)
    engine.link.command("DEL", engine.keys("slot", w1.id))
    again = {"worker": w1.worker, "info": b"info", "expiry": LONG, "tags": pack(list(w1.tags))}
    engine.link.call("register", engine.keys, **again, slot=w1.id, seq=w1.seq)
    assert audit(engine, job)[1] == "task 0 waits for nothing, and is neither ready nor leased"
    engine.rebuild(job)
    assert engine.step(w2, want=1).tasks == [A]
    assert engine.finish(w2, A, want=1).tasks == [B]
    assert engine.finish(w1, A).refused == [A]


@pytest.mark.parametrize("check", ["audit", "recover"])
def test_who_looks_after_a_queue_that_was_removed_makes_no_key(engine: Engine, check: str) -> None:
    """A monitor of W1, which serves another queue as well, comes late."""
    engine.link.command("FLUSHALL")
    args = {"who": "test", "interval": LONG}
    engine.link.call(
        check, engine.keys, **args, **({"deadline": NEVER} if check == "recover" else {})
    )
    assert engine.link.command("KEYS", "*") == []


@pytest.mark.parametrize("count", [0, 3])
def test_a_count_that_is_wrong_is_found(engine: Engine, count: int) -> None:
    """Too low it would run before its inputs, too high never."""
    job = engine.job({A: (), B: (), C: (A, B)}, {C}, block=1)
    name = engine.keys("wait", job)
    engine.link.command("BITFIELD", name, "SET", "u32", f"#{C}", count)
    assert audit(engine, job) == (3, f"task 2 waits for {count} inputs, and 2 are not finished")


def test_every_block_has_its_turn(engine: Engine) -> None:
    """A look at all blocks of a large job would stall everyone."""
    job = engine.job(dict.fromkeys(range(20), ()), {0}, block=1)
    engine.link.command("BITFIELD", engine.keys("wait", job), "SET", "u32", "#13", 1)
    for _ in range(3):
        assert audit(engine, job) == (4, "")
    assert audit(engine, job) == (4, "task 13 waits for 1 inputs, and 0 are not finished")


def test_finished_tasks_that_are_not_as_many_are_found(engine: Engine) -> None:
    """The bitmap is the truth, and the number is derived from it."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (A,)}, {B}, block=1)
    engine.step(w1, want=1)
    engine.finish(w1, A)
    engine.link.command("HINCRBY", engine.keys("job", job), "finished", 1)
    assert audit(engine, job) == (0, "2 tasks are said to be finished, and 1 are")


def test_a_monitor_audits_and_repairs(engine: Engine) -> None:
    """What is wrong is rebuilt at once, and counted."""
    job = engine.job({A: (), B: (A,)}, {B})
    engine.call("recover", who="another", interval=LONG, deadline=NEVER)
    engine.link.command("DEL", engine.keys("ready", job))
    monitor = Monitor(engine.link, engine.keys, "test", interval=50.0, expiry=10.0)
    monitor.run(1e9)
    assert monitor.stats()["audit"] == {"blocks": 0, "wrong": 0}, "the job is new"
    engine.link.command("ZADD", engine.keys("jobs"), 0, job)
    monitor.run(2e9)  # by the server's clock, it has looked a moment ago
    assert monitor.stats()["audit"] == {"blocks": 0, "wrong": 0}
    engine.link.command("HDEL", engine.keys("monitor"), "audit")
    monitor.run(3e9)
    assert monitor.stats()["audit"] == {"blocks": 1, "wrong": 1}
    assert engine.step(engine.slot(), want=1).tasks == [A]


def test_every_job_has_its_turn(engine: Engine) -> None:
    """Ten a look; a job that is new has time to settle."""
    jobs = [engine.job({A: ()}, {A}) for _ in range(12)]
    for job in jobs:
        engine.link.command("ZADD", engine.keys("jobs"), 0, job)
    seen = []
    for _ in range(3):
        engine.link.command("HDEL", engine.keys("monitor"), "audit")
        seen.append(unpack(engine.call("audit", who="test", interval=LONG))[0])
    assert seen == [10, 2, 10]


def test_what_a_stranger_registered_does_not_end_recovery(engine: Engine) -> None:
    """Its worker counts as one that asked for no time, and the others are looked at."""
    engine.slot("w1")
    args = {"expiry": 1000, "slot": "", "seq": 0, "tags": b""}
    for name, info in (("empty", b""), ("text", b"\xc1"), ("other", pack({"alive_expiry": "?"}))):
        engine.link.call("register", engine.keys, worker=name, info=info, **args)
        engine.link.command("DEL", engine.keys("alive", name))
    assert set(engine.lose_worker("w1")) == {"w1", "empty", "text", "other"}


def test_a_worker_is_dead_no_sooner_than_its_own_expiry_after_the_server_came(
    engine: Engine,
) -> None:
    """It asked for a minute: after a restart its key is gone, and others ask for seconds only."""
    for expiry, dead in ((60, []), (0, [b"w"])):
        info = pack({"alive_expiry": expiry})
        args = {"worker": "w", "info": info, "expiry": 1000, "slot": "", "seq": 0, "tags": b""}
        engine.link.call("register", engine.keys, **args)
        engine.call("greet", run=str(expiry))
        engine.link.command("DEL", engine.keys("alive", "w"), engine.keys("monitor"))
        assert unpack(engine.call("recover", who="test", interval=1000, deadline=NEVER))[1] == dead
