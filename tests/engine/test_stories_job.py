"""Upload, values, delivery, long edge lists, the end of a job. Rules 5, 7, 10, 15-17, 20, 21."""

from __future__ import annotations

import pytest
from driver import NEVER, Engine
from invariants import JobView

from dask_redisq.cache import ValueCache
from dask_redisq.codec import pack
from dask_redisq.pace import EDGES

A, B, C, D = range(4)


def view(engine: Engine, job: str) -> JobView:
    """Return the job as it is now."""
    return JobView(engine.state(), job, engine.graphs[job])


def test_a_task_waits_for_its_block(engine: Engine) -> None:
    """H44: A's user B sits in a block that is still being pickled: it is not leased."""
    w1 = engine.slot()
    job = engine.create({A: (), B: (A,)}, {B}, block=1)
    engine.put_block(job, 0)
    assert engine.step(w1).tasks == [A]
    assert engine.finish(w1, A).lease is None
    engine.put_block(job, 1)
    assert engine.step(w1).tasks == [B]


def test_a_client_may_wait_from_the_seal_on(engine: Engine) -> None:
    """There is nothing to ask for yet: the first output wakes it, as if it had asked."""
    w1, job = engine.slot(), engine.create({A: (), B: (A,)}, {B})
    engine.put_block(job, 0)
    assert engine.seal(job, wait=True) == b"waiting"
    news = engine.keys("news", job)
    engine.step(w1)
    engine.finish(w1, A)
    assert engine.link.command("LLEN", news) == 0
    engine.finish(w1, B)
    assert engine.link.command("LLEN", news) == 1
    # The reply was lost, and the same is sent again: now there is something.
    assert engine.seal(job, wait=True) == b"done"
    assert engine.link.command("LLEN", news) == 1
    assert list(engine.gather(job).values) == [B]


@pytest.mark.parametrize("what", ["output", "edges", "frozen", "damaged"])
def test_a_client_with_something_to_ask_for_does_not_wait(engine: Engine, what: str) -> None:
    """An output that came before the seal; edges that its question counts; a rebuild that it makes."""
    w1, job = engine.slot(), engine.create({A: (), B: ()}, {A, B}, chunk=1)
    engine.put_block(job, 0)
    hash_of_job = engine.keys("job", job)
    if what == "output":
        engine.step(w1)
        engine.finish(w1, A, want=0)
    elif what == "edges":
        engine.checking = False
        engine.link.command("RPUSH", engine.keys("settle", job), pack([[], [], ""]))
    else:
        engine.checking = False
        engine.link.command("HSET", hash_of_job, what, "1")
    assert engine.seal(job, wait=True) == b"running"
    assert not engine.link.command("HEXISTS", hash_of_job, "waiting")
    engine.link.command("FLUSHALL")


def test_an_upload_that_is_sent_twice_resets_nothing(engine: Engine) -> None:
    """H46: staging, create and blocks come again while the job runs."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (A,)}, {B})
    engine.step(w1)
    engine.finish(w1, A, want=0)
    before = view(engine, job)
    engine.stage(job)
    assert engine.put_block(job, 0) == b"running"
    assert engine.seal(job) == b"running"
    after = view(engine, job)
    assert (after.wait, after.finished, after.sets) == (before.wait, before.finished, before.sets)
    engine.link.command("DEL", engine.keys("new_wait", job), engine.keys("new_consumers", job))


def test_an_upload_that_comes_after_the_end_does_not_bring_the_job_back(engine: Engine) -> None:
    """It was cancelled and removed while its client made a new connection; all is sent again."""
    job = engine.create({A: ()}, {A})
    engine.call("cancel", job=job, reason="enough", tomb="1")
    engine.sweep(job)
    assert engine.create_again(job) == b"over"
    assert engine.put_block(job, 0) == b""
    assert not engine.link.command("EXISTS", engine.keys("job", job))
    engine.link.command("DEL", engine.keys("new_wait", job), engine.keys("new_consumers", job))


def test_what_is_staged_for_a_job_does_not_outlive_it(engine: Engine) -> None:
    """Its client staged it again, then gave it up; a late copy of create finds nothing to make it of."""
    job = engine.create({A: ()}, {A})
    engine.stage(job)
    engine.remove(job)
    assert engine.create_again(job, staged=False) == b"unstaged"


def test_an_unsealed_job_is_not_done(engine: Engine) -> None:
    """H51: all that is there is finished, and a block is still to come."""
    w1 = engine.slot()
    job = engine.create({A: (), B: ()}, {A, B}, block=1)
    engine.put_block(job, 0)
    engine.step(w1)
    engine.finish(w1, A)
    assert engine.gather(job).state == "running"
    assert engine.seal(job) == b"incomplete"


def test_outputs_are_freed_by_their_receipt(engine: Engine) -> None:
    """H48: the answer may be lost, so the next question frees; asked twice it frees once."""
    w1 = engine.slot()
    job = engine.job({A: (), B: ()}, {A, B}, chunk=1)
    engine.step(w1)
    engine.finish(w1, A)
    first = engine.gather(job)
    assert set(first.values) == {A}
    assert engine.gather(job).values == first.values
    assert set(view(engine, job).values) == {A}
    assert engine.gather(job, first.cursor).values == {}
    assert view(engine, job).values == {}
    assert engine.gather(job, first.cursor).values == {}


def test_a_value_that_nobody_saw_expires(engine: Engine) -> None:
    """H21: W1 stored a large value and died before its step: the key has an expiry of minutes."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (A,)}, {B})
    engine.step(w1)
    engine.groups(w1, [A], apart={A})
    name = engine.keys("value", job, A, w1.attempt)
    assert 0 < engine.link.command("PTTL", name) <= 600_000
    engine.unregister(w1)


def test_a_missing_input_is_a_question(engine: Engine) -> None:
    """H24, H25: done by others, there after all, or really gone: then it is parked, and made again."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (A,), C: (A,)}, {B, C}, chunk=1)
    engine.step(w1)
    assert engine.finish(w1, A).tasks == [B]
    assert engine.call("report_missing", job=job, task=B, input=A) == b"there"
    engine.finish(w1, B)
    assert engine.call("report_missing", job=job, task=B, input=A) == b"finished"
    engine.checking = False
    engine.link.command("HDEL", engine.keys("values", job), A)
    assert engine.call("report_missing", job=job, task=C, input=A) == b"parked"
    engine.doubtful.add(job)
    engine.checking = True
    assert engine.step(w1).lease is None  # else it would be leased again and again
    assert engine.gather(job).wanted == 1
    assert engine.rebuild(job)
    assert engine.step(w1).tasks == [A]
    assert engine.finish(w1, A).tasks == [C]


@pytest.mark.parametrize("apart", [(), (A,)], ids=["inline", "apart"])
def test_a_value_goes_with_its_last_user(engine: Engine, apart: tuple[int, ...]) -> None:
    """R5: freed by the script that accepts the last user, wherever it was kept."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (A,), C: (A,)}, {B, C}, chunk=1)
    engine.step(w1)
    engine.finish(w1, A, apart=apart)
    engine.finish(w1, B)
    assert A in view(engine, job).values
    engine.finish(w1, C)
    assert A not in view(engine, job).values
    assert not [n for n in engine.state().content if f":value:{A}:" in n]


def test_long_edge_lists_are_counted_in_slices(engine: Engine) -> None:
    """H62: a fan-out and a fan-in of 5,000: done only when the last slice was counted."""
    n = 5000
    assert n > EDGES
    engine.replay = False
    w1 = engine.slot()
    graph = {0: ()} | dict.fromkeys(range(1, n + 1), (0,)) | {n + 1: tuple(range(1, n + 1))}
    job = engine.job(graph, {n + 1})
    engine.link.command("CONFIG", "SET", "slowlog-log-slower-than", "100000")
    engine.link.command("SLOWLOG", "RESET")
    assert engine.step(w1).tasks == [0]
    answer = engine.finish(w1, 0)
    assert engine.link.command("LLEN", engine.keys("settle", job)) > 0
    while engine.gather(job).state == "running":
        assert w1.lease is None or answer.lease is not None
        answer = engine.finish(w1, *w1.lease.tasks) if w1.lease else engine.step(w1)
    assert engine.gather(job).state == "done"
    assert engine.link.command("SLOWLOG", "LEN") == 0


def test_nothing_is_made_again_after_the_removal(engine: Engine) -> None:
    """H42: late calls of all kinds come to a job that was swept."""
    w1 = engine.slot()
    job = engine.job({A: (), B: ()}, {A, B}, chunk=1)
    engine.step(w1)
    groups = engine.groups(w1, [A])
    engine.remove(job)
    late = engine.prepare(w1, groups)
    engine.send(late)
    for script, args in (
        (
            "put_block",
            {
                "number": 0,
                "first": 0,
                "count": 2,
                "payload": b"x",
                "edges": b"",
                "consts": b"\x90",
                "near": b"\x90",
                "about": b"",
            },
        ),
        ("announce", {"digest": "d"}),
        ("seal", {"wait": 1}),
        ("cancel", {"reason": "", "tomb": "1"}),
        ("gather", {"cursor": 0, "gen": "", "limit": 10}),
        ("report_missing", {"task": A, "input": A}),
        ("renew_values", {"cursor": "0"}),
        ("sweep", {}),
    ):
        engine.link.call(script, engine.keys, job=job, **args)
    assert not [name for name in engine.state().content if ":job:" in name]


def test_a_cancelled_job_leases_nothing(engine: Engine) -> None:
    """R21: one flag, which every script reads first; leases that come back stay away."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: (), B: ()}, {A, B}, chunk=1)
    engine.step(w1)
    engine.call("cancel", job=job, reason="enough", tomb="")
    assert engine.step(w2, rest=True).lease is None
    assert engine.finish(w1, A).refused == [A]
    assert engine.gather(job).error[2] == b"enough"
    engine.sweep(job)


def test_a_job_without_its_client_ends(engine: Engine) -> None:
    """H50: whoever looks after the dead cancels it, and it can be swept."""
    job = engine.job({A: ()}, {A})
    engine.link.command("DEL", engine.keys("client", job), engine.keys("monitor"))
    engine.call("recover", who="test", interval=1000, deadline=NEVER)
    found = engine.gather(job)
    assert (found.state, found.error[0]) == ("cancelled", b"client")
    engine.sweep(job)


def test_a_task_that_a_rebuild_took_off_its_lease_counts_once(engine: Engine) -> None:
    """R12: W1 runs B when its input A is lost; A and B go to W2; W1's late B is taken from there."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    job = engine.job({A: (), B: (A,)}, {B})
    engine.step(w1)
    assert engine.finish(w1, A, want=1).tasks == [B]
    engine.lose_value(job, A)
    assert engine.call("report_missing", job=job, task=B, input=A) == b"parked"
    assert engine.rebuild(job)
    assert engine.step(w2).tasks == [A]
    assert engine.finish(w2, A, want=1).tasks == [B]
    engine.finish(w1, B, want=0)
    assert view(engine, job).finished == {A, B}
    assert view(engine, job).leases[w2.id][1] == []


def test_a_count_that_is_wrong_is_seen(engine: Engine) -> None:
    """H67: nothing ready, nothing leased, unfinished, sealed: told, not waited for."""
    job = engine.job({A: ()}, {A})
    engine.checking = False
    engine.link.command("DEL", engine.keys("ready", job), engine.keys("active"))
    assert engine.gather(job).wanted == 1
    assert engine.rebuild(job)
    assert view(engine, job).sets == {"": {A}}


def test_a_cache_serves_one_epoch_of_one_job() -> None:
    """R8: another job, or another epoch, starts from nothing."""
    cache = ValueCache(limit=2000)
    cache.turn_to("job", "one")
    cache.put(A, "a", 100)
    assert cache.found([A]) == {A: "a"}
    cache.turn_to("job", "one")
    assert A in cache
    cache.turn_to("job", "two")
    assert A not in cache
    for task in range(10):
        cache.put(task, task, 400)
    assert cache.bytes <= 2000
    assert 9 in cache
    assert 0 not in cache


def test_results_of_an_old_epoch_are_refused(engine: Engine) -> None:
    """R13: a component that was computed under another history of the job does not count."""
    w1 = engine.slot()
    job = engine.job({A: ()}, {A})
    engine.step(w1)
    args = engine.prepare(w1, engine.groups(w1, [A]))
    answer = engine.send({**args, "epoch": "another"})
    assert answer.refused == [A]
    assert view(engine, job).finished == set()
