"""Every script, whatever the network does to its call: lost, answered to nobody, doubled, too late.

A fault is put into one call of a story of `flows`; then the story goes on. What it leaves after that
call, and at its end, must be what it leaves without the fault. Fault rows 15 and 16.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from driver import Engine
from flows import FLOWS, work
from invariants import State
from proxy import Relay
from redis.exceptions import ResponseError

import dask_redisq.rebuild
from dask_redisq import scripts
from dask_redisq.codec import unpack
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.server import PrivateServer

#: What the same call answers the second time, where that is another word. Whoever asks can live with
#: either: the work is done, and that is what it goes by.
SECOND_ANSWERS: dict[str, dict[Any, Any]] = {
    "cancel": {b"running": b"cancelled"},
    "create": {b"created": b"exists"},
    "forget": {b"done": b"", b"running": b"cancelled"},
    "give_up": {b"failed": b"late"},
    "greet": {1: 0},
    "rebuild": {b"rebuilt": b"late"},
    "refuse": {1: 0},
}
#: Scripts that work in steps, or look once an interval: they may answer anything the second time.
IN_STEPS = {"audit", "recover", "sweep"}
#: Scripts whose late copy does something, which the story gets over.
LATE = {
    "gather": "the client counts as waiting, so it is woken once in vain",
    "report_missing": "it is a question about now, so that it may ask for one more rebuild",
    "audit": "it looks, if the interval is over",
    "recover": "so does it",
    "acquire": "who asked in vain and still waits has it then; who gave up has said so (release)",
}
#: Scripts of which only copies are looked at that come before another script is called. Their late
#: copies have tests of their own below.
BEFORE = {"register": {"unregister", "recover"}, "greet": {"greet"}}
#: Fields and sorted sets that hold a time.
TIMES = {"fresh_until", "frozen_at", "ended", "passed", "renewed", "run_at", "since", "suspended"}
ORDERED_BY_TIME = ("jobs", "idle:", "sets", "delayed")


def without_times(state: State) -> dict[str, Any]:
    """Return the content of a database, but for what the clock decides, and who has no expiry."""
    found: dict[str, Any] = {"for ever": sorted(k for k, ttl in state.ttl.items() if ttl < 0)}
    for name, content in state.content.items():
        short = name[len(state.keys.prefix) :]
        if short.startswith(ORDERED_BY_TIME) or short.endswith((":sets", ":delayed")):
            content = sorted(content)
        elif short.startswith("control:"):  # a word twice is as good as once: lua/lib/control.lua
            content = [word for i, word in enumerate(content) if word not in content[:i]]
        elif short == "monitor":
            content = {check: about.split()[-1] for check, about in content.items()}
        elif isinstance(content, dict):
            content = {k: v for k, v in content.items() if k.partition(":")[0] not in TIMES}
            if short.startswith("lock:"):
                content = sorted(content)
            if short.startswith("slot:"):
                content["answer"] = unpack(content["answer"])[:3]  # not when to look again
        found[name] = content
    return found


def plain(script: str, answer: Any) -> Any:
    """Return an answer, but for what the clock decides."""
    if script == "acquire":
        return unpack(answer)[0] > 0
    return unpack(answer)[:3] if script == "step" else answer


@dataclass
class Trouble:
    """A link of which one call gets into trouble.

    Parameters
    ----------
    link : Link
        What carries the calls.
    at : int
        The number of the call.
    trouble : callable
        Makes the call, and returns what its caller sees.
    """

    link: Link
    keys: Keys
    at: int = -1
    trouble: Callable[[Link, str, Any, dict[str, Any]], Any] | None = None
    #: The number of the call after which a copy of call number `at` arrives.
    late: int = -1
    #: The scripts that were called, in order.
    called: list[str] = field(default_factory=list)
    #: What was there after the call in trouble.
    after: dict[str, Any] = field(default_factory=dict)
    answer: Any = None
    #: The call number `at`.
    words: dict[str, Any] = field(default_factory=dict)
    #: What its late copy changed, and what that was answered.
    changed: dict[str, Any] = field(default_factory=dict)
    late_answer: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.link, name)

    def call(self, script: str, keys: Keys, /, **args: Any) -> Any:
        """Call a script."""
        at = len(self.called)
        self.called.append(script)
        if at != self.at:
            answer = self.link.call(script, keys, **args)
            if at == self.late:
                self._copy_arrives()
            return answer
        self.words = args
        carry = self.trouble or _carry
        self.answer = carry(self.link, script, keys, args)
        self.after = without_times(State(self.link, self.keys))
        return self.answer

    def _copy_arrives(self) -> None:
        before = without_times(State(self.link, self.keys))
        try:
            self.late_answer = self.link.call(self.called[self.at], self.keys, **self.words)
        except ResponseError as error:  # it is refused in so many words
            self.late_answer = error
        self.changed = differences(before, without_times(State(self.link, self.keys)))

    def send_call(self, script: str, keys: Keys, /, **args: Any) -> None:
        """Call a script whose answer is of no interest."""
        self.call(script, keys, **args)


def _carry(link: Link, script: str, keys: Keys, args: dict[str, Any]) -> Any:
    return link.call(script, keys, **args)


class Told(NamedTuple):
    """What was seen of a story."""

    called: list[str]
    after: dict[str, Any]
    answer: Any
    end: dict[str, Any]
    changed: dict[str, Any]
    late_answer: Any


class Names:
    """Rebuilds draw random names; here they get the same ones each time a story is told."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin with the first name again."""
        self._count = itertools.count()

    def token_hex(self, size: int) -> str:
        """Return the next name."""
        return f"{next(self._count):0{2 * size}x}"


NAMES = Names()


@pytest.fixture(autouse=True)
def same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is random in this file."""
    monkeypatch.setattr(dask_redisq.rebuild, "secrets", NAMES)


def tell(
    link: Link,
    keys: Keys,
    story: Callable[[Engine], None],
    at: int = -1,
    trouble: Callable[..., Any] | None = None,
    over: Link | None = None,
    late: int = -1,
) -> Told:
    """Tell a story on an empty server; its call number `at` gets into trouble, or comes again `late`."""
    link.command("FLUSHALL")
    NAMES.begin()
    troubled = Trouble(over or link, keys, at, trouble, late)
    engine = Engine(troubled, keys, replay=False)  # type: ignore[arg-type]
    engine.checking = False
    story(engine)
    engine.link = link
    engine.check()
    end = without_times(State(link, keys))
    return Told(
        troubled.called, troubled.after, troubled.answer, end, troubled.changed,
        troubled.late_answer,
    )  # fmt: skip


#: The stories that went well, by the call that was looked at: nothing in them is left to chance.
WELL: dict[tuple[Callable[[Engine], None], int], Told] = {}


def tell_well(link: Link, keys: Keys, story: Callable[[Engine], None], at: int = -1) -> Told:
    """Tell a story without trouble; once in a run of the tests, since they compare many with it."""
    if (story, at) not in WELL:
        WELL[story, at] = tell(link, keys, story, at)
    return WELL[story, at]


@pytest.fixture
def places(link: Link, keys: Keys) -> Callable[[str], list[tuple[Callable[[Engine], None], int]]]:
    """A function that gives the stories and places in them where a script is called."""
    told = {story: tell_well(link, keys, story).called for story in FLOWS}

    def find(script: str) -> list[tuple[Callable[[Engine], None], int]]:
        found = []
        for story, called in told.items():
            at = [i for i, name in enumerate(called) if name == script]
            found += [(story, i) for i in dict.fromkeys([*at[:3], *at[-2:]])]
        return found

    return find


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return what differs between two states."""
    names = one.keys() | other.keys()
    return {n: (one.get(n), other.get(n)) for n in names if one.get(n) != other.get(n)}


def check_same(script: str, clean: Told, troubled: Told) -> None:
    """Assert that a story with a fault went as the one without."""
    if script not in IN_STEPS:
        changed = differences(clean.after, troubled.after)
        assert not changed, f"after {script} there is (without and with the fault) {changed}"
        first, second = plain(script, clean.answer), plain(script, troubled.answer)
        allowed = [first, *(v for k, v in SECOND_ANSWERS.get(script, {}).items() if k == first)]
        assert second in allowed, f"{script} answers {first}, then {second}"
    changed = differences(clean.end, troubled.end)
    assert not changed, f"in the end there is (without and with the fault) {changed}"


def reply_lost(link: Link, script: str, keys: Keys, args: dict[str, Any]) -> Any:
    """Its first answer reaches nobody; it is sent again."""
    link.call(script, keys, **args)
    return link.call(script, keys, **args)


def in_flight_twice(other: Link, link: Link, script: str, keys: Keys, args: dict[str, Any]) -> Any:
    """The same call is on its way over two connections; one of them is read."""
    other.send_call(script, keys, **args)
    link.send_call(script, keys, **args)
    answer = link.receive_all()[-1]
    other.receive_all()
    return answer


@pytest.mark.parametrize("script", scripts.script_names())
def test_a_script_whose_reply_was_lost(
    link: Link, keys: Keys, places: Callable[[str], Any], script: str
) -> None:
    """Sent again it leaves the same state, gives the same answer, and the story ends the same."""
    found = places(script)
    assert found, f"no story of flows.py calls {script}: add one"
    for story, at in found:
        clean = tell_well(link, keys, story, at)
        check_same(script, clean, tell(link, keys, story, at, reply_lost))


@pytest.mark.parametrize("script", scripts.script_names())
def test_a_script_that_is_in_flight_twice(
    link: Link, keys: Keys, places: Callable[[str], Any], script: str
) -> None:
    """Over two connections at once it is as one call."""
    other = Link(link.url)
    try:
        for story, at in places(script):
            clean = tell_well(link, keys, story, at)
            twice = partial(in_flight_twice, other)
            check_same(script, clean, tell(link, keys, story, at, twice))
    finally:
        other.close()


@pytest.mark.parametrize("script", scripts.script_names())
def test_a_copy_of_a_call_that_comes_after_newer_ones(
    link: Link, keys: Keys, places: Callable[[str], Any], script: str
) -> None:
    """It changes nothing, nor does the story go on otherwise; a step is told that it is stale."""
    for story, at in places(script):
        clean = tell_well(link, keys, story, at)
        last = len(clean.called) - 1
        for late in sorted({at + 1, at + 3, at + 6, last - 1, last}):
            between = set(clean.called[at + 1 : late + 1])
            if not at < late <= last or between & BEFORE.get(script, set()):
                continue
            told = tell(link, keys, story, at, late=late)
            where = f"{script} as call {at} of {story.__name__}, again after call {late}"
            assert script in LATE or not told.changed, f"{where} changes {told.changed}"
            changed = differences(clean.end, told.end)
            if script in LATE:
                assert clean.end.keys() == told.end.keys(), f"{where} leaves other keys"
            else:
                assert not changed, f"{where}: in the end there is {changed}"
            if script == "step":
                refused = unpack(told.late_answer)[0] in {b"stale", b"unregistered"}
                assert refused or plain(script, told.late_answer) == plain(script, told.answer)


def test_a_slot_that_is_registered_after_its_removal_does_not_stay(link: Link, keys: Keys) -> None:
    """A copy of its registration is late: its worker's next beat, which does not name it, removes it."""
    engine = Engine(link, keys)
    dead, lives = engine.slot("one"), engine.slot("one")
    engine.unregister(dead)
    engine.register(dead, 0)
    assert dead.id in engine.state().members("slots")
    engine.renew(lives)
    assert engine.state().members("slots") == {lives.id}


def test_a_worker_that_is_registered_after_its_removal_does_not_stay(
    link: Link, keys: Keys
) -> None:
    """A copy of its registration is late, and nobody renews it: it is found dead like any other."""
    engine = Engine(link, keys)
    gone = engine.slot("one")
    engine.leave("one")
    engine.register(gone, 0)
    assert engine.lose_worker("one") == ["one"]
    assert not engine.state().members("slots")


def test_a_copy_of_a_freeze_forgets_no_damage(link: Link, keys: Keys) -> None:
    """A value is found lost after the rebuild began to read; then the freeze comes once more."""
    engine = Engine(link, keys, replay=False)
    job = engine.job({0: (), 1: (0,)}, {1})
    held = {"job": job, "generation": "g" * 16, "previous": "", "life": 10_000}
    engine.doubtful.add(job)
    engine.call("freeze", **held)
    assert engine.call("report_missing", job=job, task=1, input=0) == b"parked"
    engine.call("freeze", **held)
    assert engine.state().mapping("job", job)["damaged"] == b"2"


def test_a_greeting_from_a_run_of_the_server_that_is_over_costs_a_rebuild(
    link: Link, keys: Keys
) -> None:
    """No call of a closed connection survives a restart; a proxy's copy could: all goes on after it."""
    engine = Engine(link, keys)
    engine.call("greet", run="first")
    engine.call("greet", run="second")
    job, w1 = engine.job({0: (), 1: (0,)}, {1}), engine.slot()
    engine.step(w1)
    engine.doubtful.add(job)
    engine.call("greet", run="first")
    assert engine.gather(job).wanted == 1
    engine.rebuild(job)
    work(engine, w1)
    assert engine.gather(job).state == "done"


@pytest.fixture
def relay(server: PrivateServer, link: Link, tmp_socket: Path) -> Iterator[Relay]:
    """A way to the server that loses what a test says; the server knows all scripts."""
    for name in scripts.script_names():
        link.command("SCRIPT", "LOAD", scripts.load(name).text)
    with Relay(tmp_socket, server.url) as way:
        yield way


@pytest.mark.parametrize("lost", ["lose_request", "cut_request", "lose_reply", "cut_reply"])
@pytest.mark.parametrize("script", scripts.script_names())
def test_a_call_whose_connection_breaks(
    link: Link, keys: Keys, places: Callable[[str], Any], relay: Relay, script: str, lost: str
) -> None:
    """Before the server has all of it, or the link all of its reply: it is sent again."""
    over = Link(relay.url)

    def broken(link: Link, script: str, keys: Keys, args: dict[str, Any]) -> Any:
        getattr(relay, lost)(scripts.load(script).sha.encode())
        answer = link.call(script, keys, **args)
        assert relay.struck.is_set()
        return answer

    try:
        for story, at in places(script)[:2]:
            clean = tell_well(link, keys, story, at)
            check_same(script, clean, tell(link, keys, story, at, broken, over))
    finally:
        over.close()
