"""User code wishes, the engine takes: what a policy says of a job changes who gets what. Rule 19."""

from __future__ import annotations

from typing import Any

import pytest
from driver import PYTHON, Answer, Engine, Slot

from dask_redisq.codec import unpack

A, B, C, D, E = range(5)
#: The last one first.
REVERSED = "local order = {} for i = #candidates, 1, -1 do order[#order + 1] = i end return order"
GRAPH = dict.fromkeys(range(5), ())


def ask(engine: Engine, slot: Slot, job: str, **options: Any) -> list[Any]:
    """Ask the policy of a job, as a slot does."""
    words = {"tag": "host", "known": job, "want": 1000, "floor": 1000, "others": b""} | options
    answer: list[Any] = unpack(engine.call("wish", job=job, slot=slot.id, **words))
    return answer


def wish(engine: Engine, slot: Slot, job: str, *tasks: Any, **options: Any) -> Answer:
    """Let a slot come with its wishes of a job."""
    return engine.step(slot, wishes={job: list(tasks)}, **{"floor": 1000, **options})


def test_a_slot_asks_the_policy_and_comes_back_with_its_wishes(engine: Engine) -> None:
    """The call that reports tells whom to ask; what it reported is done, and nothing is leased."""
    w1 = engine.slot()
    job = engine.job(GRAPH, set(GRAPH), policy=REVERSED, chunk=1)
    answer = engine.step(w1, rest=True)
    assert (answer.status, answer.asked, answer.tasks) == ("wish", job, [])
    assert "idle" not in engine.state().mapping("slot", w1.id)
    assert ask(engine, w1, job, want=3, floor=1) == [b"tasks", [E, D, C, B, A]]
    assert wish(engine, w1, job, E).tasks == [E]
    answer = engine.finish(w1, E, rest=True)
    assert (answer.status, answer.asked) == ("wish", job)
    assert engine.gather(job).finished == 1


def test_wishes_for_what_is_not_ready_change_nothing(engine: Engine) -> None:
    """A is leased, B finished, D waits, 99 and -1 are no tasks, and C is named three times."""
    w1, w2 = engine.slot("one"), engine.slot("two")
    inputs = {A: (), B: (), C: (), D: (A,), E: ()}
    job = engine.job(inputs, {B, C, D, E}, policy=REVERSED)
    assert wish(engine, w1, job, A, B).tasks == [A, B]
    engine.step(w1, engine.groups(w1, [B]), want=0)
    assert engine.step(w1, wishes={job: [A]}).tasks == [A]
    assert wish(engine, w2, job, A, B, D, 99, -1, C, C, 3.7, C).tasks == [C]


def test_wishes_that_cannot_be_had_leave_the_choice_to_the_default(engine: Engine) -> None:
    """None of them is ready any more, or there are none: the slot has work all the same."""
    w1, w2 = engine.slot("one"), engine.slot("two")
    job = engine.job(GRAPH, set(GRAPH), policy=REVERSED, chunk=1)
    assert wish(engine, w1, job, C).tasks == [C]
    assert wish(engine, w2, job, C).tasks == [A]
    assert wish(engine, w2, job).tasks == [A]


def test_of_two_slots_that_wish_the_same_one_has_what_was_named_next(engine: Engine) -> None:
    """Both asked before either came: the second wish is told as well, whatever a slot may have."""
    w1, w2 = engine.slot("one"), engine.slot("two")
    job = engine.job(GRAPH, set(GRAPH), policy=REVERSED, chunk=1)
    wishes = [ask(engine, slot, job)[1] for slot in (w1, w2)]
    assert [wish(engine, s, job, *w).tasks for s, w in zip((w1, w2), wishes, strict=True)] == [
        [E],
        [D],
    ]


def test_wishes_of_another_job_are_not_taken_for_those_of_this_one(engine: Engine) -> None:
    """The slot was sent to ask the first, which then was urgent no more; it is asked for the second."""
    w1 = engine.slot()
    first = engine.job(GRAPH, set(GRAPH), policy=REVERSED, chunk=1)
    second = engine.job(GRAPH, set(GRAPH), policy=REVERSED, chunk=1, priority=1)
    answer = wish(engine, w1, first, B)
    assert (answer.status, answer.asked) == ("wish", second)
    assert engine.step(w1, wishes={first: [B], second: [D]}).tasks == [D]


def test_a_job_with_a_policy_opens_when_its_last_block_is_there(engine: Engine) -> None:
    """Vignette 5.2: else the first slot has what belongs to another, whose task is not there yet."""
    w1, w2 = engine.slot("one"), engine.slot("two")
    for slot in (w1, w2):
        engine.step(slot, rest=True)
    job = engine.create(GRAPH, set(GRAPH), block=2, policy=REVERSED, chunk=1)
    for number in range(3):
        engine.put_block(job, number)
        assert engine.tokens(w1, w2) == [0, 0]
        assert engine.step(w1, rest=True).status == "ok"
    engine.seal(job)
    assert engine.tokens(w1, w2) == [1, 1]
    assert engine.step(w1).asked == job


def test_what_is_passed_over_for_long_is_leased(engine: Engine) -> None:
    """Nobody ever wishes A; after five seconds whoever comes next gets it, and wishes count again."""
    w1 = engine.slot()
    job = engine.job(GRAPH, set(GRAPH), policy=REVERSED, chunk=1)
    assert wish(engine, w1, job, E).tasks == [E]
    assert wish(engine, w1, job, E).tasks == [E]  # it went back
    name = engine.keys("job", job)
    noted = engine.link.command("HGET", name, "passed:").split()
    engine.link.command("HSET", name, "passed:", f"{A} {int(noted[1]) - 5000}")
    assert engine.finish(w1, E, wishes={job: [D]}).tasks == [A]
    assert engine.finish(w1, A, wishes={job: [D]}).tasks == [D]


def test_a_wish_crosses_no_restriction(engine: Engine) -> None:
    """W1 carries no gpu, and a lease is of one set: that of the first task that is there."""
    w1, gpu = engine.slot("one"), engine.slot("two", ("gpu",))
    job = engine.job(GRAPH, set(GRAPH), policy=REVERSED, hard={A: ("gpu",), B: ("gpu",)})
    assert wish(engine, w1, job, A, C, B).tasks == [C]
    assert wish(engine, gpu, job, B, D, A).tasks == [B, A]


def test_a_wish_for_what_may_have_run_before_is_leased_alone(engine: Engine) -> None:
    """Rule 3: A took its process with it; among other wishes it is left for later."""
    w1, w2 = engine.slot("one"), engine.slot("two")
    job = engine.job(GRAPH, set(GRAPH), policy=REVERSED)
    assert wish(engine, w1, job, A).tasks == [A]
    engine.die(w1, begun=A)
    assert wish(engine, w2, job, B, A, C).tasks == [B, C]
    answer = engine.finish(w2, B, C, wishes={job: [A, D]}, floor=1000)
    assert answer.tasks == [A]
    assert answer.lease is not None
    assert answer.lease.alone


def test_a_policy_that_did_not_end_is_asked_no_more(engine: Engine) -> None:
    """Whoever had it killed tells so; for all slots the default chooses from then on."""
    w1, w2 = engine.slot("one"), engine.slot("two")
    job = engine.job(GRAPH, set(GRAPH), policy="while true do end", chunk=1)
    assert engine.step(w1, wishes={job: False}).tasks == [A]
    assert engine.step(w2).tasks == [B]


def test_a_policy_sees_what_is_known_of_the_tasks(engine: Engine) -> None:
    """Key, tag, priority, the bytes of inputs; the slot's tags, its own first, and its worker."""
    see = (
        "local c = candidates[2] error(table.concat({#candidates, c.task, c.key, c.priority, c.tag, "
        "c.bytes, want, worker, unpack(tags)}, ' '), 0)"
    )
    gpu = engine.slot("one", ("gpu",))
    inputs = {A: (), B: (), C: (A, B), D: (), E: ()}
    job = engine.job(inputs, {C, D, E}, policy=see, hard={C: ("gpu",)})
    assert wish(engine, gpu, job, A, B).tasks == [A, B]
    engine.step(gpu, engine.groups(gpu, {A: bytes(1000), B: bytes(70_000)}, apart={B}), want=0)
    slots = ["256", "one", "mine", PYTHON, "one", "gpu"]
    assert ask(engine, gpu, job, tag="mine")[1].decode() == " ".join(["3 3 3 0  0", *slots])
    first = see.replace("candidates[2]", "candidates[1]")
    engine.link.command("HSET", engine.keys("job", job), "policy", first)
    said = ask(engine, gpu, job, tag="mine")[1].decode()
    assert said == " ".join(["3 2 2 0 gpu 71000", *slots])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("return", "returned a nil"),
        ("return 7", "returned a number"),
        ("error('no')", "no"),
        ("error({})", "table"),
        ("return #nothing", "nothing"),
        ("x = 1", "readonly"),
        ("return redis.call('GET', 'x')", "redis"),
        ("return _G.redis", "_G"),
        ("return loadstring('return redis')()", "loadstring"),
        ("return getmetatable('').__index", "getmetatable"),
        ("return KEYS[1] .. ARGV[1]", "KEYS"),
        ("string.rep = nil return string.rep('x', 2)", "rep"),
    ],
)
def test_a_policy_that_fails_is_said_to(engine: Engine, text: str, why: str) -> None:
    """It reaches nothing of the server's, leaves nothing behind, and what went wrong is told."""
    w1 = engine.slot()
    job = engine.job(GRAPH, set(GRAPH), policy=text)
    what, said = ask(engine, w1, job)
    assert what == b"error"
    assert why in said.decode()
    engine.link.command("HSET", engine.keys("job", job), "policy", REVERSED)
    assert ask(engine, w1, job) == [b"tasks", [E, D, C, B, A]]


@pytest.mark.parametrize(
    "text",
    [
        "end local function f()",
        "end)() redis.call('SET', 'x', 1)",
        ", x = redis return x",
        "= redis return candidates",
        "return [[",
        "--[[",
        "\x1bLua",
    ],
)
def test_no_text_breaks_out_of_the_function(engine: Engine, text: str) -> None:
    """It is compiled by itself; what is no body of a function is no policy."""
    assert engine.call("check_policy", text=text) != b""
    w1 = engine.slot()
    job = engine.job(GRAPH, set(GRAPH), policy=text)
    assert ask(engine, w1, job)[0] == b"error"


def test_positions_that_are_none_are_left_out(engine: Engine) -> None:
    """Out of range, no whole number, no number, twice."""
    w1 = engine.slot()
    text = "return {9, 0, -1, 2.5, 'x', {}, 2, 2, 4, 1, 3, 5}"
    job = engine.job(GRAPH, set(GRAPH), policy=text, chunk=3)
    assert ask(engine, w1, job) == [b"tasks", [B, D, A, C, E]]


def test_there_is_nothing_to_ask_of_who_is_gone(engine: Engine) -> None:
    """A job that ended, a slot that is not registered, a job all of whose tasks are leased."""
    w1, w2 = engine.slot("one"), engine.slot("two")
    job = engine.job(GRAPH, set(GRAPH), policy=REVERSED)
    assert wish(engine, w1, job, A, B, C, D, E).tasks == [A, B, C, D, E]
    assert ask(engine, w2, job) == [b"nothing"]
    engine.unregister(w1)
    assert ask(engine, w1, job) == [b"nothing"]
    engine.remove(job)
    assert ask(engine, w2, job) == [b"nothing"]
