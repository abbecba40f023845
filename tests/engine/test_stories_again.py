"""Tasks that run again, and tasks that are held up. Rules 3 and 9, holes H13, H14b and H68."""

from __future__ import annotations

import pytest
from driver import LONG, NEVER, Engine
from invariants import JobView

from dask_redisq.codec import pack

A, B, C, D = range(4)


def view(engine: Engine, job: str) -> JobView:
    """Return the job as it is now."""
    return JobView(engine.state(), job, engine.graphs[job])


# Retries


def test_a_failure_with_retries_left_runs_again_alone(engine: Engine) -> None:
    """R3: A of the lease {A, B} raises: B goes back as new, A comes back by itself; no sibling stops."""
    w1 = engine.slot()
    job = engine.job({A: (), B: ()}, {A, B}, retries=1)
    engine.step(w1, floor=1000)
    answer = engine.step(w1, failure=(A, b"boom"), floor=1000)
    assert view(engine, job).meta["state"] == b"running"
    assert answer.tasks == [A]
    assert answer.lease is not None
    assert answer.lease.alone
    assert engine.finish(w1, A).tasks == [B]


@pytest.mark.parametrize("retries", [0, 1])
def test_a_failure_of_what_the_same_batch_brings_does_not_count(
    engine: Engine, retries: int
) -> None:
    """A's large value arrived, the reply did not, and then the server was full: A is accepted."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (A,)}, {B}, retries=retries, retry_delay=60_000)
    engine.step(w1)
    assert engine.finish(w1, A, failure=(A, b"full")).tasks == [B]
    assert view(engine, job).finished == {A}
    assert view(engine, job).meta["state"] == b"running"


def test_the_last_try_ends_the_job_with_its_error(engine: Engine) -> None:
    """Two retries are three tries; the reason tells how many there were."""
    w1 = engine.slot()
    job = engine.job({A: ()}, {A}, retries=2)
    engine.step(w1)
    for number in range(2):
        assert engine.step(w1, failure=(A, b"boom %d" % number)).tasks == [A]
    assert engine.step(w1, failure=(A, b"boom 2")).tasks == []
    found = engine.gather(job)
    assert (found.state, found.error) == ("failed", [b"raised", A, b"boom 2", w1.id.encode(), 3])
    engine.sweep(job)


def test_a_failure_told_twice_costs_one_try(engine: Engine) -> None:
    """H68: the reply of the step that tells it is lost, and it is sent again, twice."""
    w1 = engine.slot()
    job = engine.job({A: ()}, {A}, retries=1)
    engine.step(w1)
    args = engine.prepare(w1, failure=(A, b"boom"))
    for _ in range(3):
        assert engine.send(args).tasks == [A]
    assert engine.state().mapping("tries", job) == {str(A): b"1"}
    assert view(engine, job).meta["state"] == b"running"


def test_a_tasks_own_retries_go_before_its_jobs(engine: Engine) -> None:
    """0 is not the same as none."""
    w1 = engine.slot()
    job = engine.job({A: (), B: ()}, {A, B}, retries=5)
    engine.step(w1, want=1)
    engine.step(w1, failure=(A, b"boom"), retries=0)
    assert view(engine, job).meta["state"] == b"failed"


def test_a_continuation_that_raises_is_tried_again_itself(engine: Engine) -> None:
    """R9: B followed from A in the lease of A; A is accepted, and B runs again alone."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (A,)}, {B}, retries=1)
    engine.step(w1)
    answer = engine.finish(w1, A, failure=(B, b"boom"))
    assert view(engine, job).finished == {A}
    assert answer.tasks == [B]
    assert answer.lease is not None
    assert answer.lease.alone


def test_a_late_failure_costs_no_try(engine: Engine) -> None:
    """H10: W1 was presumed dead, and raises for A while W2 runs it."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: ()}, {A}, retries=0)
    engine.step(w1)
    late = engine.prepare(w1, failure=(A, b"boom"))
    engine.lose_worker("w1")
    assert engine.step(w2).tasks == [A]
    engine.send(late)
    assert engine.state().mapping("tries", job) == {}
    assert engine.finish(w2, A).refused == []
    assert view(engine, job).meta["state"] == b"done"


@pytest.mark.parametrize("how", ["raises", "follows", "takes too long"])
def test_a_pause_before_the_next_try(engine: Engine, how: str) -> None:
    """The task is in no ready set; who finds nothing is told when to look; then it is leased alone."""
    w1, w2 = engine.slot(), engine.slot("w2")
    job = engine.job({A: (), B: (A,)}, {B}, retries=1, retry_delay=60_000)
    assert engine.step(w1).tasks == [A]
    assert engine.step(w2, rest=True).lease is None
    task = A
    match how:
        case "raises":
            answer = engine.step(w1, failure=(A, b"boom"))
            assert (answer.lease, 0 < answer.retry <= 60_000) == (None, True)
        case "follows":
            task = B
            assert engine.finish(w1, A, failure=(B, b"boom")).lease is None
        case _:
            engine.time_out(w1, begun=A)
    assert view(engine, job).delayed == {task}
    assert engine.tokens(w2) == [1], "nobody was woken to be told"
    answer = engine.step(w2, rest=True)
    assert (answer.lease, 0 < answer.retry <= 60_000) == (None, True)
    assert engine.gather(job).state == "running"
    engine.pass_time(job)
    answer = engine.step(w2)
    assert answer.tasks == [task]
    assert answer.lease is not None
    assert answer.lease.alone


def test_who_looks_for_the_dead_also_frees_what_is_due(engine: Engine) -> None:
    """The slot that was told when to look is gone; another one sleeps."""
    w1, w2 = engine.slot(), engine.slot("w2")
    job = engine.job({A: ()}, {A}, retries=1, retry_delay=60_000)
    engine.step(w1)
    engine.step(w1, failure=(A, b"boom"))
    engine.step(w2, rest=True)
    engine.pass_time(job)
    engine.link.command("DEL", engine.keys("monitor"))
    engine.call("recover", who="test", interval=LONG, deadline=NEVER)
    assert engine.tokens(w2) == [1]
    assert engine.step(w2).tasks == [A]


def test_a_delayed_task_may_be_finished_by_a_late_slot(engine: Engine) -> None:
    """R2: W1 was presumed dead; W2 failed in A, which waits; W1's A counts, and A runs no more."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: ()}, {A}, retries=1, retry_delay=60_000)
    engine.step(w1)
    late = engine.prepare(w1, engine.groups(w1, [A]))
    engine.lose_worker("w1")
    engine.step(w2)
    engine.step(w2, failure=(A, b"boom"))
    engine.send(late)
    assert view(engine, job).delayed == set()
    assert view(engine, job).meta["state"] == b"done"
    engine.sweep(job)


# Timeouts


def test_a_timeout_ends_the_job_or_costs_a_try(engine: Engine) -> None:
    """It is counted as a failure is, not as a death."""
    job = engine.job({A: (), B: ()}, {A, B}, retries=1, allowed=1)
    for number in range(2):
        assert view(engine, job).meta["state"] == b"running"
        slot = engine.slot(f"w{number}")
        assert engine.step(slot, want=1).tasks == [A]
        engine.time_out(slot, begun=A)
    found = engine.gather(job)
    assert found.state == "failed"
    kind, task, record, _, tries = found.error
    assert (kind, task, record, tries) == (b"timeout", A, pack(["w1", 1.5]), 2)
    assert engine.state().mapping("deaths", job) == {}


def test_a_timeout_told_twice_costs_one_try(engine: Engine) -> None:
    """H68: the registration that unregister removes makes its replay do nothing."""
    w1 = engine.slot()
    job = engine.job({A: ()}, {A}, retries=1)
    lease = engine.step(w1).lease
    for _ in range(3):
        w1.lease = lease
        engine.time_out(w1, begun=A)
    assert engine.state().mapping("tries", job) == {str(A): b"1"}
    assert view(engine, job).meta["state"] == b"running"


def test_nobody_is_charged_a_timeout_for_what_others_finished(engine: Engine) -> None:
    """H10: W1's late A counts while W2 still runs A, and is killed for it."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: (), B: (A,)}, {B})
    engine.step(w1)
    late = engine.prepare(w1, engine.groups(w1, [A]))
    engine.lose_worker("w1")
    engine.step(w2)
    engine.send(late)
    engine.time_out(w2, begun=A)
    assert view(engine, job).meta["state"] == b"running"


# Values that are gone before they count


def test_a_value_that_is_never_seen_ends_the_job_by_name(engine: Engine) -> None:
    """H14b: it expires between its SET and its step on every try; that is counted like deaths."""
    w1 = engine.slot()
    job = engine.job({A: ()}, {A}, allowed=3)
    engine.step(w1)
    for _ in range(3):
        assert view(engine, job).meta["state"] == b"running"
        groups = engine.groups(w1, [A], apart={A})
        engine.link.command("DEL", engine.keys("value", job, A, w1.attempt))
        engine.step(w1, groups)
    found = engine.gather(job)
    assert (found.state, found.error[:3]) == ("failed", [b"unseen", A, b"3"])


# Hostages


def test_what_waits_behind_a_long_task_is_given_back(engine: Engine) -> None:
    """H13: W1 leased A, B, C; A takes ten minutes; idle W2 is woken, and B and C are as good as new."""
    w1, w2 = engine.slot(), engine.slot("w2")
    job = engine.job({A: (), B: (), C: ()}, {A, B, C})
    assert engine.step(w1, floor=1000).tasks == [A, B, C]
    engine.step(w2, rest=True)
    assert engine.give_back(w1, 0) == b"given"
    assert engine.tokens(w2) == [1]
    answer = engine.step(w2, floor=1000)
    assert answer.tasks == [B, C]
    assert answer.lease is not None
    assert not answer.lease.alone
    assert view(engine, job).leases[w1.id] == (1, [A])
    assert engine.finish(w1, A).refused == []


def test_nothing_is_given_back_while_nobody_waits(engine: Engine) -> None:
    """All slots are busy: the tasks would only change hands."""
    w1 = engine.slot()
    job = engine.job({A: (), B: ()}, {A, B})
    engine.step(w1, floor=1000)
    assert engine.give_back(w1, 0) == b"nobody"
    assert view(engine, job).leases[w1.id] == (1, [A, B])


def test_a_lease_that_is_over_is_not_given_back(engine: Engine) -> None:
    """R6: the supervisor's call arrives after the slot's next step; that lease is another one."""
    w1, w2 = engine.slot(), engine.slot("w2")
    job = engine.job({A: (), B: (), C: ()}, {A, B, C})
    engine.step(w1, want=1)
    engine.finish(w1, A, floor=1000)
    engine.step(w2, rest=True)
    assert engine.give_back(w1, 0, seq=1) == b"over"
    assert view(engine, job).leases[w1.id] == (2, [B, C])
    engine.unregister(w1)
    assert engine.give_back(w1, 0, seq=2) == b"over"


def test_a_task_that_was_given_back_and_ran_all_the_same_counts_once(engine: Engine) -> None:
    """R2: W1 had not heard of it and is first with B: W2 loses B from its lease, and no set keeps C."""
    w1, w2 = engine.slot(), engine.slot("w2")
    job = engine.job({A: (), B: (), C: ()}, {A, B, C})
    engine.step(w1, floor=1000)
    engine.step(w2, rest=True)
    engine.give_back(w1, 0)
    assert engine.step(w2, want=1).tasks == [B]
    assert engine.finish(w1, A, B, C).refused == []
    assert view(engine, job).finished == {A, B, C}
    assert engine.finish(w2, B).refused == [B]
    assert view(engine, job).meta["state"] == b"done"


def test_a_failure_in_a_task_that_was_given_back_does_not_count(engine: Engine) -> None:
    """R9: W1 raises in B, which is W2's by now; whether B fails is for W2 to tell."""
    w1, w2 = engine.slot(), engine.slot("w2")
    job = engine.job({A: (), B: ()}, {A, B})
    engine.step(w1, floor=1000)
    engine.step(w2, rest=True)
    engine.give_back(w1, 0)
    assert engine.step(w2).tasks == [B]
    engine.finish(w1, A, failure=(B, b"boom"))
    assert view(engine, job).meta["state"] == b"running"
    engine.finish(w2, B)
    assert view(engine, job).meta["state"] == b"done"


def test_a_death_in_a_task_that_was_given_back_is_not_charged(engine: Engine) -> None:
    """R9: W2 holds it, and is charged when it dies of it too."""
    w1, w2 = engine.slot(), engine.slot("w2")
    job = engine.job({A: (), B: ()}, {A, B}, allowed=1)
    engine.step(w1, floor=1000)
    engine.step(w2, rest=True)
    engine.give_back(w1, 0)
    engine.die(w1, begun=B, position=1)
    assert view(engine, job).meta["state"] == b"running"
    assert view(engine, job).alone == {A}
