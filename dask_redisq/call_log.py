"""What happens to the calls of a loop, one line each in a log: for ``verbose=True``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dask_redisq.codec import unpack
from dask_redisq.events import name_of_slot
from dask_redisq.keys import Keys
from dask_redisq.link import Link

__all__ = ["CallLog", "in_short"]

logger = logging.getLogger("dask_redisq.foreach")

#: What lua/lib/events.lua has a word for; of iterations, and a slot.
_LINES = {
    b"died": "fault: iteration %s ended its process, slot %s",
    b"timeout": "fault: iteration %s took longer than its timeout in slot %s",
    b"raised": "fault: iteration %s raised in slot %s, and has retries left",
    b"back": "resubmission: iterations %s, since slot %s is gone",
    b"dropped": "drop: another result of iterations %s, from slot %s",
}


class CallLog:
    """Logs the events of one job (lua/lib/events.lua).

    Parameters
    ----------
    link : Link
        The client's connection.
    keys : Keys
        The queue.
    job : str
        The job's id.
    names : sequence of int
        The iteration that each task is.
    """

    def __init__(self, link: Link, keys: Keys, job: str, names: Sequence[Any]) -> None:
        self.link = link
        self.keys = keys
        self.job = job
        self.names = names
        self._read = 0
        self._where: dict[bytes, str] = {}

    def __repr__(self) -> str:
        return f"<CallLog of job {self.job}, {self._read} events>"

    def submitted(self) -> None:
        """Log that the job was submitted."""
        logger.info("submit: iterations %s, as job %s", in_short(self.names), self.job)

    def read(self, received: Mapping[int, Any], *, anew: bool) -> None:  # noqa: ARG002 - as others
        """Log what happened since the last call.

        Parameters
        ----------
        received : Mapping
            Of no interest here.
        anew : bool
            The job was rebuilt, perhaps on a server that came back with fewer events.
        """
        name = self.keys("events", self.job)
        if anew:
            self._read = min(self._read, self.link.command("LLEN", name))
        entries = self.link.command("LRANGE", name, self._read, -1)
        self._read += len(entries)
        for slot, worker, what, tasks in map(unpack, entries):
            line = "lease: iterations %s, to slot %s" if what is False else _LINES.get(what)
            if line is not None and tasks:  # a result is no news: it is combined
                where = self._where.get(slot)  # one that is gone had a worker
                if where is None:
                    where = name_of_slot(self.link, self.keys, slot, worker)
                    self._where[slot] = where
                logger.info(line, in_short([self.names[task] for task in tasks]), where)


def in_short(numbers: Iterable[int]) -> str:
    """Return numbers in few words.

    >>> in_short([7, 0, 1, 2])
    '0-2, 7'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
