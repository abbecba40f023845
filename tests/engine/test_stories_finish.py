"""Accepting results: whole components, each once, first one wins. Rules 1 to 5 and 9."""

from __future__ import annotations

import pytest
from driver import Engine, Slot
from invariants import JobView

from dask_redisq.codec import pack
from dask_redisq.record import read_record

A, B, C, D, E = range(5)


def view(engine: Engine, job: str) -> JobView:
    """Return the job as it is now."""
    return JobView(engine.state(), job, engine.graphs[job])


def presumed_dead(
    engine: Engine, slot: Slot, *tasks: int, apart: tuple[int, ...] = ()
) -> list[object]:
    """Let a slot run tasks of its lease, and be declared dead before it can say so."""
    groups = engine.groups(slot, tasks, apart)
    engine.unregister(slot)
    return groups


def test_a_late_component_with_an_accepted_task_is_refused_whole(engine: Engine) -> None:
    """H1: W1's late {A, B} meets W2's accepted A; B must not be accepted, or be leased twice."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: (), B: (A,), C: (B,)}, {C})
    assert engine.step(w1).tasks == [A]
    late = presumed_dead(engine, w1, A, B)
    assert engine.step(w2).tasks == [A]
    assert engine.finish(w2, A).tasks == [B]
    answer = engine.step(w1, late)
    assert (answer.status, answer.refused, answer.lease) == ("unregistered", [A, B], None)
    assert view(engine, job).finished == {A}
    assert engine.finish(w2, B, C).refused == []
    assert view(engine, job).finished == {A, B, C}


def test_a_late_component_counts_if_all_of_it_is_open(engine: Engine) -> None:
    """H2: W1's late {A, B} is first: both leave every ready set and W2's lease, and A's value is dropped."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: (), B: (A,), C: (B,)}, {C})
    engine.step(w1)
    late = presumed_dead(engine, w1, A, B)
    assert engine.step(w2).tasks == [A]
    assert engine.step(w1, late).refused == []
    assert view(engine, job).leases == {w2.id: (1, [])}
    assert view(engine, job).sets == {"": {C}}
    assert engine.finish(w2, A).refused == [A]
    assert view(engine, job).values.keys() == {B}


def test_two_results_of_one_task_never_meet_in_an_answer(engine: Engine) -> None:
    """H3: D reads W2's A; W1's late B, made from its own A, is refused, and B runs on W2's A."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: (), B: (A,), C: (), D: (A,), E: (B, D)}, {E})
    engine.step(w1, want=1)
    late = presumed_dead(engine, w1, A, B)
    engine.step(w2, want=1)
    assert engine.finish(w2, A, want=1).tasks == [B]
    assert engine.step(w1, late).refused == [A, B]
    assert B not in view(engine, job).finished


def test_a_batch_is_judged_component_by_component(engine: Engine) -> None:
    """H4: of one batch {A, C} is refused, since the value of C is gone, and {B, D} is accepted."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (), C: (A,), D: (B,)}, {C, D})
    assert engine.step(w1, floor=1000).tasks == [A, B]
    groups = engine.groups(w1, [A, B, C, D], apart={C, D})
    engine.link.command("DEL", engine.keys("value", job, C, w1.attempt))
    answer = engine.step(w1, groups)
    assert answer.refused == [A, C]
    assert view(engine, job).finished == {B, D}
    assert answer.tasks == [A]


def test_a_refused_lone_task_is_not_counted_with_its_group(engine: Engine) -> None:
    """H4: A's late copy comes with the fresh B; A's user C, leased by now, is not readied again."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: (), B: (), C: (A,), D: (B,)}, {C, D})
    assert engine.step(w1, floor=1000).tasks == [A, B]
    late = presumed_dead(engine, w1, A, B)
    assert engine.step(w2).tasks == [A]
    assert engine.finish(w2, A).tasks == [C]
    assert engine.step(w1, late).refused == [A]
    assert view(engine, job).sets == {"": {D}}


def test_a_damaged_counter_does_not_wrap(engine: Engine) -> None:
    """H6: a decrement below 0 marks the job as damaged; its client is told, and rebuilds it."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (A,)}, {B})
    engine.step(w1)
    engine.checking = False
    engine.link.command("SETRANGE", engine.keys("wait", job), 4 * B, b"\0\0\0\0")
    engine.finish(w1, A)
    assert view(engine, job).wait[B] == 0
    assert view(engine, job).meta["damaged"] == b"1"
    assert engine.gather(job).wanted == 1
    assert engine.rebuild(job)
    assert engine.step(w1).tasks == [B]


def test_a_finished_user_is_not_counted_again(engine: Engine) -> None:
    """H6: A is reset by hand and run again after its user B finished: B's counter stays."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (A,), C: (A,)}, {B, C})
    engine.step(w1)
    assert engine.finish(w1, A, want=1).tasks == [B]
    engine.finish(w1, B, want=0)
    engine.checking = False
    engine.link.command("SETBIT", engine.keys("finished", job), A, 0)
    engine.link.command("HINCRBY", engine.keys("job", job), "finished", -1)
    engine.link.command("SETRANGE", engine.keys("wait", job), 4 * C, b"\0\0\0\1")
    engine.link.command("DEL", engine.keys("ready", job), engine.keys("active"))
    engine.link.command("HSET", engine.keys("leases", job), w1.id, pack([w1.seq, [A]]))
    engine.link.command("HSET", engine.keys("slot", w1.id), "job", job)
    again = [[0, [A], [b"x"], [], pack([1, [], [B, C]])]]
    assert engine.step(w1, again, job=job).tasks == [C]
    assert "damaged" not in view(engine, job).meta
    assert view(engine, job).wait[B] == 0


@pytest.mark.parametrize("apart", [(), (A,)], ids=["inline", "apart"])
def test_a_value_that_nobody_needs_any_more_is_not_kept(
    engine: Engine, apart: tuple[int, ...]
) -> None:
    """H7: A was reset, and its only user finished before A' lands: there is nobody who would free it."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (A,)}, {B})
    engine.step(w1)
    engine.checking = False
    engine.link.command("SETRANGE", engine.keys("consumers", job), 4 * A, b"\0\0\0\0")
    engine.finish(w1, A, apart=apart)
    assert view(engine, job).values == {}
    assert not [name for name in engine.state().content if ":value:" in name]


def test_a_record_tells_where_a_value_is_and_who_made_it(engine: Engine) -> None:
    """Slots and clients read with one function what the engine wrote, large values and small ones."""
    w1 = engine.slot()
    job = engine.job({A: (), B: ()}, {A, B})
    engine.step(w1, floor=1000)
    attempt = w1.attempt
    engine.finish(w1, A, B, apart={A}, want=0)
    values = view(engine, job).values
    assert read_record(values[A]) == (None, attempt)
    assert read_record(values[B]) == (b"value", attempt)


def test_a_replay_after_fencing_does_not_delete_the_winner(engine: Engine) -> None:
    """H8: W1's step was accepted, its reply lost, W1 unregistered; the step comes again and is refused."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (A,)}, {B})
    engine.step(w1)
    engine.finish(w1, A, apart={A}, want=0)
    engine.unregister(w1)
    assert engine.send(w1.calls[-1]).refused == [A]
    record = view(engine, job).values[A]
    assert engine.link.command("EXISTS", engine.keys("value", job, A, record[1:25].decode())) == 1


def test_a_late_failure_never_counts(engine: Engine) -> None:
    """H10: W1, presumed dead, raises for A while W2 runs it well."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: ()}, {A})
    engine.step(w1)
    engine.unregister(w1)
    engine.step(w2)
    engine.step(w1, failure=(A, b"ghost"), job=job)
    assert view(engine, job).meta["state"] == b"running"
    engine.finish(w2, A)
    assert engine.gather(job).state == "done"


def test_a_failure_of_a_task_that_others_finished_does_not_count(engine: Engine) -> None:
    """H10: W1's late result of A was accepted; W2, still at A by a current lease, raises."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: (), B: (A,)}, {B})
    engine.step(w1)
    late = presumed_dead(engine, w1, A)
    engine.step(w2)
    engine.step(w1, late)
    assert engine.step(w2, failure=(A, b"ghost"), job=job).tasks == [B]
    assert view(engine, job).meta["state"] == b"running"


def test_a_failure_with_a_refused_component_does_not_count(engine: Engine) -> None:
    """H10: W2's B raises, but it was made from W2's A, and W1's A was accepted: B is to run on that."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: (), B: (A,)}, {B})
    engine.step(w1)
    late = presumed_dead(engine, w1, A)
    engine.step(w2)
    groups = engine.groups(w2, [A])
    engine.step(w1, late)
    assert engine.step(w2, groups, failure=(B, b"ghost"), job=job).refused == [A]
    assert view(engine, job).meta["state"] == b"running"


def test_a_failure_by_the_current_lease_ends_the_job(engine: Engine) -> None:
    """R9: what was made before it counts, nothing waits any more, other slots are told to stop."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: (), B: (A,), C: (), D: ()}, {B, C, D})
    assert engine.step(w1, want=1).tasks == [A]
    assert engine.step(w2, want=1).tasks == [C]
    groups = engine.groups(w1, [A], apart={A})
    assert engine.step(w1, groups, failure=(B, b"boom")).lease is None
    found = engine.gather(job)
    assert (found.state, found.error) == ("failed", [b"raised", B, b"boom", w1.id.encode(), 1])
    (word,) = engine.state().get("control", "w2")
    assert word == {b"verb": b"cancel", b"slot": w2.id.encode(), b"job": job.encode(), b"seq": b"1"}
    assert engine.step(w2, engine.groups(w2, [C])).refused == [C]
    engine.sweep(job)


def test_a_task_named_twice_counts_once(engine: Engine) -> None:
    """H14: W1 continued from A into B and also ran B by its lease: the second B is refused."""
    w1 = engine.slot()
    job = engine.job({A: (), B: ()}, {A, B})
    engine.step(w1, floor=1000)
    groups = engine.groups(w1, [A, B])
    twice = [groups[0], [0, [B], [b"again"], [B], pack([1, [], []])]]
    assert engine.step(w1, twice).refused == [B]
    assert view(engine, job).finished == {A, B}


def test_a_component_that_names_a_task_twice_is_refused_whole(engine: Engine) -> None:
    """H14: counted twice, the number of finished tasks would reach the end too early."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (A,), C: ()}, {B, C})
    engine.step(w1)
    component = engine.groups(w1, [A, B])[0]
    component[1] = [A, B, B]
    assert set(engine.step(w1, [component]).refused) == {A, B}
    assert view(engine, job).finished == set()


def test_nothing_is_written_when_a_batch_cannot_be_read(engine: Engine) -> None:
    """H63: a script that stops half-way is not undone, so everything is parsed before the first write."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (A,)}, {B})
    engine.step(w1)
    before = engine.state()
    args = engine.prepare(w1, engine.groups(w1, [A]))
    with pytest.raises(Exception, match=r"(?i)cmsgpack|msgpack|bad|missing"):
        engine.link.call("step", engine.keys, **{**args, "batch": args["batch"][:-2]})
    assert engine.state().difference(before) == {}
    assert engine.send(args).tasks == [B]
    assert view(engine, job).finished == {A}
