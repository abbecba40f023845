"""Control words: none is lost, whatever becomes of the connection that they are read over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import wait_until
from proxy import LossyProxy

from dask_redisq.codec import pack
from dask_redisq.control import HOLD, LATE, ControlWords, Word
from dask_redisq.keys import Keys
from dask_redisq.link import Link

WORKER = "w"


@pytest.fixture
def listen() -> Iterator[Callable[[str], ControlWords]]:
    """A function that makes the ear of a worker on some URL."""
    made: list[ControlWords] = []

    def make(url: str) -> ControlWords:
        made.append(ControlWords(url, WORKER))
        return made[-1]

    yield make
    for words in made:
        words.close()


def tell_to_stop(link: Link, keys: Keys) -> None:
    """Register the worker, and let its queue be removed."""
    link.call(
        "register", keys, worker=WORKER, info=b"", expiry=60_000, slot="", seq=0, tags=pack([])
    )
    assert link.call("stop_workers", keys, reason="", life=1000) == 1


def heard(words: ControlWords) -> list[Word]:
    """Wait for the reply; return what it says."""
    replies: list[list[Word]] = []

    def ask() -> list[Word]:
        replies.append(words.read())
        return replies[-1]

    wait_until(ask)
    return replies[-1]


def test_a_word_comes_again_until_it_is_deleted(
    link: Link, keys: Keys, listen: Callable[[str], ControlWords]
) -> None:
    """The supervisor may be cut off before it obeyed: the next question has the same answer."""
    words = listen(link.url)
    tell_to_stop(link, keys)
    words.ask([keys], 0.0)
    (first,) = heard(words)
    assert (first.keys, first.verb, first.slot, first.job) == (keys, "stop", "", "")
    words.ask([keys], 0.0)
    assert heard(words) == [first]
    words.delete(link, [first])
    tell_to_stop(link, keys)
    words.ask([keys], 0.0)
    (second,) = heard(words)
    assert second.id != first.id


def test_a_word_that_no_script_wrote_says_nothing(
    link: Link, keys: Keys, listen: Callable[[str], ControlWords]
) -> None:
    """It is deleted as any other; the worker goes on."""
    words = listen(link.url)
    tell_to_stop(link, keys)
    for fields in (["a", "b"], ["verb", "cancel", "slot", "s", "job", "j", "seq", "many"]):
        link.command("XADD", keys("control", WORKER), "*", *fields)
    words.ask([keys], 0.0)
    found = heard(words)
    assert [word.verb for word in found] == ["stop", "", ""]
    words.delete(link, found)
    assert link.command("XLEN", keys("control", WORKER)) == 0


def test_words_of_several_queues_are_told_apart(
    link: Link, keys: Keys, listen: Callable[[str], ControlWords]
) -> None:
    """One question asks for all of them."""
    other, words = Keys("other"), listen(link.url)
    for some in (keys, other, keys):
        tell_to_stop(link, some)
    words.ask([keys, other], 0.0)
    found = heard(words)
    assert [word.keys for word in found] == [keys, keys, other]
    words.delete(link, found)
    assert [link.command("XLEN", some("control", WORKER)) for some in (keys, other)] == [0, 0]


def test_deleting_a_word_of_a_removed_queue_makes_no_key(
    link: Link, keys: Keys, listen: Callable[[str], ControlWords]
) -> None:
    """A worker that left has deleted its words already."""
    words = listen(link.url)
    tell_to_stop(link, keys)
    words.ask([keys], 0.0)
    found = heard(words)
    link.command("FLUSHALL")
    words.delete(link, found)
    assert link.command("KEYS", "*") == []


def test_a_connection_that_went_silent_is_given_up(
    link: Link, keys: Keys, listen: Callable[[str], ControlWords], tmp_socket: Path
) -> None:
    """A firewall forgot it, and it breaks for neither side: the question is asked anew in time."""
    with LossyProxy(tmp_socket, link.url, lost=[b":control:"], silently=True) as proxy:
        words = listen(proxy.url)
        words.ask([keys], now=0.0)
        tell_to_stop(link, keys)
        wait_until(lambda: proxy.losses == 1)
        words.ask([keys], now=HOLD + LATE)
        assert words.read() == []
        words.ask([keys], now=HOLD + LATE + 0.1)
        assert [word.verb for word in heard(words)] == ["stop"]


def test_a_server_that_is_away_is_asked_when_it_is_back(
    link: Link, keys: Keys, listen: Callable[[str], ControlWords], tmp_socket: Path
) -> None:
    """Until then there is nothing to wait for, and no question is thought to be under way."""
    words = listen(f"unix://{tmp_socket}")
    words.ask([keys], 0.0)
    assert repr(words) == "<ControlWords for w, not asked>"
    assert words.read() == []
    tell_to_stop(link, keys)
    with LossyProxy(tmp_socket, link.url, lost=[b"nothing of the kind"]):
        words.ask([keys], 0.0)
        assert words.listening
        assert [word.verb for word in heard(words)] == ["stop"]
