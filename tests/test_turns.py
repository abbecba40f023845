"""Tests that measure time run alone."""

from __future__ import annotations

import fcntl
import threading

import pytest
import turns
from conftest import wait_until


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a run of several processes; each opens the locks for itself, as threads do here."""
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "test-turns")


def test_one_that_measures_waits_for_others_and_lets_none_in(run: None) -> None:
    """It waits for who was there, and the next one waits for it."""
    order: list[str] = []

    def take(name: str, *, alone: bool) -> None:
        with turns.turn(alone=alone):
            order.append(name)

    alone = threading.Thread(target=take, args=("alone",), kwargs={"alone": True})
    later = threading.Thread(target=take, args=("later",), kwargs={"alone": False})
    try:
        with turns.turn(alone=False):
            take("beside", alone=False)
            alone.start()
            wait_until(_door_is_held)
            later.start()
            later.join(0.2)
            assert order == ["beside"]
        alone.join(60)
        later.join(60)
        assert order == ["beside", "alone", "later"]
    finally:
        turns.end_turns()


def _door_is_held() -> bool:
    with turns._locks()[0].open("w") as door:
        try:
            fcntl.flock(door, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
