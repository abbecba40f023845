"""Wake-ups, tags, fairness, the choice of the job. Rules 16-18."""

from __future__ import annotations

import pytest
from driver import PYTHON, Engine, Slot

A, B, C, D = range(4)


def idle(engine: Engine, tag: str = PYTHON) -> set[str]:
    """Return who waits under a tag."""
    return engine.state().members("idle", tag)


def fall_idle(engine: Engine, *slots: Slot) -> None:
    """Let the slots find nothing, one after another; the first is woken first."""
    for age, slot in enumerate(reversed(slots)):
        assert engine.step(slot, rest=True).lease is None
        for tag in slot.tags:  # two calls may come in the same millisecond
            engine.link.command("ZINCRBY", engine.keys("idle", tag), -1000 * age, slot.id)


def test_a_ready_task_wakes_one_idle_slot(engine: Engine) -> None:
    """P14: one task, two idlers: one token; the woken one is idle nowhere any more."""
    w1, w2 = engine.slot(), engine.slot()
    assert engine.step(w1, rest=True).lease is None
    assert engine.step(w2, rest=True).lease is None
    assert idle(engine) == {w1.id, w2.id}
    engine.job({A: ()}, {A})
    assert sorted(engine.tokens(w1, w2)) == [0, 1]
    assert len(idle(engine)) == 1
    assert len(idle(engine, "w")) == 1


def test_a_slot_that_found_work_by_its_recheck_gets_no_token(engine: Engine) -> None:
    """H52: busy W1 in the idle set would take the token, and W2 would sleep on."""
    w1, w2 = engine.slot(), engine.slot()
    engine.step(w1, rest=True)
    engine.job({A: ()}, {A})
    assert engine.step(w1, rest=True).tasks == [A]
    assert engine.tokens(w1) == [0]
    engine.step(w2, rest=True)
    engine.job({A: ()}, {A})
    assert engine.tokens(w1, w2) == [0, 1]


def test_an_unused_token_is_passed_on(engine: Engine) -> None:
    """H53: W1 was woken, and steps for another reason, taking one of two tasks: W2 gets the token."""
    w1 = engine.slot()
    engine.step(w1, rest=True)
    engine.job({A: (), B: ()}, {A, B})
    assert engine.tokens(w1) == [1]
    w2 = engine.slot()
    engine.checking = False  # W2 went idle in the instant before; staged by hand
    engine.link.command("ZADD", engine.keys("idle", PYTHON), 1, w2.id)
    engine.link.command("HSET", engine.keys("slot", w2.id), "idle", "1")
    engine.step(w1, want=1)
    assert engine.tokens(w1, w2) == [0, 1]


def test_a_slot_that_leaves_passes_its_token_on(engine: Engine) -> None:
    """H53: the token of a slot that died goes to another idle one."""
    w1 = engine.slot("w1")
    engine.step(w1, rest=True)
    engine.job({A: ()}, {A})
    assert engine.tokens(w1) == [1]
    w2 = engine.slot("w2")
    engine.checking = False  # no task is left over for W2 in any real history but this one
    engine.link.command("ZADD", engine.keys("idle", PYTHON), 1, w2.id)
    engine.link.command("HSET", engine.keys("slot", w2.id), "idle", "1")
    engine.unregister(w1)
    assert engine.tokens(w2) == [1]


@pytest.mark.parametrize("how", ["step", "unregister", "leave", "vanish"])
def test_a_token_in_the_hand_of_a_slot_that_leaves_is_not_lost(engine: Engine, how: str) -> None:
    """H53: W1 popped its token and was stopped in that instant; W2 does not sleep to its re-check."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    fall_idle(engine, w1, w2)
    engine.job({A: ()}, {A})
    engine.pop_token(w1)
    if how == "step":
        engine.step(w1, want=0)
    elif how == "unregister":
        engine.die(w1, begun=-1)
    elif how == "leave":
        engine.leave("w1")
    else:
        assert engine.lose_worker("w1") == ["w1"]
    assert engine.tokens(w2) == [1]


def test_a_worker_that_leaves_may_have_many_tokens_in_hand(engine: Engine) -> None:
    """H53: its two slots popped one each; two others are woken for the two tasks."""
    leaving = [engine.slot("w1"), engine.slot("w1")]
    others = [engine.slot("w2") for _ in range(3)]
    fall_idle(engine, *leaving, *others)
    engine.job({A: (), B: ()}, {A, B})
    for slot in leaving:
        engine.pop_token(slot)
    engine.leave("w1")
    assert sorted(engine.tokens(*others)) == [0, 1, 1]


@pytest.mark.parametrize("popped", [True, False])
def test_a_token_for_a_restricted_task_is_passed_on_to_an_able_slot(
    engine: Engine, popped: bool
) -> None:
    """H53, H55: gpu slot W1 leaves, its token in hand or not: cpu slot W2, idle for longer, is no help."""
    cpu, w1, w3 = engine.slot("w2"), engine.slot("w1", ("gpu",)), engine.slot("w3", ("gpu",))
    fall_idle(engine, cpu, w1, w3)
    engine.job({A: ()}, {A}, hard={A: ("gpu",)})
    assert engine.tokens(cpu, w1, w3) == [0, 1, 0]
    if popped:
        engine.pop_token(w1)
    engine.step(w1, want=0)
    assert engine.tokens(cpu, w3) == [0, 1]


def test_a_slot_that_leaves_wakes_nobody_in_vain(engine: Engine) -> None:
    """Nothing is ready, or nothing that the idle may run."""
    w1, cpu = engine.slot("w1"), engine.slot("w2")
    fall_idle(engine, cpu)
    engine.step(w1, want=0)
    engine.job({A: ()}, {A}, hard={A: ("gpu",)})
    engine.job({A: ()}, {A}, python="python3.9")
    engine.unregister(w1)
    assert engine.tokens(cpu) == [0]


def test_leaving_the_idle_set_without_a_lease(engine: Engine) -> None:
    """H54: a slot that got work in another queue asks for nothing here, and is not idle here."""
    w1 = engine.slot()
    engine.step(w1, rest=True)
    engine.step(w1, want=0)
    assert idle(engine) == set()


def test_a_restricted_task_wakes_a_slot_that_may_run_it(engine: Engine) -> None:
    """H55: a gpu task wakes the gpu slot, not the other; and only that one gets it."""
    cpu, gpu = engine.slot("c"), engine.slot("g", ("gpu",))
    engine.step(cpu, rest=True)
    engine.step(gpu, rest=True)
    engine.job({A: ()}, {A}, hard={A: ("gpu",)})
    assert engine.tokens(cpu, gpu) == [0, 1]
    assert engine.step(cpu, rest=True).lease is None
    assert engine.step(gpu).tasks == [A]


@pytest.mark.parametrize("others", [1, 230])
def test_a_restricted_task_wakes_no_slot_of_another_python(engine: Engine, others: int) -> None:
    """H55: gpu slots of Python 3.9, idle for longer, could not run it, and the able one would sleep on."""
    engine.checking = others == 1  # each check reads the whole state
    old = [engine.slot("old", ("gpu",), python="python3.9") for _ in range(others)]
    able = engine.slot("new", ("gpu",))
    fall_idle(engine, *old, able)
    engine.job({A: (), B: ()}, {A, B}, hard={A: ("gpu",), B: ("gpu",)})
    engine.check()
    assert engine.tokens(able) == [1]
    assert sum(engine.tokens(*old)) == 0
    assert idle(engine, "gpu") == {slot.id for slot in old}


def test_a_lease_that_came_back_wakes(engine: Engine) -> None:
    """H55: hand-back makes work too."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    engine.job({A: ()}, {A})
    engine.step(w1)
    engine.step(w2, rest=True)
    engine.unregister(w1)
    assert engine.tokens(w2) == [1]


def test_a_large_input_keeps_its_user_for_its_holder(engine: Engine) -> None:
    """Soft tags: W2 is told when to look again, and takes over when the wait is over."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: (), B: (A,), C: ()}, {B, C}, chunk=1)
    assert engine.step(w1).tasks == [A]
    assert engine.step(w2).tasks == [C]
    assert engine.finish(w1, A, apart={A}, want=0).lease is None
    answer = engine.finish(w2, C)
    assert answer.lease is None
    assert answer.retry > 0
    engine.link.command("HSET", engine.keys("job", job), "patience", "0")
    assert engine.step(w2).tasks == [B]


def test_the_set_of_a_slot_that_left_is_everyones(engine: Engine) -> None:
    """H56: a dead owner's tasks do not wait for it."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    engine.job({A: (), B: (A,)}, {B}, chunk=1)
    engine.step(w1)
    engine.finish(w1, A, apart={A}, want=0)
    engine.unregister(w1)
    assert engine.step(w2).tasks == [B]


def test_the_holder_of_a_large_input_takes_its_user_first(engine: Engine) -> None:
    """W1 holds A; among C, which anybody may run, and A's user D, it gets D."""
    w1 = engine.slot()
    engine.job({A: (), B: (), C: (), D: (A,)}, {B, C, D}, chunk=1)
    assert engine.step(w1).tasks == [A]
    assert engine.finish(w1, A, apart={A}).tasks == [D]


def test_a_higher_priority_comes_first(engine: Engine) -> None:
    """Among jobs: priority, whatever came earlier."""
    w1 = engine.slot()
    low = engine.job({A: (), B: ()}, {A, B}, chunk=1)
    high = engine.job({A: (), B: ()}, {A, B}, chunk=1, priority=3)
    lease = engine.step(w1).lease
    assert lease is not None
    assert lease.job == high
    assert low != high


def test_what_a_task_computes_comes_before_what_its_job_still_has(engine: Engine) -> None:
    """W1 computes in A of J; who stands in for it takes that, and not B, which may need A."""
    w1, stand_in = engine.slot("w1"), engine.slot("w2")
    j = engine.job({A: (), B: ()}, {A, B}, chunk=1)
    assert engine.step(w1).tasks == [A]
    nested = engine.job({A: (), B: ()}, {A, B}, chunk=1, parent=j)
    urgent = engine.job({A: ()}, {A}, chunk=1, priority=1)
    leases = [engine.step(stand_in).lease]
    leases += [engine.finish(stand_in, A).lease for _ in range(2)]
    assert [lease.job for lease in leases if lease] == [urgent, nested, nested]


def test_jobs_take_turns(engine: Engine) -> None:
    """H59: of equal priority the least recently served; one task does not wait behind a million."""
    w1 = engine.slot()
    jobs = [engine.job({A: (), B: (), C: ()}, {A, B, C}, chunk=1) for _ in range(2)]
    served = []
    for _ in range(4):
        lease = (
            engine.step(w1).lease
            if w1.lease is None
            else engine.finish(w1, w1.lease.tasks[0]).lease
        )
        assert lease is not None
        served.append(lease.job)
    assert set(served[:2]) == set(jobs)
    assert set(served[2:]) == set(jobs)


def test_a_fair_share_caps_a_chunk(engine: Engine) -> None:
    """Two slots, 16 tasks: the first gets a quarter, however much it wants."""
    w1 = engine.slot("w1")
    engine.slot("w2")
    engine.job(dict.fromkeys(range(16), ()), set(range(16)))
    assert engine.step(w1, want=1000).tasks == [0, 1, 2, 3]


@pytest.mark.parametrize(("chunk", "expected"), [(3, 3), (-1, 8)])
def test_a_chunk_size_is_kept(engine: Engine, chunk: int, expected: int) -> None:
    """``chunk_size=k`` gives k, -1 spreads evenly over the slots."""
    w1 = engine.slot("w1")
    engine.slot("w2")
    engine.job(dict.fromkeys(range(16), ()), set(range(16)), chunk=chunk)
    assert len(engine.step(w1).tasks) == expected


def test_tasks_of_a_job_not_known_come_one_by_one(engine: Engine) -> None:
    """H13: `want` was measured on another job; here a task may take an hour."""
    w1 = engine.slot()
    engine.job(dict.fromkeys(range(16), ()), set(range(16)))
    assert engine.step(w1, known="another").tasks == [0]


def test_jobs_in_turns_are_each_leased_by_their_own_pace(engine: Engine) -> None:
    """The slot worked for B last, and A, of which it knows too, is due: not one task at a time."""
    w1 = engine.slot()
    a, b = (engine.job(dict.fromkeys(range(16), ()), set(range(16))) for _ in range(2))
    want = {a: 3, b: 5}
    leases = [engine.step(w1, known=b, want=5, others=[a, 3, 1]).lease]
    leases.append(engine.finish(w1, known=a, want=3, others=[b, 5, 1]).lease)
    assert {lease.job: len(lease.tasks) for lease in leases if lease is not None} == want


def test_another_pythons_job_is_not_leased(engine: Engine) -> None:
    """Pickled functions need the same minor version."""
    w1 = engine.slot()
    engine.job({A: ()}, {A}, python="python3.9")
    assert engine.step(w1, rest=True).lease is None
