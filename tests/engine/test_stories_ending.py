"""What is left of a job at its end, and edges that are left to count. Rules 15, 20 and 21."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import WorkerProcess
from driver import NEVER, Engine

from dask_redisq.link import Link
from dask_redisq.queue import Queue

A, B = range(2)


@pytest.mark.parametrize("end", ["cancel", "client", "death", "stop"])
def test_the_news_of_an_end_expire(engine: Engine, end: str) -> None:
    """H50: the client waits when its job ends, and is killed: the token for it does not stay for ever."""
    w1 = engine.slot()
    job = engine.job({A: ()}, {A}, allowed=1)
    engine.step(w1)
    engine.gather(job)
    match end:
        case "cancel":
            engine.call("cancel", job=job, reason="", tomb="")
        case "client":
            engine.link.command("DEL", engine.keys("client", job))
            engine.call("recover", who="test", interval=1000, deadline=NEVER)
        case "death":
            engine.die(w1, begun=A)
        case "stop":
            engine.call("stop_workers", reason="", life=1000)


def test_a_client_does_not_sleep_while_edges_are_left(engine: Engine) -> None:
    """H62: A and B feed 5,000 tasks each: nothing is ready, nobody steps, only gather can move on."""
    n = 5000
    engine.replay = False
    w1 = engine.slot()
    job = engine.job({A: (), B: ()} | dict.fromkeys(range(2, n + 2), (A, B)), range(2, n + 2))
    engine.step(w1, floor=1000)
    assert engine.finish(w1, A, B, floor=1000, rest=True).lease is None
    for _ in range(4):
        found = engine.gather(job)
        if engine.state().members("active"):
            return
        assert found.values == {}
        assert engine.state().get("news", job), "the client waits for news, and none will come"
    pytest.fail("the edges were not counted")


def test_nothing_is_left_of_a_wide_fan_in(queue: Queue, workers: WorkerProcess, link: Link) -> None:
    """H62: the last output arrived while edges were left to count; the job is removed all the same."""
    n = 9000
    dsk: dict[Any, Any] = {("x", i): (abs, i) for i in range(n)}
    dsk["sum"] = (sum, list(dsk))
    assert queue.get(dsk, "sum") == sum(range(n))
    left = [name for name in link.command("KEYS", "*") if b":job:" in name]
    assert left == []


def test_a_job_ends_with_the_one_whose_task_waits_for_it(engine: Engine) -> None:
    """W1's task of the first computes the second, whose task computes the third; the first is cancelled."""
    first = engine.job({A: ()}, {A})
    second = engine.job({A: ()}, {A}, parent=first)
    third = engine.job({A: ()}, {A}, parent=second)
    other = engine.job({A: ()}, {A})
    engine.call("cancel", job=first, reason="", tomb="")
    for job in (second, third):
        assert engine.gather(job).state == "cancelled"
        assert b"has ended" in engine.gather(job).error[2]
    assert engine.gather(other).state == "running"
    for job in (first, second, third, other):
        engine.call("cancel", job=job, reason="", tomb="")
        engine.sweep(job)
    assert engine.link.command("KEYS", engine.keys("job", "*")) == []


def test_a_job_whose_parent_ended_on_its_way_is_not_begun(engine: Engine) -> None:
    """Its create arrives after the parent's failure: the slot that wanted it is about to be killed."""
    w1 = engine.slot()
    parent = engine.job({A: ()}, {A})
    engine.call("cancel", job=parent, reason="", tomb="")
    child = engine.create({A: ()}, {A}, parent=parent)
    engine.put_block(child, 0)
    assert engine.seal(child) == b"cancelled"
    assert engine.step(w1).lease is None
    assert engine.gather(child).state == "cancelled"
