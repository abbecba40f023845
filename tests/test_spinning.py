"""Waiting awake for what can be read."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from dask_redisq import spinning
from dask_redisq.spinning import spin

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


def test_where_nothing_can_be_asked_there_is_no_wait(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""
    monkeypatch.delattr("select.poll")
    spin(pair[0].fileno(), FOREVER)
