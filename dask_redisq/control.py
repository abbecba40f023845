"""What the server tells a worker's supervisor: control words, on a connection of their own.

A word is read where it lies, and deleted once it was obeyed. Were it popped, it would be gone with
a reply that is lost: a removed queue's worker would never hear of it, and register again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from dask_redisq.errors import ServerUnavailable
from dask_redisq.keys import Keys
from dask_redisq.link import Link

__all__ = ["ControlWords", "Word"]

#: Seconds for which the server holds a question that it has no word for.
HOLD = 5.0
#: Seconds that a reply may be late after that. A connection that a firewall forgot breaks for
#: neither side, and who waits for it is deaf.
LATE = 3.0
#: Words of one queue in one reply.
WORDS = 100


class Word(NamedTuple):
    """One word: what to do, and of whom it speaks. It may come again after it was obeyed.

    Attributes
    ----------
    keys : Keys
        The queue that it came from.
    id : bytes
        Its name in the queue's list for this worker.
    verb : str
        ``stop``: leave the queue. ``cancel``: let `slot` run no task of `job` any more.
        ``restart``: start all slots anew. Empty: it cannot be read.
    slot, job : str
        Empty but for ``cancel``.
    seq : int
        And of no lease after that one: a job that failed may run again.
    """

    keys: Keys
    id: bytes
    verb: str
    slot: str
    job: str
    seq: int


class ControlWords:
    """The words for one worker, read without ever blocking its supervisor.

    Parameters
    ----------
    url : str
        The server.
    worker : str
        Whose words.
    """

    def __init__(self, url: str, worker: str) -> None:
        self.worker = worker
        self._link = Link(url, patience=None)
        self._queues: dict[bytes, Keys] = {}
        self._asked: float | None = None

    def __repr__(self) -> str:
        state = "not asked" if self._asked is None else "asked"
        return f"<ControlWords for {self.worker}, {state}>"

    def ask(self, queues: Sequence[Keys], now: float) -> None:
        """Have a question under way; its reply comes with a word, or empty after `HOLD`.

        Parameters
        ----------
        queues : sequence of Keys
            Where words may come from.
        now : float
            `time.monotonic()`.
        """
        if self._asked is not None and now - self._asked > HOLD + LATE:
            self._forget_question()
        if self._asked is not None or not queues:
            return
        try:
            if self._link.unbroken_since is None:
                self._link.connect()
        except ServerUnavailable:
            return  # the link that beats waits for the server; the next turn tries again
        self._queues = {keys("control", self.worker).encode(): keys for keys in queues}
        block = ("COUNT", WORDS, "BLOCK", int(HOLD * 1000))
        # From the beginning each time: what was obeyed is not there any more.
        self._link.send("XREAD", *block, "STREAMS", *self._queues, *["0"] * len(queues))
        self._asked = now
        if self._link.unbroken_since is None:
            self._forget_question()

    def _forget_question(self) -> None:
        self._link.close()
        self._asked = None

    @property
    def listening(self) -> bool:
        """Whether a selector may wait for the reply."""
        return self._asked is not None

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._link.fileno()

    def read(self) -> list[Word]:
        """Return the words that have come; they come again until `delete` is told of them."""
        if self._asked is None or not self._link.reply_ready():
            return []
        self._asked = None
        found: list[Any] = self._link.read_now() or []
        return [
            _word(self._queues[name], number, fields)
            for name, entries in found
            for number, fields in entries
        ]

    def delete(self, link: Link, words: Sequence[Word]) -> None:
        """Delete words that were obeyed, over a link that may wait for its reply."""
        by_queue: dict[Keys, list[bytes]] = {}
        for word in words:
            by_queue.setdefault(word.keys, []).append(word.id)
        for keys, numbers in by_queue.items():
            link.command("XDEL", keys("control", self.worker), *numbers)

    def close(self) -> None:
        """Close the connection."""
        self._forget_question()


def _word(keys: Keys, number: bytes, fields: list[bytes]) -> Word:
    """Return the word of an entry; one that no script wrote says nothing, and is deleted, too."""
    try:
        _, verb, _, slot, _, job, _, seq = fields
        return Word(keys, number, verb.decode(), slot.decode(), job.decode(), int(seq))
    except ValueError:
        return Word(keys, number, "", "", "", 0)
