"""What clients, slots, supervisors and monitors do, as calls of scripts in their order.

Together these stories call every script. `FLOWS` is what the tests of lost and doubled calls run.
"""

from __future__ import annotations

from collections.abc import Callable

from driver import LONG, NEVER, Engine, Slot

from dask_redisq.codec import pack, unpack
from dask_redisq.monitor import renew_values
from dask_redisq.rebuild import rebuild

__all__ = ["FLOWS"]

A, B, C, D, E, F, G = range(7)
#: Four roots, and two outputs.
GRAPH = {A: (), B: (), C: (), D: (), E: (A, B), F: (C,), G: (E, F)}
OUTPUTS = {D, G}


def begin(engine: Engine, **options: int) -> tuple[str, Slot, Slot, Slot]:
    """Three workers of one slot, and a job: {A, B} and {C, D} are leased, the third slot is idle."""
    w1, w2, w3 = engine.slot("one"), engine.slot("two"), engine.slot("three")
    job = engine.job(GRAPH, OUTPUTS, block=2, chunk=2, **options)
    assert engine.step(w1, rest=True).tasks == [A, B]
    assert engine.step(w2, rest=True).tasks == [C, D]
    assert engine.step(w3, rest=True).lease is None
    return job, w1, w2, w3


def work(engine: Engine, *slots: Slot) -> None:
    """Let these slots run what there is to run, one after the other, until nothing is left."""
    todo = list(slots)
    while todo:
        slot = todo.pop(0)
        held = slot.lease.tasks if slot.lease else []
        apart = [t for t in held if t in {A, E}]
        answer = engine.finish(slot, *held, apart=apart) if held else engine.step(slot)
        if held or answer.lease is not None:
            todo.append(slot)


def deliver(engine: Engine, job: str, *slots: Slot) -> None:
    """Let the client read all outputs; its next question is the receipt. It repairs the job, too."""
    have, cursor, generation = set[int](), 0, b""
    for _ in range(9):
        found = engine.gather(job, cursor, generation=generation)
        if found.state == "done" and not found.values:
            return
        have |= {t for t, record in found.values.items() if record}
        cursor, generation = found.cursor, found.generation
        if found.wanted == 1:
            engine.rebuild(job, have)
            work(engine, *slots)
    raise AssertionError(f"no end: {found}")


def a_job_is_computed(engine: Engine) -> None:
    """From upload to sweep: two slots run it, what waits behind a long task is given back."""
    job, w1, w2, w3 = begin(engine)
    engine.renew(w1)
    engine.renew(w2)
    assert engine.give_back(w2, 0) == b"given"
    engine.pop_token(w3)
    assert w1.lease is not None
    assert engine.call("lend", slot=w1.id, seq=w1.lease.seq) == b"ok"
    engine.link.command("ZADD", engine.keys("jobs"), 0, job)  # it is older than the interval
    assert unpack(engine.call("audit", who="monitor", interval=LONG))[1] == []
    work(engine, w3)
    engine.call("renew_client", job=job)
    renew_values(engine.link, engine.keys, job)
    work(engine, w1, w2, w3)
    deliver(engine, job)
    engine.sweep(job)


def a_client_dies_over_a_constant(engine: Engine) -> None:
    """It was announced and stored, and the block that needs it does not come: it goes with the job."""
    job = engine.create(GRAPH, OUTPUTS)
    assert engine.call("announce", job=job, digest="d") == b"running"
    engine.link.command("SET", engine.keys("const", job, "d"), b"content", "PX", LONG)
    engine.link.command("DEL", engine.keys("client", job), engine.keys("monitor"))
    engine.call("recover", who="monitor", interval=LONG, deadline=NEVER)
    assert engine.call("announce", job=job, digest="e") == b"cancelled"
    engine.sweep(job)
    assert engine.state().get("const", job, "d") is None


def a_value_is_lost(engine: Engine) -> None:
    """W1 misses an input; the job is rebuilt by its client, and goes on."""
    job, w1, w2, w3 = begin(engine)
    engine.finish(w1, A, B, apart={A})
    assert w1.lease is not None
    assert w1.lease.tasks == [E]
    engine.finish(w2, C, D, want=0)
    engine.lose_value(job, A)
    assert engine.call("report_missing", job=job, task=E, input=A) == b"parked"
    engine.step(w1, want=0)
    deliver(engine, job, w1, w2, w3)
    engine.sweep(job)


def a_slot_and_a_worker_die(engine: Engine) -> None:
    """A slot dies in its task, a whole worker vanishes, another leaves; a payload is refused."""
    job, w1, _, w3 = begin(engine, watched=1)
    engine.die(w1, begun=A)
    engine.lose_worker("two")
    work(engine, w3)
    engine.call("refuse", job=job, who="somebody", total=1)
    engine.leave("three")
    fresh = engine.slot("four")
    work(engine, fresh)
    deliver(engine, job)
    engine.remove(job)


def a_job_is_cancelled(engine: Engine) -> None:
    """By somebody else, while tasks of it run; then it is swept."""
    job, w1, w2, _ = begin(engine)
    engine.finish(w1, A, B)
    engine.call("cancel", job=job, reason="because", tomb="1")
    engine.finish(w2, C, D)
    engine.sweep(job)


def a_detached_job_is_kept_and_forgotten(engine: Engine) -> None:
    """Monitors renew it, two read it, one forgets it."""
    job, w1, w2, w3 = begin(engine, ttl=LONG, lease=1000)
    engine.link.command("DEL", engine.keys("monitor"))
    *_, values = unpack(engine.call("recover", who="monitor", interval=LONG, deadline=NEVER))
    for name in values:
        renew_values(engine.link, engine.keys, name.decode())
    work(engine, w1, w2, w3)
    deliver(engine, job)
    deliver(engine, job)
    engine.call("forget", job=job)
    engine.sweep(job)


def the_server_came_back(engine: Engine) -> None:
    """It is another run: each job is rebuilt in a new epoch; then the queue is removed."""
    engine.call("greet", run="first")
    job, w1, w2, w3 = begin(engine)
    engine.finish(w1, A, B, want=0)
    engine.doubtful.add(job)
    engine.call("greet", run="second")
    deliver(engine, job, w1, w2, w3)
    assert engine.call("upload", name="model.py", data=b"signed", at=1) == 1
    assert engine.call("upload", name="model.py", data=b"edited", at=2) == 2
    assert len(engine.call("restart_workers", worker="")) == 3
    engine.call("stop_workers", reason="the queue is removed", life=1000)
    engine.sweep(job)


def a_kept_job_is_used(engine: Engine) -> None:
    """Another job reads its values; its client lets go, and the other one holds it, until its end."""
    job, w1, w2, w3 = begin(engine, kept=1)
    work(engine, w1, w2, w3)
    user = engine.create({A: (), B: (A,)}, {B}, uses=[job])
    engine.put_block(user, 0, near=(A, job, E))
    engine.seal(user)
    state, _, _, again, *found = unpack(
        engine.call("look_kept", job=job, tasks=pack([D, G]), values=0)
    )
    assert (state, again, found) == (b"done", 0, [D, 0, G, 0])
    assert engine.call("let_go", job=job) == 0
    work(engine, w1, w2, w3)
    deliver(engine, user)
    engine.sweep(user)
    assert engine.call("let_go", job=job) == 1
    engine.sweep(job)


def tasks_warn(engine: Engine) -> None:
    """Two slots warn of the same, and of something else."""
    job, w1, w2, w3 = begin(engine)
    assert engine.call("warn", job=job, entries=pack([b"same", b"other"])) == 1
    assert engine.call("warn", job=job, entries=pack([b"same"])) == 1
    assert engine.state().members("warnings", job) == {"same", "other"}
    work(engine, w1, w2, w3)
    deliver(engine, job)
    engine.sweep(job)


def a_lock_is_passed_on(engine: Engine) -> None:
    """One holds it and renews it, another asks in vain; then it is given back, and the other has it."""
    words = {"name": "target", "places": 1, "expiry": 60_000, "slot": ""}
    first, _ = unpack(engine.call("acquire", token="a" * 16, **words))
    assert engine.call("hold", name="target", token="a" * 16, expiry=60_000) == 1
    assert unpack(engine.call("acquire", token="b" * 16, **words))[0] == 0
    assert engine.call("release", name="target", token="a" * 16) == 1
    assert unpack(engine.call("acquire", token="b" * 16, **words))[0] > first
    assert engine.call("hold", name="target", token="a" * 16, expiry=60_000) == 0
    assert engine.call("release", name="target", token="b" * 16) == 1


def a_slot_dies_that_holds_a_lock(engine: Engine) -> None:
    """W1 holds it and dies, and W2 has it; W2 is not seen to end."""
    w1, w2 = engine.slot("one"), engine.slot("two")
    words = {"name": "target", "places": 1, "expiry": 60_000}
    first, _ = unpack(engine.call("acquire", token="a" * 16, slot=w1.id, **words))
    assert engine.call("hold", name="target", token="a" * 16, expiry=60_000) == 1
    engine.unregister(w1)
    assert unpack(engine.call("acquire", token="b" * 16, slot=w2.id, **words))[0] > first
    assert engine.call("release", name="target", token="a" * 16) == 0
    assert engine.call("hold", name="target", token="b" * 16, expiry=60_000) == 1
    engine.leave(w2.worker)
    assert unpack(engine.call("acquire", token="c" * 16, slot="", **words))[0] == 0


def the_graph_is_gone(engine: Engine) -> None:
    """A value is lost, and the edges that would tell how to make it again: the job fails."""
    job, w1, w2, _ = begin(engine)
    engine.finish(w1, A, B, apart={A}, want=0)
    engine.lose_value(job, A)
    assert engine.call("report_missing", job=job, task=E, input=A) == b"parked"
    engine.link.command("HDEL", engine.keys("edges", job), 0)
    assert not rebuild(engine.rebuilder or engine.link, engine.keys, job)
    engine.finish(w2, C, D)
    assert engine.gather(job).error[0] == b"damaged"
    engine.sweep(job)


def a_failed_job_is_run_again(engine: Engine) -> None:
    """W1 raises while W2 runs another task of it; then the rest runs, what W2 had too."""
    job, w1, w2, w3 = begin(engine, ttl=LONG)
    engine.finish(w1, A, B)
    assert w1.lease is not None
    assert w1.lease.tasks == [E]
    engine.finish(w1, failure=(E, b"boom"))
    assert engine.gather(job).state == "failed"
    words = {"job": job, "epoch": engine.epochs[job], "fresh": "f" * 16}
    assert engine.call("rerun", **words) == b"rerun"
    engine.rebuild(job)
    late = engine.prepare(w2, engine.groups(w2, [C, D])) | {"epoch": words["epoch"]}
    answer = engine.send(late)
    assert answer.refused == [C, D]
    w2.lease = answer.lease
    work(engine, w1, w2, w3)
    deliver(engine, job)
    deliver(engine, job)
    engine.call("forget", job=job)
    engine.sweep(job)


def a_queue_is_suspended(engine: Engine) -> None:
    """What is held ends, and what is free waits; then the slots that sleep are woken."""
    job, w1, w2, w3 = begin(engine)
    assert engine.call("suspend", on=1, turn=0) == b"done"
    engine.finish(w1, A, B)
    assert engine.finish(w2, C, D, rest=True).lease is None
    assert engine.step(w1, rest=True).lease is None
    assert engine.call("suspend", on=0, turn=1) == b"done"
    assert engine.tokens(w1, w2, w3) == [1, 1, 1]
    work(engine, w1, w2, w3)
    deliver(engine, job)
    engine.sweep(job)


def a_policy_is_asked(engine: Engine) -> None:
    """It is checked, the job submitted; a slot asks, comes with its wishes, and one asks in vain."""
    text = "return {#candidates}"
    w1, w2 = engine.slot("one"), engine.slot("two")
    assert engine.call("check_policy", text=text) == b""
    job = engine.job(GRAPH, OUTPUTS, policy=text, chunk=1)
    asked = {"job": job, "tag": "host", "known": job, "want": 9, "floor": 1, "others": b""}
    assert engine.step(w1).asked == job
    assert unpack(engine.call("wish", slot=w1.id, **asked)) == [b"tasks", [D]]
    assert engine.step(w1, wishes={job: [D]}).tasks == [D]
    assert engine.step(w2, wishes={job: [D]}).tasks == [A]
    assert engine.finish(w1, D).asked == job
    assert engine.step(w1, wishes={job: False}).tasks == [B]
    work(engine, w1, w2)
    deliver(engine, job)
    engine.sweep(job)


FLOWS: list[Callable[[Engine], None]] = [
    a_job_is_computed,
    a_client_dies_over_a_constant,
    a_value_is_lost,
    a_slot_and_a_worker_die,
    a_job_is_cancelled,
    a_detached_job_is_kept_and_forgotten,
    the_server_came_back,
    the_graph_is_gone,
    tasks_warn,
    a_kept_job_is_used,
    a_lock_is_passed_on,
    a_slot_dies_that_holds_a_lock,
    a_failed_job_is_run_again,
    a_queue_is_suspended,
    a_policy_is_asked,
]
