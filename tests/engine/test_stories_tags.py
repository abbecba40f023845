"""One task, one ready set: soft sets of a slot, hard sets of a restriction. Rules 18 and 19."""

from __future__ import annotations

from driver import Engine, Slot
from invariants import JobView

A, B, C, D, E = range(5)
GPU = ("gpu",)


def sets_of(engine: Engine, job: str) -> dict[str, set[int]]:
    """Return the ready sets of a job; the common one is ''."""
    return JobView(engine.state(), job, engine.graphs[job]).sets


def keep_near(engine: Engine, slot: Slot, task: int) -> None:
    """Let a slot make a large value of a task, whose user then waits for it."""
    assert engine.step(slot, want=1).tasks == [task]
    engine.finish(slot, task, apart={task}, want=0)


def age(engine: Engine, job: str, owner: Slot, milliseconds: int) -> None:
    """Let a soft set have been left alone for so long."""
    engine.link.command("ZINCRBY", engine.keys("sets", job), -milliseconds, owner.id)


def test_a_soft_set_is_its_owners_for_the_locality_wait(engine: Engine) -> None:
    """H56: others are told when to look again; after that they may take it, common tasks first."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: (), B: (A,), C: ()}, {B, C}, patience=1000, chunk=1)
    keep_near(engine, w1, A)
    assert engine.step(w2).tasks == [C]
    answer = engine.finish(w2, C)
    assert answer.lease is None
    assert 0 < answer.retry <= 1000
    age(engine, job, w1, 1000)
    assert engine.step(w2).tasks == [B]


def test_a_soft_set_that_nobody_serves_goes_first(engine: Engine) -> None:
    """H56: its owner is at a long task; a stream of common tasks does not starve it."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: (), B: (A,), C: (), D: ()}, {B, C, D}, patience=100, chunk=1)
    keep_near(engine, w1, A)
    age(engine, job, w1, 1000)
    assert engine.step(w2).tasks == [B]


def test_tasks_just_made_ready_do_not_starve_an_old_set(engine: Engine) -> None:
    """H56, P15: W2 goes down a long chain of its own; B, left for an hour by busy W1, comes before its next link."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: (), B: (A,), C: (), D: (C,), E: (D,)}, {B, E}, patience=100, chunk=1)
    keep_near(engine, w1, A)
    assert engine.step(w2).tasks == [C]
    age(engine, job, w1, 3_600_000)
    assert engine.finish(w2, C).tasks == [B]


def test_a_soft_restriction_is_for_its_slots_until_they_left_it_alone(engine: Engine) -> None:
    """W2 has no GPU: it takes common tasks, is told when to look again, and takes what waited for long."""
    gpu, other = engine.slot("w1", tags=GPU), engine.slot("w2")
    soft = ("soft:", *GPU)
    hard = dict.fromkeys((A, B, C), soft)
    job = engine.job(dict.fromkeys(range(5), ()), set(range(5)), hard=hard, patience=1000, chunk=1)
    assert engine.step(other).tasks == [D]
    assert engine.step(gpu).tasks == [A]
    assert engine.finish(other, D).tasks == [E]
    answer = engine.finish(other, E)
    assert answer.lease is None
    assert 0 < answer.retry <= 1000
    engine.link.command("ZINCRBY", engine.keys("sets", job), -1000, "hard:1")
    assert engine.finish(gpu, A).tasks == [B]  # served, it is young again
    assert engine.step(other).lease is None
    engine.link.command("ZINCRBY", engine.keys("sets", job), -1000, "hard:1")
    assert engine.step(other).tasks == [C]


def test_in_an_ordered_job_what_just_became_ready_does_not_go_first(engine: Engine) -> None:
    """W2 makes D ready by C, and takes B, whose number is lower: it has the higher priority."""
    w1 = engine.slot("w1")
    inputs = {A: (), B: (), C: (), D: (A,), E: ()}
    engine.job(inputs, {B, C, D, E}, chunk=1, ordered=True)
    assert engine.step(w1).tasks == [A]
    assert engine.finish(w1, A).tasks == [B]
    engine.job(inputs, {B, C, D, E}, chunk=1)


def test_an_accepted_task_leaves_its_tagged_set(engine: Engine) -> None:
    """H57: A went back to the set of its restriction; the late result of it takes it out there."""
    w1, w2 = engine.slot("w1", GPU), engine.slot("w2", GPU)
    job = engine.job({A: (), B: (A,)}, {B}, hard={A: GPU})
    engine.step(w1)
    late = engine.groups(w1, [A])
    engine.unregister(w1)
    assert sets_of(engine, job) == {"hard:1": {A}}
    assert engine.step(w1, late, job=job).refused == []
    assert sets_of(engine, job) == {"": {B}}
    assert engine.step(w2).tasks == [B]


def test_a_restricted_task_goes_back_to_the_set_of_its_restriction(engine: Engine) -> None:
    """H57: a lease that comes back knows where its tasks belong."""
    gpu, cpu = engine.slot("w1", GPU), engine.slot("w2")
    job = engine.job({A: (), B: ()}, {A, B}, hard={A: GPU})
    assert engine.step(gpu, want=1).tasks == [A]
    engine.die(gpu, begun=A)
    assert sets_of(engine, job) == {"hard:1": {A}, "": {B}}
    assert engine.step(cpu, floor=1000).tasks == [B]
    assert engine.finish(cpu, B).lease is None


def test_a_restriction_is_stronger_than_a_large_input(engine: Engine) -> None:
    """H57: B's input lies with a cpu slot, but B needs a gpu: one set, that of the restriction."""
    gpu, cpu = engine.slot("w1", GPU), engine.slot("w2")
    job = engine.job({A: (), B: (A,)}, {B}, hard={B: GPU})
    keep_near(engine, cpu, A)
    assert sets_of(engine, job) == {"hard:1": {B}}
    assert engine.step(cpu).lease is None
    assert engine.step(gpu).tasks == [B]


def test_a_restriction_may_name_several_tags(engine: Engine) -> None:
    """H55: any of them will do, and whoever carries one is woken."""
    cpu, big = engine.slot("w1"), engine.slot("w2", ("big",))
    for slot in (cpu, big):
        engine.step(slot, rest=True)
    engine.job({A: ()}, {A}, hard={A: ("gpu", "big")})
    assert engine.tokens(cpu, big) == [0, 1]
    assert engine.step(big).tasks == [A]


def test_a_tag_that_a_task_set_counts_for_the_next_lease(engine: Engine) -> None:
    """W1 sets it while it runs A: the same call that reports A leases what only that tag may run."""
    w1 = engine.slot("w1")
    job = engine.job({A: (), B: (), C: ()}, {A, B, C}, hard={B: GPU, C: ("lab",)})
    assert engine.step(w1).tasks == [A]
    assert engine.finish(w1, A, tag="gpu").tasks == [B]
    assert engine.finish(w1, B, tag="lab").tasks == [C]
    engine.finish(w1, C)
    assert engine.gather(job).state == "done"


def test_a_slot_is_woken_for_the_tag_it_set_and_not_for_the_one_before(engine: Engine) -> None:
    """H55: it is idle under the new tag, and in no other idle set; a call takes it out of all."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    engine.step(w1, tag="gpu", rest=True)
    engine.step(w1, tag="lab", rest=True)
    engine.step(w2, rest=True)
    job = engine.job({A: ()}, {A}, hard={A: GPU})
    assert engine.tokens(w1, w2) == [0, 0]
    engine.remove(job)
    engine.job({A: ()}, {A}, hard={A: ("lab",)})
    assert engine.tokens(w1, w2) == [1, 0]
    engine.step(w1, tag="", want=0)
    assert not engine.state().members("idle", "lab")


def test_a_tag_is_told_again_to_a_server_that_forgot_it(engine: Engine) -> None:
    """W1's next call tells it, before it leases.

    W1 sets gpu. The server comes back older, then empty, and W1's supervisor registers it as it
    was started.
    """
    w1 = engine.slot("w1")
    before = engine.snapshot()
    engine.step(w1, tag="gpu")
    engine.roll_back(before)
    engine.job({A: ()}, {A}, hard={A: GPU})
    assert engine.step(w1).tasks == [A]
    engine.graphs.clear()
    engine.roll_back({})
    engine.register(w1)
    engine.job({A: ()}, {A}, hard={A: GPU})
    assert engine.step(w1, job="").tasks == [A]


def test_a_late_copy_of_a_call_brings_no_older_tag_back(engine: Engine) -> None:
    """W1 said gpu, then lab; a copy of the first call is late, and refused whole."""
    w1 = engine.slot("w1")
    first = engine.prepare(w1, tag="gpu")
    engine.send(first)
    engine.step(w1, tag="lab")
    assert engine.send(first).status == "stale"
    engine.job({A: (), B: ()}, {A, B}, hard={A: GPU, B: ("lab",)})
    assert engine.step(w1).tasks == [B]


def test_a_restriction_that_nobody_carries_harms_nobody(engine: Engine) -> None:
    """H58: the task waits, the others run."""
    w1 = engine.slot()
    engine.job({A: (), B: ()}, {A, B}, hard={A: GPU})
    assert engine.step(w1).tasks == [B]
    assert engine.finish(w1, B, rest=True).lease is None
