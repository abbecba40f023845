"""Waiting awake for what can be read."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dask_redisq import spinning
from dask_redisq.codec import pack
from dask_redisq.keys import Keys
from dask_redisq.memory import SlotMemory
from dask_redisq.pace import Pace
from dask_redisq.page import Page
from dask_redisq.report import Report
from dask_redisq.spinning import spin
from dask_redisq.stepping import NEAR, ROW, ServedQueue, Stepper
from dask_redisq.tags import SlotTags

#: Seconds that no test here takes, unless the wait does not end as it should.
FOREVER = 60.0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_a_wait_ends_with_the_reply(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be there, or come meanwhile; others run first all the time."""
    monkeypatch.setattr(spinning, "NEEDED", FOREVER)
    one, other = pair
    threading.Timer(0.05, other.send, [b"reply"]).start()
    started = time.monotonic()
    spin(one.fileno(), FOREVER)
    assert select.select([one], [], [], 0)[0] == [one], "it did not wait for the reply"
    spin(one.fileno(), FOREVER)
    assert time.monotonic() - started < FOREVER / 2
    assert one.recv(5) == b"reply"


def test_a_wait_ends_when_others_need_the_core(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do if it takes long to come back; it sleeps then, as without."""
    given: list[float] = []

    def give_way() -> None:
        given.append(time.monotonic())
        time.sleep(0.001)

    monkeypatch.setattr(spinning, "_give_way", give_way)
    spin(pair[0].fileno(), FOREVER)
    assert len(given) == 1


def test_a_wait_ends_after_its_time(pair: tuple[socket.socket, socket.socket]) -> None:
    """Nothing came: who reads next falls asleep."""
    spin(pair[0].fileno(), 0.001)


class Answering:
    """A link that gives a lease for each call, and notes how it was waited for."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def _answer(self, how: str) -> bytes:
        self.calls.append(how)
        return pack(["ok", [], ["job", "epoch", 1, 128, 0, [0], 0], 0])

    def call(self, *_: object, **__: object) -> bytes:
        """Answer."""
        return self._answer("asleep")

    def call_awake(self, *_: object, **__: object) -> bytes:
        """Answer."""
        return self._answer("awake")


@pytest.mark.parametrize(
    ("awake", "trip", "then"),
    [(True, 0.0, "awake"), (False, 0.0, "asleep"), (True, 2 * NEAR, "asleep")],
)
def test_a_slot_waits_awake_after_some_leases_in_a_row(
    monkeypatch: pytest.MonkeyPatch, *, awake: bool, trip: float, then: str
) -> None:
    """If it has a core for itself, and the server is near."""
    link, pace, page = Answering(), Pace(), Page()
    monkeypatch.setattr(pace, "called", lambda _: None)
    pace.trip = trip
    told: Any = link
    stepper = Stepper(
        told, "slot", pace, page, SlotMemory(told), SlotTags([]), lambda: 1000, awake=awake
    )
    for _ in range(ROW + 2):
        stepper.step(ServedQueue(Keys("test"), 0), Report(), more=True)
    assert link.calls == ["asleep"] * ROW + [then] * 2


def test_where_nothing_can_be_asked_there_is_no_wait(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""
    monkeypatch.delattr("select.poll")
    spin(pair[0].fileno(), FOREVER)
