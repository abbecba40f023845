"""What the simulator found: a full server, a rollback at the wrong moment, a job that failed while it was sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from driver import NEVER, Engine
from invariants import UNSEEN, JobView

from dask_redisq.codec import pack
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.rebuild import rebuild
from dask_redisq.recount import Truth, recount

A, B, C = range(3)


@pytest.fixture
def full(link: Link) -> Iterator[None]:
    """The server takes nothing that needs memory, once the test says so; later it does again."""
    yield
    link.command("CONFIG", "SET", "maxmemory", 0)


def fill(engine: Engine) -> None:
    """The memory is full from now on."""
    engine.link.command("CONFIG", "SET", "maxmemory", 1)


# The memory is full.


def test_a_worker_looks_after_its_slots_when_the_server_is_full(engine: Engine, full: None) -> None:
    """Were give_back or unregister refused, the error would end the worker with all its slots."""
    job = engine.job({A: (), B: (), C: ()}, {A, B, C}, retries=1, chunk=3)
    slot, idle = engine.slot(), engine.slot()
    engine.step(slot)
    engine.step(idle, rest=True)
    fill(engine)
    assert engine.give_back(slot, 0) == b"given"
    engine.time_out(slot, begun=A)
    assert engine.state().mapping("tries", job) == {"0": b"1"}


def test_a_client_keeps_its_job_when_the_server_is_full(engine: Engine, full: None) -> None:
    """Its helper renews the lease, its large values live on, and what it forgets goes."""
    mine, job = engine.job({A: ()}, {A}), engine.job({A: ()}, {A}, ttl=1000)
    fill(engine)
    assert engine.call("renew_client", job=mine) == b"running"
    assert engine.link.call("renew_values", engine.keys, job=job, cursor="0") == b"0"
    assert engine.call("refuse", job=job, who="w", total=1) == 1
    assert engine.call("forget", job=job) == b"running"
    engine.sweep(job)


# The server comes back older.


def test_a_job_whose_restrictions_are_forgotten_is_not_made(engine: Engine) -> None:
    """The client stages counters, the server saves, then restrictions, the server dies: create.

    What came back had counters and no restrictions: B would run where it must not.
    """
    whole = engine.create({A: (), B: ()}, {A, B}, hard={B: ("gpu",)})
    args = dict.fromkeys(("epoch", "python"), b"") | dict.fromkeys(
        ("block", "blocks", "chunk", "priority", "allowed", "retries", "retry_delay", "patience", "pure", "watched"), 1
    )  # fmt: skip
    half = "f" * 32
    for name in ("new_wait", "new_consumers"):
        engine.link.command("SET", engine.keys(name, half), bytes(8), "PX", 1000)
    answer = engine.link.call(
        "create", engine.keys, job=half, n=2, client_lease=1000, ttl=0, hard=pack([["gpu"]]), kept=0,
        uses=pack([]), most=0, ordered=0, parent="", by=b"", policy="", since=0, **args
    )  # fmt: skip
    assert answer == b"unstaged"
    assert engine.state().members("jobs") == {whole}


def test_no_slot_waits_for_a_job_that_only_a_dead_client_could_rebuild(engine: Engine) -> None:
    """A is run, its client dies before it seals, the server comes back older: A is refused.

    It was put off until the rebuild, which an unsealed job does not get: each slot with a result of
    it stood still for a whole lease of that client, while other jobs waited.
    """
    job = engine.create({A: (), B: (A,)}, {B})
    engine.put_block(job, 0)
    slot = engine.slot()
    engine.step(slot)
    engine.roll_back(engine.snapshot())
    answer = engine.finish(slot, A)
    assert (answer.status, answer.refused) == ("ok", [A])


def test_a_job_that_is_made_again_is_of_another_epoch(engine: Engine) -> None:
    """The server loses all, and the client, whose upload was under way, sends it again from its start.

    A slot that kept A of an impure job would make B of that, and C of the A that is run now.
    """
    job = engine.create({A: (), B: (A,), C: (A,)}, {B, C}, pure=0)
    engine.put_block(job, 0)
    slot = engine.slot()
    engine.step(slot)
    engine.roll_back({})
    before = engine.epochs[job]
    assert engine.create_again(job) == b"created"
    assert engine.epochs[job] != before
    engine.put_block(job, 0)
    engine.register(slot, slot.seq)
    assert slot.lease is not None
    answer = engine.send(engine.prepare(slot, engine.groups(slot, [A])) | {"epoch": before})
    assert answer.refused == [A]


def test_a_rebuild_that_spans_a_rollback_is_late(engine: Engine) -> None:
    """It read one history, and would write what it read into another that is frozen as well."""
    job = engine.job({A: ()}, {A})
    args = {"job": job, "generation": "older", "previous": "", "life": 10_000}
    engine.call("freeze", **args)
    engine.roll_back(engine.snapshot())
    for what in ("finished", "wait", "consumers", "log"):
        name = engine.keys("built", job, "older", what)
        engine.link.command("SET", name, bytes(4) if what != "log" else pack([]), "PX", 1000)
    late = {
        "job": job,
        "generation": "older",
        "epoch": "",
        "finished": 1,
        "acked": 0,
        "hard": pack([]),
    }
    assert engine.call("rebuild", **late) == b"late"
    assert engine.rebuild(job), "another one need not wait until the older has surely died"


class TornLink(Link):
    """Its connection breaks once, when a rebuild has read all; `meanwhile` tells what happens then."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)
    broken = 0
    freeze: Mapping[str, object]

    def send_call(self, script: str, keys: Keys, /, **args: object) -> None:
        """Keep the arguments of `freeze`."""
        if script == "freeze":
            self.freeze = args
        super().send_call(script, keys, **args)

    def command(self, *words: object) -> object:
        """Break before what a rebuild asks last."""
        if words[0] == "GET" and str(words[1]).endswith(":restrict") and not self.broken:
            self.broken += 1
            self.close()
            self.meanwhile()
        return super().command(*words)


def test_a_rebuild_that_read_one_history_and_holds_another_reads_anew(engine: Engine) -> None:
    """The server came back, and a copy of `freeze` came late: the job is held there as well.

    In the one history nothing had run, in the other B is there: its value would be kept for ever.
    """
    job = engine.job({A: (), B: (A,), C: (B,)}, {C})
    nothing = engine.snapshot()
    slot = engine.slot()
    engine.step(slot)
    engine.finish(slot, A, B, want=0)
    both = engine.snapshot()
    engine.roll_back(nothing)
    torn = TornLink(engine.link.url, patience=5.0)

    def come_back() -> None:
        engine.roll_back(both)
        engine.link.call("freeze", engine.keys, **torn.freeze)

    torn.meanwhile = come_back
    engine.rebuilder = torn
    engine.doubtful.add(job)
    try:
        assert engine.rebuild(job)
    finally:
        torn.close()
    assert torn.broken
    assert JobView(engine.state(), job, engine.graphs[job]).finished == {A, B}


class SlowLink(Link):
    """Somebody stops before what a rebuild asks last; `meanwhile` tells what happens then."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def call(self, script: str, keys: Keys, /, **args: object) -> Any:
        """Be late with `rebuild`."""
        if script == "rebuild":
            self.meanwhile()
        return super().call(script, keys, **args)


def test_a_rebuilder_that_was_overtaken_leaves_nothing_behind(engine: Engine) -> None:
    """It was stopped for ten seconds, and another took over: what it built aside goes at once."""
    job = engine.job({A: (), B: (A,)}, {B})
    slow = SlowLink(engine.link.url, patience=5.0)

    def overtake() -> None:
        engine.link.command("HSET", engine.keys("job", job), "frozen_at", 0)
        assert rebuild(engine.link, engine.keys, job)

    slow.meanwhile = overtake
    try:
        assert not rebuild(slow, engine.keys, job)
    finally:
        slow.close()
    assert [name for name in engine.check().content if ":built:" in name] == []


def test_what_came_of_a_forgotten_run_is_made_again_if_tasks_are_impure() -> None:
    """A -> B, and A -> C: B has arrived, then the server forgot that A and B ever ran.

    C would be made from another A than B was.
    """
    truth = Truth([(), (A,), (A,)], frozenset([B, C]), set(), set(), {B})
    assert recount(truth, pure=False).finished == set()
    assert recount(truth).finished == {B}


def test_who_looked_during_a_rebuild_hears_of_delayed_tasks(engine: Engine) -> None:
    """A failed and is due in a while; W looks while the job is frozen, and sleeps to its re-check."""
    job = engine.job({A: ()}, {A}, retries=1, retry_delay=60_000)
    slot = engine.slot()
    engine.step(slot)
    engine.step(slot, failure=(A, b"boom"), want=0)
    engine.link.command("HSET", engine.keys("job", job), "damaged", 1)
    engine.doubtful.add(job)
    engine.call("freeze", job=job, generation="dead", previous="", life=10_000)
    assert engine.step(slot, rest=True).retry == 0
    engine.link.command("HSET", engine.keys("job", job), "frozen_at", 0)
    assert engine.rebuild(job)
    assert engine.tokens(slot) == [1]
    engine.pop_token(slot)
    assert engine.step(slot, rest=True).retry > 0


# A job ends.


def test_a_detached_job_that_failed_while_it_was_sent_keeps_its_error(engine: Engine) -> None:
    """Unsealed it went with its client's lease, and who attached was told that it is still sent."""
    job = engine.create({A: (), B: ()}, {A, B}, block=1, ttl=1000, retries=0)
    engine.put_block(job, 0)
    slot = engine.slot()
    engine.step(slot)
    engine.step(slot, failure=(A, b"boom"))
    assert engine.seal(job) == b"failed"
    assert engine.state().mapping("job", job)["sealed"] == b"1"


def test_a_job_that_failed_settles_no_edges(engine: Engine) -> None:
    """Its tasks became ready by a client's question, and the job active, though it had ended."""
    n = 9000
    job = engine.job({A: (), **dict.fromkeys(range(1, n), (A,))}, {n - 1}, retries=0)
    slot, other = engine.slot(), engine.slot()
    engine.step(slot)
    engine.checking = False
    engine.finish(slot, A, want=1)
    assert engine.state().get("settle", job), "edges are left to count"
    engine.step(other, known=job, want=1)
    assert other.lease is not None
    engine.step(other, failure=(other.lease.tasks[0], b"boom"), want=0)
    assert engine.state().get("settle", job), "and some are left now"
    assert engine.gather(job).state == "failed"
    view = JobView(engine.state(), job, engine.graphs[job])
    assert view.meta["state"] == b"failed"
    assert engine.state().members("active") == set()


def test_a_detached_job_ends_without_a_reader(engine: Engine) -> None:
    """Its last task has 5,000 inputs: edges are left to count when nobody steps or asks any more.

    The job ran for ever, `Future.done` was False, and its results never grew old.
    """
    n = 5000
    job = engine.job({**dict.fromkeys(range(n), ()), n: range(n)}, {n}, ttl=1000, chunk=-1)
    slot = engine.slot()
    engine.checking = False
    while engine.step(slot).lease is not None:
        assert slot.lease is not None
        groups = engine.groups(slot, slot.lease.tasks)
        engine.step(slot, groups, want=0)
    engine.link.command("DEL", engine.keys("client", job))
    for _ in range(3):
        engine.link.command("DEL", engine.keys("monitor"))
        engine.call("recover", who="test", interval=1000, deadline=NEVER)
    assert engine.state().mapping("job", job)["state"] == b"done"


def store_constant(engine: Engine, job: str, digest: str) -> None:
    """Send a large constant, as a client does before the block that uses it."""
    engine.call("announce", job=job, digest=digest)
    engine.link.command("SET", engine.keys("const", job, digest), b"large", "PX", UNSEEN)


def test_a_constant_that_is_sent_again_lives_as_long_as_its_job(engine: Engine) -> None:
    """R15: all was done, the replies were lost: what was sent again has no minutes to live."""
    job = engine.create({A: ()}, {A}, lease=UNSEEN)
    for _ in range(2):
        store_constant(engine, job, "d")
        engine.put_block(job, 0, consts=["d"])
    assert engine.state().ttl[engine.keys("const", job, "d")] > 4 * UNSEEN


def test_what_is_done_does_without_its_constants(engine: Engine) -> None:
    """One expired that no block used, or was evicted: the job is sound, and a repair leaves it so."""
    w1, job = engine.slot(), engine.job({A: ()}, {A}, ttl=NEVER)
    store_constant(engine, job, "unused")
    engine.finish(w1, *engine.step(w1).tasks)
    engine.link.command("DEL", engine.keys("const", job, "unused"))
    engine.doubtful.add(job)
    engine.call("greet", run="another")
    engine.rebuild(job)
    assert engine.state().mapping("job", job)["state"] == b"done"


def test_the_list_of_constants_lasts_as_long_as_they_do(engine: Engine) -> None:
    """A detached job ended, and nobody came for long: who swept it then found no constant to remove."""
    job = engine.create({A: ()}, {A}, ttl=1000)
    store_constant(engine, job, "d")
    engine.put_block(job, 0, consts=["d"])
    engine.call("cancel", job=job, reason="", tomb="")
    life = engine.state().ttl
    assert life[engine.keys("consts", job)] >= life[engine.keys("const", job, "d")] - 1000


def test_a_block_whose_constant_the_server_forgot_is_not_taken(engine: Engine) -> None:
    """It came back as it was before the constant: its tasks would be leased and given back, for ever."""
    w1 = engine.slot()
    job = engine.create({A: ()}, {A})
    store_constant(engine, job, "d")
    engine.link.command("DEL", engine.keys("const", job, "d"))
    assert engine.put_block(job, 0, consts=["d"]) == b"running"
    assert not engine.step(w1).tasks
    assert engine.seal(job) == b"incomplete"
    store_constant(engine, job, "d")
    engine.put_block(job, 0, consts=["d"])
    assert engine.seal(job) == b"running"
    assert engine.step(w1).tasks == [A]
