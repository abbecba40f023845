"""A job that failed goes on, a queue is held and let go, a task is for one slot: by calls made by hand."""

from __future__ import annotations

from driver import LONG, Engine, Slot
from flows import work
from invariants import JobView

A, B, C, D = range(4)
#: Two chains; W1 fails in one while W2 runs the other.
GRAPH = {A: (), B: (A,), C: (), D: (C,)}


def failed(engine: Engine, **options: int) -> tuple[str, Slot, Slot]:
    """A detached job that failed in B while W2 had C."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job(GRAPH, {B, D}, ttl=LONG, chunk=1, **options)
    assert engine.step(w1).tasks == [A]
    assert engine.step(w2).tasks == [C]
    assert engine.finish(w1, A).tasks == [B]
    engine.step(w1, failure=(B, b"boom"))
    assert engine.gather(job).state == "failed"
    return job, w1, w2


def rerun(engine: Engine, job: str, fresh: str = "f" * 16, *, epoch: str = "") -> bytes:
    """Run it again; the rebuild is another call."""
    answer: bytes = engine.call("rerun", job=job, epoch=epoch or engine.epochs[job], fresh=fresh)
    return answer


# A job that failed.


def test_a_failed_job_goes_on_in_a_new_epoch(engine: Engine) -> None:
    """What is finished stays so; the task that failed runs alone; nothing waits or is lost."""
    job, w1, w2 = failed(engine)
    old = engine.epochs[job]
    assert rerun(engine, job) == b"rerun"
    assert engine.rebuild(job)
    assert engine.epochs[job] != old
    view = JobView(engine.state(), job, engine.graphs[job])
    assert view.finished == {A}
    assert view.alone == {B}
    assert view.sets == {"": {B}}
    answer = engine.step(w1)
    assert (answer.tasks, answer.lease and answer.lease.alone) == ([B], True)
    work(engine, w1, w2)
    assert engine.gather(job).state == "done"


def test_nothing_of_it_is_leased_before_it_is_rebuilt(engine: Engine) -> None:
    """What became ready by the step that failed is in no set; only the rebuild finds it."""
    job, w1, w2 = failed(engine)
    assert rerun(engine, job) == b"rerun"
    assert engine.step(w1).lease is None
    answer = engine.send(engine.prepare(w2, engine.groups(w2, [C])))
    assert answer.status == "frozen"
    assert engine.gather(job).wanted == 1
    assert engine.rebuild(job)
    assert engine.step(w1).tasks == [B]


def test_a_lease_of_the_old_epoch_neither_counts_nor_fails_the_job(engine: Engine) -> None:
    """W2 ran C all the time, and raises: C goes back, and runs alone."""
    job, w1, w2 = failed(engine)
    old = engine.epochs[job]
    rerun(engine, job)
    engine.rebuild(job)
    late = engine.prepare(w2, failure=(C, b"late boom"), want=0) | {"epoch": old}
    engine.send(late)
    assert engine.gather(job).state == "running"
    view = JobView(engine.state(), job, engine.graphs[job])
    assert view.sets == {"": {B, C}}
    assert view.alone == {B, C}
    assert engine.step(w1).tasks == [B]


def test_deaths_and_tries_begin_at_none(engine: Engine) -> None:
    """It may fail as often as at first."""
    w1 = engine.slot("w1")
    job = engine.job({A: ()}, {A}, ttl=LONG, allowed=1, retries=1)
    engine.step(w1)
    engine.step(w1, failure=(A, b"boom"))
    engine.die(w1, begun=A)
    assert engine.gather(job).state == "failed"
    assert engine.state().get("deaths", job)
    assert engine.state().get("tries", job)
    rerun(engine, job)
    engine.rebuild(job)
    assert engine.state().get("deaths", job) is None
    assert engine.state().get("tries", job) is None


def test_a_copy_that_comes_when_it_failed_once_more_runs_nothing(engine: Engine) -> None:
    """Nor does one who saw the first failure, and asks after the second one."""
    job, w1, _ = failed(engine)
    first = engine.epochs[job]
    rerun(engine, job)
    engine.rebuild(job)
    engine.step(w1)
    engine.step(w1, failure=(B, b"again"))
    before = engine.state()
    assert rerun(engine, job, epoch=first) == b"rerun"
    assert rerun(engine, job, "e" * 16, epoch=first) == b"late"
    assert not before.difference(engine.state())
    assert rerun(engine, job, "e" * 16) == b"rerun"


def test_a_job_that_failed_while_it_was_sent_is_not_whole(engine: Engine) -> None:
    """Its client saw the failure, sent no more, and sealed it, so that attachers are told."""
    w1 = engine.slot("w1")
    job = engine.create({A: (), B: (A,)}, {B}, block=1, ttl=LONG)
    engine.put_block(job, 0)
    engine.step(w1)
    engine.step(w1, failure=(A, b"boom"))
    assert engine.seal(job) == b"failed"
    assert rerun(engine, job) == b"incomplete"
    assert engine.gather(job).state == "failed"


def test_a_whole_job_that_failed_unsealed_goes_on(engine: Engine) -> None:
    """The server came back from before it was sealed; its client left, and a reader runs it again."""
    w1 = engine.slot("w1")
    job = engine.create({A: ()}, {A}, ttl=LONG)
    engine.put_block(job, 0)
    engine.step(w1)
    engine.step(w1, failure=(A, b"boom"))
    assert engine.gather(job).state == "failed"
    assert rerun(engine, job) == b"rerun"
    assert engine.rebuild(job)
    assert engine.gather(job).wanted == 0, "nobody is asked for an upload"
    assert engine.step(w1).tasks == [A]
    engine.finish(w1, A)
    assert engine.gather(job).state == "done"


def test_a_job_that_runs_or_has_a_client_is_left_alone(engine: Engine) -> None:
    """It says what it is."""
    running = engine.job({A: ()}, {A}, ttl=LONG)
    w1 = engine.slot()
    mine = engine.job({A: ()}, {A}, priority=1)
    assert engine.step(w1).lease
    engine.step(w1, failure=(A, b"boom"), want=0)
    assert rerun(engine, running) == b"running"
    assert rerun(engine, mine) == b"kept"
    engine.sweep(mine)
    assert rerun(engine, mine, epoch="x") == b""


# A queue that is held.


def test_a_copy_of_a_suspend_after_the_resume_holds_nothing(engine: Engine) -> None:
    """Of two who ask at once the second one is told, and looks anew."""
    engine.slot()
    assert engine.call("suspend", on=1, turn=0) == b"done"
    assert engine.call("suspend", on=0, turn=1) == b"done"
    for on, turn in ((1, 0), (0, 0), (1, 1)):
        assert engine.call("suspend", on=on, turn=turn) == b"late"
    assert "suspended" not in engine.state().mapping("queue")


def test_what_follows_from_a_held_task_is_ready_and_waits(engine: Engine) -> None:
    """It came by the very step that would have leased it."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (A,)}, {B}, chunk=1)
    engine.step(w1)
    engine.call("suspend", on=1, turn=0)
    assert engine.finish(w1, A, rest=True).lease is None
    assert engine.state().members("ready", job) == {str(B)}
    assert engine.step(w1, rest=True).lease is None
    engine.call("suspend", on=0, turn=1)
    assert engine.tokens(w1) == [1]
    assert engine.step(w1).tasks == [B]


# A task for one slot.


def test_a_task_for_one_slot_wakes_and_goes_to_no_other(engine: Engine) -> None:
    """By the slot's name, which is no tag of its."""
    w1, w2 = engine.slot("w"), engine.slot("w")
    for slot in (w1, w2):
        engine.step(slot, rest=True)
    engine.job({A: (), B: ()}, {A, B}, hard={A: (w2.id,), B: ("f" * 16,)})
    assert engine.tokens(w1, w2) == [0, 1]
    assert engine.step(w1).lease is None
    assert engine.step(w2).tasks == [A]
    assert engine.finish(w2, A).lease is None
