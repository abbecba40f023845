"""Who may declare a worker dead: only who was served without a break for one whole expiry. Rule 14."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Thread

import pytest
from mortal import MortalServer

from dask_redisq.codec import pack
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.monitor import Recovery

#: Seconds; far less than a loaded machine's pauses would make of it is never awaited here.
EXPIRY = 1.5
#: What the monitor takes for the time, in s: long after it connected.
NOW = 1e9


@pytest.fixture
def monitor(mortal: MortalServer) -> Iterator[Recovery]:
    """A monitor that was served for long, of a queue with one worker that beat a moment ago."""
    link, keys = Link(mortal.url), Keys("test")
    words = {"worker": "w", "info": pack({}), "expiry": int(EXPIRY * 1000), "tags": pack([])}
    link.call("register", keys, slot="", seq=0, **words)
    recovery = Recovery(link, keys, "test", interval=1.0, expiry=EXPIRY)
    recovery.run(NOW)
    yield recovery
    link.close()


def look(monitor: Recovery) -> None:
    """Let it look as one that has been there for long enough."""
    monitor.run(NOW + EXPIRY)


def test_a_worker_without_a_beat_is_found_dead(monitor: Recovery) -> None:
    """What the tests below would see if the monitor judged."""
    monitor.link.command("DEL", monitor.keys("alive", "w"))
    look(monitor)
    assert monitor.stats() == {"looks": 1, "dead": 1, "rebuilt": 0}


def test_nobody_is_dead_because_the_server_was_away(
    mortal: MortalServer, monitor: Recovery
) -> None:
    """H39: the alive keys expired meanwhile. The monitor did not call for a while, so it did not see that."""
    mortal.kill()
    time.sleep(EXPIRY)
    mortal.start()
    look(monitor)
    assert monitor.stats()["dead"] == 0


@pytest.mark.parametrize("call", ["a look", "a beat"])
def test_nobody_is_dead_because_the_server_stood_still(
    mortal: MortalServer, monitor: Recovery, call: str
) -> None:
    """H39: no connection broke; the beats lie in the server's sockets, behind the monitor's own call."""
    mortal.freeze()
    words = {"worker": "v", "expiry": 1000, "held": pack([])}

    def wait() -> None:
        if call == "a beat":
            monitor.link.call("renew", monitor.keys, **words)
        look(monitor)

    thread = Thread(target=wait)
    thread.start()
    time.sleep(EXPIRY + 0.3)
    mortal.thaw()
    thread.join()
    if call == "a beat":  # `look` is after any pause; what counts is what the link saw of it
        assert monitor.link.served_since(EXPIRY / 3) > time.monotonic() - 1  # type: ignore[operator]
    else:
        assert monitor.stats()["dead"] == 0


@pytest.mark.parametrize("asked", ["before", "after"])
def test_who_was_stopped_just_before_its_look_judges_nobody(
    monitor: Recovery, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """H39: its whole host stood still, and the others with it; after it found that the server answers, or before."""
    command = monitor.link.command

    def stopped(*words: str) -> object:
        answer = command(*words) if asked == "before" else None
        time.sleep(2 * EXPIRY)
        return answer or command(*words)

    monkeypatch.setattr(monitor.link, "command", stopped)
    look(monitor)
    assert monitor.stats() == {"looks": 0, "dead": 0, "rebuilt": 0}


def test_a_look_is_not_sent_again_over_a_new_connection(
    mortal: MortalServer, monitor: Recovery
) -> None:
    """H39: the server dies with the look on its way; when it is back that look is out of date."""
    answers = []
    monitor.link.command("TIME")
    mortal.freeze()
    look = {"who": "test", "interval": 1000, "deadline": 10**15}
    thread = Thread(
        target=lambda: answers.append(monitor.link.call_once("recover", monitor.keys, **look))
    )
    thread.start()
    time.sleep(0.2)
    mortal.kill()
    thread.join()
    mortal.start()
    assert answers == [None]
    assert monitor.link.command("EXISTS", monitor.keys("monitor")) == 0
