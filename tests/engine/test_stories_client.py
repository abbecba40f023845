"""A client that goes away: leases, detached jobs, tombs, and how long keys stay. Rules 15-17 and 21."""

from __future__ import annotations

import pytest
from driver import LONG, NEVER, Engine
from invariants import UNSEEN, JobView
from simulator.server import BEGIN, CLOCK, simulated

from dask_redisq.codec import pack, unpack
from dask_redisq.monitor import server_ms

A, B, C = range(3)
DAY = 24 * 3600 * 1000
LEASE = 200_000
#: The keys of its job stay for so long without it; longer than a value that nobody accepted.
LIFE = 5 * LEASE
TTL = 1_000_000


def look(engine: Engine) -> tuple[list[str], list[str]]:
    """Let a monitor look; return the jobs to remove, and those whose values are to be renewed."""
    engine.link.command("DEL", engine.keys("monitor"))
    looked, _, gone, _, values = unpack(
        engine.call("recover", who="test", interval=1000, deadline=NEVER)
    )
    assert looked == 1
    return [job.decode() for job in gone], [job.decode() for job in values]


def lose_client(engine: Engine, job: str) -> None:
    """Let the lease of a job's client run out."""
    engine.link.command("DEL", engine.keys("client", job))


def tomb(engine: Engine, job: str) -> list[object]:
    """Return what the tomb of a job tells: its state, then its reason."""
    data = engine.state().get("tomb", job)
    if data is None:
        return []
    state, reason = unpack(data)
    return [state.decode(), *(unpack(reason) if reason else [])]


def done_job(engine: Engine, **options: int) -> str:
    """Return a job of two outputs that is done; nobody has read them."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (A,)}, {A, B}, **options)
    engine.step(w1)
    engine.finish(w1, A, B)
    return job


# Who looks after them.


@pytest.mark.parametrize("jobs", [3, 97])
def test_each_look_is_at_every_job_of_a_small_queue(engine: Engine, jobs: int) -> None:
    """Were only those behind a place that moves looked at, the first of 97 jobs waited for 97 looks."""
    engine.checking = False
    with simulated():
        engine.link.command("SET", CLOCK, BEGIN + 1000)  # the place was that of the clock
        names = [engine.create({A: ()}, {A}) for _ in range(jobs)]
        for job in names:
            lose_client(engine, job)
        assert sorted(look(engine)[0]) == sorted(names)


def test_the_next_look_goes_on_behind_a_hundred_jobs(engine: Engine) -> None:
    """Each of many jobs has its turn, however far apart looks are."""
    engine.checking = False
    names = {engine.create({A: ()}, {A}) for _ in range(250)}
    for job in names:
        lose_client(engine, job)
    gone = list[str]()
    for _ in range(3):
        engine.link.command("HDEL", engine.keys("monitor"), "recovery")  # long ago
        gone += unpack(engine.call("recover", who="test", interval=1000, deadline=NEVER))[2]
    assert len(gone) == len({*gone}) == len(names)


# Detached jobs.


def test_two_readers_do_not_acknowledge_for_each_other(engine: Engine) -> None:
    """H48: one reader has all, and asks on; the other one begins, and gets all as well."""
    job = done_job(engine, ttl=TTL)
    first = engine.gather(job)
    assert set(first.values) == {A, B}
    assert engine.gather(job, first.cursor).values == {}
    assert engine.gather(job).values == first.values
    assert set(JobView(engine.state(), job, engine.graphs[job]).values) == {A, B}


def test_a_detached_job_does_not_need_its_client(engine: Engine) -> None:
    """Sealed: a monitor that misses the client lets the job be, and it goes on."""
    w1 = engine.slot()
    job = engine.job({A: (), B: (A,)}, {B}, ttl=TTL)
    engine.step(w1)
    lose_client(engine, job)
    assert look(engine)[0] == []
    assert engine.finish(w1, A).tasks == [B]
    engine.finish(w1, B)
    assert engine.gather(job).state == "done"
    assert look(engine)[0] == []


def test_a_detached_job_that_is_not_sealed_dies_with_its_client(engine: Engine) -> None:
    """H47: nobody else has the rest of its graph."""
    job = engine.create({A: (), B: (A,)}, {B}, block=1, ttl=TTL)
    engine.put_block(job, 0)
    lose_client(engine, job)
    assert look(engine)[0] == [job]
    assert engine.gather(job).error[0] == b"client"
    engine.sweep(job)
    assert tomb(engine, job)[:2] == ["cancelled", b"client"]


@pytest.mark.parametrize("state", ["done", "failed"])
def test_the_results_of_a_detached_job_age_from_its_end(engine: Engine, state: str) -> None:
    """Before result_ttl is over they stay, then they go with a tomb; read or not."""
    if state == "done":
        job = done_job(engine, ttl=TTL)
    else:
        job, w1 = engine.job({A: ()}, {A}, ttl=TTL), engine.slot()
        engine.step(w1)
        engine.step(w1, [], failure=(A, b"why"))
    assert engine.gather(job).state == state
    lose_client(engine, job)
    ended = int(engine.state().mapping("job", job)["ended"])
    engine.link.command("HSET", engine.keys("job", job), "ended", ended - TTL + 60_000)
    assert look(engine)[0] == []
    engine.link.command("HSET", engine.keys("job", job), "ended", ended - TTL)
    assert look(engine)[0] == [job]
    engine.sweep(job)
    assert tomb(engine, job) == ["expired"]
    assert not [name for name in engine.state().content if ":job:" in name]


def test_the_keys_of_a_detached_job_outlive_its_results_by_minutes(engine: Engine) -> None:
    """H50: nobody is left to sweep: they go by themselves, and a reader does not put that off."""
    job = engine.job({A: (), B: (A,)}, {A, B}, ttl=TTL)
    assert all(ttl > DAY for ttl in lives(engine, job).values())
    w1 = engine.slot()
    engine.step(w1)
    engine.finish(w1, A, B)
    assert all(TTL < ttl <= TTL + UNSEEN for ttl in lives(engine, job).values())
    engine.link.command("PEXPIRE", engine.keys("values", job), 1000)
    engine.gather(job)
    engine.call("renew_client", job=job)
    assert lives(engine, job)[engine.keys("values", job)] <= 1000


def test_monitors_keep_what_a_detached_job_waits_with(engine: Engine) -> None:
    """Its only task waits for a tag that nobody carries, for days; large values are renewed too."""
    job = engine.job({A: ()}, {A}, hard={A: ("gpu",)}, ttl=TTL)
    names = [engine.keys("tagged", job, "hard:1"), engine.keys("blocks", job)]
    for name in names:
        engine.link.command("PEXPIRE", name, 10_000)
    assert look(engine) == ([], [job])
    assert all(lives(engine, job)[name] > DAY for name in names)
    assert look(engine) == ([], [])


def test_a_forgotten_job_is_gone_and_says_so(engine: Engine) -> None:
    """Done or running; a job that is not detached is its client's alone."""
    done, running = done_job(engine, ttl=TTL), engine.job({A: ()}, {A}, ttl=TTL)
    assert engine.call("forget", job=done) == b"done"
    assert engine.call("forget", job=running) == b"running"
    for job in (done, running):
        engine.sweep(job)
        assert tomb(engine, job) == ["forgotten"]
        assert engine.call("forget", job=job) == b""
    mine = engine.job({A: ()}, {A})
    assert engine.call("forget", job=mine) == b"kept"
    assert engine.gather(mine).state == "running"


# Tombs.


@pytest.mark.parametrize("end", ["cancel", "client", "stop"])
def test_a_job_that_is_gone_tells_why(engine: Engine, end: str) -> None:
    """A client that comes late reads it; of a job that the server lost there is nothing to read."""
    job = engine.job({A: ()}, {A})
    if end == "cancel":
        engine.call("cancel", job=job, reason="by me", tomb="1")
    elif end == "client":
        lose_client(engine, job)
        look(engine)
    else:
        engine.call("stop_workers", reason="by me", life=1000)
    engine.sweep(job)
    kind = b"client" if end == "client" else b"cancelled"
    found = unpack(engine.link.call("gather", engine.keys, job=job, cursor=0, gen="", limit=10))
    assert found[0] == b""
    assert unpack(unpack(found[1])[1])[0] == kind
    assert engine.link.command("PTTL", engine.keys("tomb", job)) <= 600_000
    lost = unpack(
        engine.link.call("gather", engine.keys, job="unknown", cursor=0, gen="", limit=10)
    )
    assert lost[:2] == [b"", b""]


def test_no_job_is_made_while_its_queue_is_removed(engine: Engine) -> None:
    """C has told the workers and deletes keys; D's next job would lose some of its own to that.

    It was taken for one that the server had lost, submitted again, and waited for workers.
    """
    engine.slot()
    engine.call("stop_workers", reason="by C", life=LONG)
    late = engine.create({A: ()}, {A})
    assert engine.put_block(late, 0) == b""
    assert engine.state().members("jobs") == set()
    assert tomb(engine, late)[:2] == ["cancelled", b"cancelled"]
    assert b"by C" in tomb(engine, late)
    engine.link.command("DEL", engine.keys("removing"))
    assert engine.create_again(late) == b"over"
    new = engine.create({A: ()}, {A})
    assert engine.state().members("jobs") == {new}


def test_a_window_of_a_loop_from_before_the_removal_is_not_made(engine: Engine) -> None:
    """Between two windows a loop has no job; one that begins later, and a job by itself, are new."""
    before = server_ms(engine.link)
    first = engine.create({A: ()}, {A}, since=before)
    engine.call("stop_workers", reason="by C", life=LONG)
    engine.link.command("DEL", engine.keys("removing"), engine.keys("queue"))
    engine.sweep(first)
    engine.call("greet", run="this one")
    window = engine.create({A: ()}, {A}, since=before)
    assert b"by C" in tomb(engine, window)
    assert engine.state().get("queue") is None, "what its client greeted stays"
    others = {engine.create({A: ()}, {A}, since=since) for since in (0, before + LONG)}
    assert engine.state().members("jobs") == others
    assert 0 < engine.link.command("PTTL", engine.keys("removed")) <= 600_000


def test_a_queue_without_loops_leaves_no_word_of_its_removal(engine: Engine) -> None:
    """Nobody would ask for it."""
    engine.create({A: ()}, {A})
    engine.call("stop_workers", reason="by C", life=LONG)
    assert engine.state().get("removed") is None


def test_a_job_that_its_own_client_gives_up_leaves_no_tomb(engine: Engine) -> None:
    """Ctrl-C: nobody will ask."""
    job = engine.job({A: ()}, {A})
    engine.remove(job)
    assert tomb(engine, job) == []
    assert not [name for name in engine.state().content if job in name]


def test_a_cancelled_job_that_had_ended_stays_as_it_was(engine: Engine) -> None:
    """To cancel what is done is harmless, and no tomb says otherwise."""
    job = done_job(engine)
    assert engine.call("cancel", job=job, reason="late", tomb="1") == b"done"
    assert engine.gather(job).state == "done"
    assert tomb(engine, job) == []


# How long keys stay.


def lives(engine: Engine, job: str) -> dict[str, int]:
    """Return the milliseconds that each key of a job has to live, but for its client's lease."""
    state = engine.state()
    prefix, lease = engine.keys("job", job), engine.keys("client", job)
    return {n: ttl for n, ttl in state.ttl.items() if n.startswith(prefix) and n != lease}


@pytest.mark.parametrize("event", ["upload", "death", "lost", "leave", "cancel", "client"])
def test_the_keys_of_a_job_die_a_few_leases_after_its_client(engine: Engine, event: str) -> None:
    """H50: client and workers are killed, nobody sweeps: whatever happened last, all keys go."""
    w1, w2 = engine.slot("w1"), engine.slot("w2")
    if event == "upload":
        job = engine.create({A: (), B: ()}, {B}, block=1, lease=LEASE)
        engine.put_block(job, 0)
    else:
        job = engine.job({A: (), B: (), C: (A, B)}, {A, C}, hard={B: ("w2",)}, lease=LEASE)
        engine.step(w1)
        engine.step(w2)
        engine.finish(w1, A, apart={A})
        cursor = engine.gather(job).cursor
        assert engine.gather(job, cursor).values == {}  # from now on it waits for news
    match event:
        case "death":
            engine.die(w2, begun=B)
        case "lost":
            engine.lose_worker("w2")
        case "leave":
            engine.leave("w2")
        case "cancel":
            engine.call("cancel", job=job, reason="", tomb="1")
        case "client":
            lose_client(engine, job)
            look(engine)
    found = lives(engine, job)
    assert found
    assert {name: ttl for name, ttl in found.items() if ttl > LIFE} == {}


def test_each_call_of_a_client_renews_its_lease(engine: Engine) -> None:
    """An upload that takes longer than the lease is no reason to cancel; nor is a long unpickling."""
    job = engine.create({A: (), B: (A,)}, {B}, block=1, lease=LEASE)
    name = engine.keys("client", job)

    def renews() -> bool:
        left = int(engine.link.command("PTTL", name))
        engine.link.command("PEXPIRE", name, 1000)
        return left > 1000

    assert renews()
    engine.put_block(job, 0)
    assert renews()
    engine.put_block(job, 1)
    assert renews()
    engine.seal(job)
    assert renews()
    engine.gather(job)
    assert renews()
    assert engine.call("renew_client", job=job) == b"running"
    assert renews()


def test_a_client_keeps_what_its_tasks_wait_in(engine: Engine) -> None:
    """A tagged ready set is touched by nobody while its tag is missing; its client's calls renew it."""
    job = engine.job({A: ()}, {A}, hard={A: ("gpu",)}, lease=LEASE)
    name = engine.keys("tagged", job, "hard:1")
    for renew in (engine.gather, lambda job: engine.call("renew_client", job=job)):
        engine.link.command("PEXPIRE", name, 1000)
        engine.link.command("HSET", engine.keys("job", job), "fresh_until", 0)  # that time is over
        renew(job)
        assert lives(engine, job)[name] > 1000


def test_a_renewal_makes_nothing_of_a_job_that_is_gone(engine: Engine) -> None:
    """H42: the helper of a client comes late."""
    job = engine.job({A: ()}, {A})
    engine.remove(job)
    assert engine.call("renew_client", job=job) == b""
    assert engine.call("forget", job=job) == b""
    assert not [name for name in engine.state().content if job in name]


def test_a_job_whose_keys_are_gone_is_taken_off_the_list(engine: Engine) -> None:
    """All its keys expired while nobody was there; the next monitor clears what names it."""
    engine.link.command("ZADD", engine.keys("jobs"), 1, "ghost")
    engine.link.command("ZADD", engine.keys("active"), 1, "ghost")
    engine.checking = False
    assert look(engine)[0] == ["ghost"]
    engine.sweep("ghost")
    engine.checking = True
    engine.check()


def test_an_upload_that_is_cut_short_by_the_end_of_its_job_says_so(engine: Engine) -> None:
    """A task fails while later blocks are on their way: the end is told, not a missing block."""
    w1 = engine.slot()
    job = engine.create({A: (), B: ()}, {A, B}, block=1)
    engine.put_block(job, 0)
    engine.step(w1)
    engine.step(w1, [], failure=(A, pack(["why"])))
    assert engine.put_block(job, 1) == b"failed"
    assert engine.seal(job) == b"failed"


def test_a_detached_job_whose_output_was_lost_goes_on(engine: Engine) -> None:
    """It was done, and its results aged; a reader misses one: it runs again, and ages anew after that."""
    job = done_job(engine, ttl=TTL)
    first = engine.gather(job)
    engine.lose_value(job, A)
    assert engine.call("report_missing", job=job, task=-1, input=A) == b"parked"
    meta = engine.state().mapping("job", job)
    assert meta["state"] == b"running"
    assert not meta.keys() & {"ended", "expiring"}
    assert look(engine)[0] == []
    assert engine.rebuild(job)
    assert all(ttl > DAY for ttl in lives(engine, job).values())
    w2 = engine.slot()
    assert engine.step(w2).tasks == [A]
    engine.finish(w2, A)
    again = engine.gather(job, generation=first.generation)
    assert again.state == "done"
    assert set(again.values) == {A, B}
    assert all(TTL < ttl <= TTL + UNSEEN for ttl in lives(engine, job).values())
