"""What the server tells a worker's supervisor: control words, on a connection of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dask_redisq.codec import unpack
from dask_redisq.errors import ServerUnavailable
from dask_redisq.keys import Keys
from dask_redisq.link import Link

__all__ = ["ControlWords", "Word"]

#: Seconds for which the server holds a question that it has no word for.
HOLD = 5


class Word(NamedTuple):
    """One word: what to do, and of whom it speaks.

    Attributes
    ----------
    keys : Keys
        The queue that it came from.
    verb : str
        ``stop``: leave the queue. ``cancel``: let `slot` run no task of `job` any more.
    slot, job : str
        Empty for ``stop``.
    """

    keys: Keys
    verb: str
    slot: str
    job: str


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
        self._asked = False

    def __repr__(self) -> str:
        return f"<ControlWords for {self.worker}, {'asked' if self._asked else 'not asked'}>"

    def ask(self, queues: Sequence[Keys]) -> None:
        """Have a question under way; its reply comes with a word, or empty after `HOLD`."""
        if self._asked or not queues:
            return
        try:
            if self._link.unbroken_since is None:
                self._link.connect()
        except ServerUnavailable:
            return  # the link that beats waits for the server; the next turn tries again
        self._queues = {keys("control", self.worker).encode(): keys for keys in queues}
        self._link.send("BLPOP", *self._queues, HOLD)
        self._asked = True

    @property
    def listening(self) -> bool:
        """Whether a selector may wait for the reply."""
        return self._asked and self._link.unbroken_since is not None

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._link.fileno()

    def read(self) -> list[Word]:
        """Return the words that have come."""
        if not self._asked or not self._link.reply_ready():
            return []
        self._asked = False
        reply = self._link.read_now()
        if reply is None:
            return []
        name, packed = reply
        verb, slot, job = (part.decode() for part in unpack(packed))
        return [Word(self._queues[name], verb, slot, job)]

    def close(self) -> None:
        """Close the connection."""
        self._link.close()
