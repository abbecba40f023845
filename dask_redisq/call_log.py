"""What happens to the calls of a loop, one line each in a log: for ``verbose=True``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from dask_redisq.events import JobEvents

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


class CallLog(JobEvents):
    """Logs the events of one job; its names are the iterations that its tasks are."""

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
        if anew:
            there = self.link.command("LLEN", self.keys("events", self.job))
            self._read = min(self._read, there)
        for slot, worker, what, tasks in self._news():
            line = "lease: iterations %s, to slot %s" if what is False else _LINES.get(what)
            if line is not None and tasks:  # a result is no news: it is combined
                names = in_short([self.names[task] for task in tasks])
                logger.info(line, names, self._name_of(slot, worker))


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
