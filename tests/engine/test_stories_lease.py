"""Leases, replays, deaths. Rules 3, 6 and 11."""

from __future__ import annotations

from driver import NEVER, Engine
from invariants import JobView

from dask_redisq.codec import pack

A, B, C, D, E, F = range(6)


def view(engine: Engine, job: str) -> JobView:
    """Return the job as it is now."""
    return JobView(engine.state(), job, engine.graphs[job])


def test_a_step_whose_reply_was_lost_leases_once(engine: Engine) -> None:
    """H15: the same call again has the same answer and the same state."""
    w1 = engine.slot()
    job = engine.job({A: (), B: ()}, {A, B})
    args = engine.prepare(w1, want=1)
    first, before = engine.send(args), engine.state()
    assert engine.send(args) == first
    assert engine.state().difference(before) == {}
    assert view(engine, job).leases == {w1.id: (1, [A])}


def test_an_old_call_after_a_newer_one_is_refused(engine: Engine) -> None:
    """H16: a copy of call 1 arrives after call 2: nothing is leased, nothing is handed back."""
    w1 = engine.slot()
    job = engine.job({A: (), B: ()}, {A, B})
    engine.step(w1, want=1)
    assert engine.finish(w1, A, want=1).tasks == [B]
    before = engine.state()
    answer = engine.send(w1.calls[0])
    assert (answer.status, answer.lease) == ("stale", None)
    assert engine.state().difference(before) == {}
    assert view(engine, job).leases == {w1.id: (2, [B])}


def test_an_unregistered_slot_may_finish_but_not_lease(engine: Engine) -> None:
    """H17: the step of a dead slot arrives after its supervisor gave its lease back."""
    w1, w2 = engine.slot(), engine.slot()
    job = engine.job({A: (), B: ()}, {A, B})
    engine.step(w1, want=1)
    in_flight = engine.prepare(w1, engine.groups(w1, [A]), rest=True)
    engine.die(w1, A)
    answer = engine.send(in_flight)
    assert (answer.status, answer.refused, answer.lease) == ("unregistered", [], None)
    assert view(engine, job).finished == {A}
    assert engine.step(w2).tasks == [B]


def test_a_slot_that_never_registered_leases_nothing(engine: Engine) -> None:
    """H17: only a supervisor registers; and no key is made for such a slot."""
    w1 = engine.slot()
    engine.job({A: ()}, {A})
    engine.unregister(w1)
    w1.seq = 0
    before = engine.state()
    assert engine.step(w1, rest=True).status == "unregistered"
    assert engine.state().difference(before) == {}


def test_a_new_call_ends_the_old_lease(engine: Engine) -> None:
    """R6: what is unfinished and not in the batch goes back, and no lease is left without its slot."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (), C: ()}, {A, B, C})
    assert engine.step(w1, floor=1000).tasks == [A, B, C]
    engine.finish(w1, A, want=0)
    assert view(engine, job).leases == {}
    assert view(engine, job).sets == {"": {B, C}}


def test_the_end_of_a_lease_knows_whose_tasks_were_done(engine: Engine) -> None:
    """H18: the server holds a lease of another job than the slot reports; equal numbers are not equal tasks."""
    w1, w2 = engine.slot(), engine.slot()
    mine = engine.job({A: (), B: ()}, {A, B})
    engine.step(w1, want=1)
    late = engine.prepare(w1, engine.groups(w1, [A]), want=0, seq=9)
    other = engine.job({A: ()}, {A}, priority=1)
    engine.doubtful.update({mine, other})  # the numbers say that the server came back older
    lease = engine.step(w1, seq=5).lease
    assert lease is not None
    assert lease[:7] == view_lease(engine, other, w1.id)
    assert engine.send(late).status == "frozen"
    assert engine.rebuild(mine)
    assert engine.rebuild(other)
    assert engine.send(late).refused == [A]
    assert view(engine, other).sets == {"": {A}}
    assert engine.step(w2).lease is not None


def view_lease(engine: Engine, job: str, slot: str) -> object:
    """Return the lease of a slot as step answers it."""
    seq, tasks = view(engine, job).leases[slot]
    return (job, engine.epochs[job], 0, 128, False, tasks, seq)


def test_renew_gives_back_a_lease_that_its_slot_does_not_know(engine: Engine) -> None:
    """H18: the server came back with lease 1, the slot is at 9: nobody else would look at lease 1."""
    w1, w2 = engine.slot(), engine.slot()
    engine.job({A: (), B: (A,)}, {B})
    lease = engine.step(w1).lease
    assert lease is not None
    assert engine.renew(w1, w2) == b"ok"
    assert engine.step(w2).lease is None
    w1.lease = lease._replace(seq=9)
    assert engine.renew(w1, w2) == b"ok"
    answer = engine.step(w2)
    assert answer.tasks == [A]
    assert answer.lease is not None
    assert answer.lease.alone


def test_renew_does_not_take_a_lease_whose_answer_is_under_way(engine: Engine) -> None:
    """H18: the supervisor still sees the lease before."""
    w1 = engine.slot()
    job = engine.job({A: (), B: ()}, {A, B})
    before = engine.step(w1, want=1).lease
    engine.finish(w1, A)
    w1.lease = before
    assert engine.renew(w1) == b"ok"
    assert view(engine, job).leases == {w1.id: (2, [B])}


def test_renew_makes_no_registration(engine: Engine) -> None:
    """H42: the worker, or one of its slots, was removed for a reason; it is told, and may register."""
    w1, w2 = engine.slot(), engine.slot()
    engine.unregister(w1)
    assert engine.renew(w1, w2) == b"unknown"
    assert engine.state().members("slots") == {w2.id}
    engine.leave("w")
    before = engine.state()
    assert engine.renew(w1) == b"unknown"
    assert engine.state().difference(before) == {}


def test_registering_again_forgets_no_lease(engine: Engine) -> None:
    """H46: a replay of register leaves a slot as it is."""
    w1 = engine.slot()
    job = engine.job({A: ()}, {A})
    engine.step(w1)
    engine.register(w1)
    assert view(engine, job).leases == {w1.id: (1, [A])}
    assert engine.finish(w1, A).refused == []


def test_what_may_have_run_before_runs_alone(engine: Engine) -> None:
    """H5: the lease of a vanished worker is leased task by task, without continuation."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: (), B: (), C: (), D: (A, B, C)}, {D})
    assert engine.step(w1, floor=1000).tasks == [A, B, C]
    assert engine.lose_worker("w1") == ["w1"]
    answer = engine.step(w2, floor=1000)
    for task in (A, B, C):
        assert answer.tasks == [task]
        assert answer.lease is not None
        assert answer.lease.alone
        answer = engine.finish(w2, task, floor=1000)
    assert answer.tasks == [D]
    assert answer.lease is not None
    assert not answer.lease.alone
    assert view(engine, job).alone == set()


def test_a_careful_task_stops_a_chunk_before_itself(engine: Engine) -> None:
    """H5: tasks before it are leased together, then it alone, then those after it."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    engine.job(dict.fromkeys(range(5), ()), set(range(5)))
    engine.step(w1, floor=1000)
    engine.die(w1, begun=C, position=-1)
    assert engine.step(w2, floor=1000).tasks == [A, B]
    assert engine.finish(w2, A, B, floor=1000).tasks == [C]
    assert engine.finish(w2, C, floor=1000).tasks == [D, E]


def test_a_refused_task_runs_alone(engine: Engine) -> None:
    """R3: its value was not seen; it is leased singly, so the next try reports it at once."""
    w1 = engine.slot()
    job = engine.job({A: (), B: ()}, {A, B})
    engine.step(w1, floor=1000)
    groups = engine.groups(w1, [A, B], apart={A, B})
    for task in (A, B):
        engine.link.command("DEL", engine.keys("value", job, task, w1.attempt))
    answer = engine.step(w1, groups, floor=1000)
    assert (answer.refused, answer.tasks) == ([A, B], [A])
    assert answer.lease is not None
    assert answer.lease.alone


def test_tasks_handed_back_unbegun_are_as_good_as_new(engine: Engine) -> None:
    """R3: they did not run, so they are leased together again."""
    w1 = engine.slot()
    engine.job({A: (), B: (), C: ()}, {A, B, C})
    engine.step(w1, floor=1000)
    answer = engine.finish(w1, A, floor=1000)
    assert answer.tasks == [B, C]
    assert answer.lease is not None
    assert not answer.lease.alone


def test_a_death_is_charged_to_the_task_that_was_running(engine: Engine) -> None:
    """H11: of a lease of four the third was running: one death, and only what had begun runs alone."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (), C: (), D: ()}, {A, B, C, D})
    assert engine.step(w1, floor=1000).tasks == [A, B, C, D]
    engine.die(w1, begun=C, position=2)
    assert engine.state().mapping("deaths", job).keys() == {str(C)}
    assert view(engine, job).alone == {A, B, C}


def test_a_poison_that_follows_is_charged_itself(engine: Engine) -> None:
    """H11: B ran after A in the lease of A and killed the slot: B is charged; A runs again, alone."""
    w1, w2 = engine.slot(), engine.slot()
    job = engine.job({A: (), B: (A,)}, {B})
    engine.step(w1)
    engine.die(w1, begun=B)
    assert engine.state().mapping("deaths", job).keys() == {str(B)}
    assert view(engine, job).alone == {A, B}
    answer = engine.step(w2)
    assert answer.tasks == [A]
    assert answer.lease is not None
    assert answer.lease.alone


def test_the_nth_death_fails_the_job(engine: Engine) -> None:
    """R9: after `allowed` deaths the job ends with the name of the task and all records; never later."""
    job = engine.job({A: (), B: ()}, {A, B}, allowed=2)
    for death in range(2):
        slot = engine.slot(f"w{death}")
        assert engine.step(slot, want=1).tasks == [A]
        engine.die(slot, begun=A)
    found = engine.gather(job)
    records = pack([pack(["w0", -9]), pack(["w1", -9])])
    assert (found.state, found.error) == ("failed", [b"died", A, records, b""])
    assert engine.step(engine.slot()).lease is None
    engine.sweep(job)


def test_a_death_told_twice_is_one_death(engine: Engine) -> None:
    """H68: the registration that unregister removes makes its replay do nothing."""
    w1 = engine.slot()
    job = engine.job({A: ()}, {A}, allowed=2)
    lease = engine.step(w1).lease
    for _ in range(3):
        w1.lease = lease
        engine.die(w1, begun=A)
    assert view(engine, job).meta["state"] == b"running"


def test_a_vanished_host_charges_nobody(engine: Engine) -> None:
    """R9: of a host that is gone nobody knows what it was running."""
    job = engine.job({A: (), B: ()}, {A, B}, allowed=1)
    for number in range(3):
        slot = engine.slot(f"w{number}")
        engine.step(slot, want=1)
        assert engine.lose_worker(f"w{number}") == [f"w{number}"]
    assert engine.state().mapping("deaths", job) == {}
    assert view(engine, job).meta["state"] == b"running"
    assert engine.state().mapping("workers") == {}


def test_a_worker_that_leaves_gives_all_its_leases_back(engine: Engine) -> None:
    """R11: an orderly leave is no death."""
    w1, w2, other = engine.slot("w1"), engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: (), B: ()}, {A, B}, allowed=1)
    engine.step(w1, want=1)
    engine.step(w2, want=1)
    engine.leave("w1")
    assert view(engine, job).sets == {"": {A, B}}
    assert engine.state().members("slots") == {other.id}


def test_a_slot_that_dies_with_its_step_under_way_is_charged_for_nothing(engine: Engine) -> None:
    """H17: call 2 arrived, its answer did not; lease 2 never ran, and lease 1 is finished."""
    w1, w2 = engine.slot(), engine.slot()
    job = engine.job({A: (), B: ()}, {A, B}, allowed=1)
    before = engine.step(w1, want=1).lease
    engine.finish(w1, A)
    w1.lease = before
    engine.die(w1, begun=A)
    assert view(engine, job).meta["state"] == b"running"
    answer = engine.step(w2)
    assert answer.tasks == [B]
    assert answer.lease is not None
    assert not answer.lease.alone


def test_nobody_is_charged_for_a_task_that_others_finished(engine: Engine) -> None:
    """H10: W1's late result of A counts; W2 dies in A a moment later: the job goes on."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: (), B: (A,)}, {B}, allowed=1)
    engine.step(w1)
    late = engine.prepare(w1, engine.groups(w1, [A]))
    engine.lose_worker("w1")
    engine.step(w2)
    engine.send(late)
    engine.die(w2, begun=A)
    assert view(engine, job).meta["state"] == b"running"
    assert view(engine, job).alone == set()


def test_a_worker_that_comes_back_after_its_death_leases_again(engine: Engine) -> None:
    """H39: it was presumed dead, is told so, registers its slots again, and goes on with its numbers."""
    w1 = engine.slot()
    job = engine.job({A: (), B: ()}, {A, B})
    engine.step(w1, want=1)
    late = engine.groups(w1, [A])
    engine.lose_worker("w")
    assert engine.renew(w1) == b"unknown"
    engine.register(w1)
    answer = engine.step(w1, late)
    assert (answer.status, answer.refused, answer.tasks) == ("ok", [], [B])
    assert view(engine, job).finished == {A}


def test_one_look_for_the_dead_per_interval(engine: Engine) -> None:
    """R14: monitors share the time of the last look, each by its interval; the alive key decides."""
    w1 = engine.slot("w1")
    assert engine.call("recover", who="one", interval=60_000, deadline=NEVER) == pack(
        [1, [], [], [], []]
    )
    engine.link.command("DEL", engine.keys("alive", "w1"))
    assert engine.call("recover", who="two", interval=60_000, deadline=NEVER) == pack(
        [0, [], [], [], []]
    )
    assert engine.state().members("slots") == {w1.id}
    engine.link.command("HSET", engine.keys("monitor"), "recovery", "1000 one")  # long ago
    assert engine.call("recover", who="three", interval=1000, deadline=NEVER) == pack(
        [1, ["w1"], [], [], []]
    )
