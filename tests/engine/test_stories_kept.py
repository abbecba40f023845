"""Kept jobs: who holds their values, and when they go."""

from __future__ import annotations

import pytest
from driver import LONG, NEVER, Engine

from dask_redisq.codec import pack, unpack

A, B = range(2)


def kept(engine: Engine) -> str:
    """Return a kept job that is done."""
    slot = engine.slot()
    job = engine.job({A: ()}, {A}, kept=1, lease=1000)
    engine.step(slot)
    engine.finish(slot, A)
    return job


def recover(engine: Engine) -> list[str]:
    """Let a monitor look; return the jobs that it would sweep."""
    engine.link.command("DEL", engine.keys("monitor"))
    _, _, ended, *_ = unpack(engine.call("recover", who="monitor", interval=LONG, deadline=NEVER))
    return [name.decode() for name in ended]


def state(engine: Engine, job: str) -> bytes | None:
    """Return the state of a job."""
    found: bytes | None = engine.link.command("HGET", engine.keys("job", job), "state")
    return found


def test_reading_a_kept_value_frees_nothing(engine: Engine) -> None:
    """Its client asks for it twice, and once more a receipt comes."""
    job = kept(engine)
    for cursor in (0, 1, 0):
        engine.gather(job, cursor)
    assert engine.link.command("HEXISTS", engine.keys("values", job), A) == 1


@pytest.mark.parametrize("late", ["renew_client", "gather"])
def test_a_late_copy_of_a_call_does_not_take_back_what_was_let_go(
    engine: Engine, late: str
) -> None:
    """Another job uses the values; a call of its helper comes after the client let go."""
    job = kept(engine)
    engine.create({A: ()}, {A}, uses=[job])
    assert engine.call("let_go", job=job) == 0
    if late == "gather":
        engine.gather(job)
    else:
        engine.call("renew_client", job=job)
    assert engine.link.command("EXISTS", engine.keys("client", job)) == 0


@pytest.mark.parametrize("how", ["never", "cancelled"])
def test_a_job_whose_input_is_gone_is_not_made(engine: Engine, how: str) -> None:
    """C lets x go while a job that reads x is on its way: it is refused, or it holds x."""
    job = kept(engine) if how == "never" else engine.job({A: ()}, {A}, kept=1)
    if how == "cancelled":
        engine.call("cancel", job=job, reason="", tomb="")
    other = engine.create({A: ()}, {A}, uses=["f" * 32 if how == "never" else job])
    assert state(engine, other) is None
    assert engine.link.command("EXISTS", engine.keys("holders", job)) == 0


def test_a_kept_job_without_its_client_goes_when_no_job_uses_it(engine: Engine) -> None:
    """The client was killed; a user is swept; another one's keys expired before anybody could."""
    job = kept(engine)
    swept, expired = (engine.create({A: ()}, {A}, uses=[job]) for _ in range(2))
    engine.link.command("DEL", engine.keys("client", job))
    assert job not in recover(engine)
    engine.call("cancel", job=swept, reason="", tomb="")
    engine.sweep(swept)
    assert job not in recover(engine)
    engine.link.command("DEL", *engine.link.command("KEYS", f"*{expired}*"))
    engine.link.command("ZREM", engine.keys("jobs"), expired)
    assert job in recover(engine)


def test_a_used_job_without_its_client_is_renewed(engine: Engine) -> None:
    """A life of five leases would be over long before its user is."""
    job = kept(engine)
    engine.create({A: ()}, {A}, uses=[job])
    engine.link.command("DEL", engine.keys("client", job))
    engine.link.command("PEXPIRE", engine.keys("values", job), 100)
    assert recover(engine) == []
    assert engine.link.command("PTTL", engine.keys("values", job)) > 1000


def test_a_kept_job_that_is_done_uses_nothing_any_more(engine: Engine) -> None:
    """Z = (z + 1).persist() in a loop: each holds the one before it until it is done."""
    first, slot = kept(engine), engine.slot()
    second = engine.job({A: ()}, {A}, kept=1, uses=[first])
    assert engine.call("let_go", job=first) == 0
    engine.step(slot)
    engine.finish(slot, A)
    assert state(engine, second) == b"done"
    assert engine.call("let_go", job=first) == 1


def test_a_job_that_makes_a_kept_value_again_goes_before_all(engine: Engine) -> None:
    """Its users are more urgent, come back at once, and would have every slot for ever."""
    job = kept(engine)
    user = engine.job({A: ()}, {A}, uses=[job], priority=4096)
    engine.lose_value(job, A)
    assert engine.call("report_missing", job=job, task=-1, input=A) == b"parked"
    engine.rebuild(job)
    slot = engine.slot()
    answer = engine.step(slot)
    assert answer.lease is not None
    assert answer.lease.job == job
    assert user != job


def test_a_look_tells_what_is_finished_and_what_is_lost(engine: Engine) -> None:
    """A task that is not finished is left out; a lost value is there, and empty."""
    slot = engine.slot()
    job = engine.job({A: (), B: ()}, {A, B}, kept=1, chunk=1)
    engine.step(slot)
    engine.finish(slot, A, want=0)

    def look(values: int) -> list[object]:
        told = engine.call("look_kept", job=job, tasks=pack([A, B]), values=values)
        return list(unpack(told)[4:])

    assert look(0) == [A, 0]
    (task, record) = look(1)
    assert task == A
    assert isinstance(record, bytes)
    assert record.startswith(b"i")
    engine.lose_value(job, A)
    assert look(1) == [A, b""]
