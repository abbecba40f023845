"""What happens to the calls of a loop, one line each in a log: for ``verbose=True``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dask_redisq.events import JobEvents
from dask_redisq.forks import in_forked_child

__all__ = ["CallLog", "heard", "in_short"]

logger = logging.getLogger("dask_redisq.foreach")

#: What lua/lib/events.lua has a word for; of iterations, and a slot.
_LINES = {
    b"died": "fault: %s %s ended its process, slot %s",
    b"timeout": "fault: %s %s took longer than its timeout in slot %s",
    b"raised": "fault: %s %s raised in slot %s, and has retries left",
    b"back": "resubmission: %ss %s, since slot %s is gone",
    b"dropped": "drop: another result of %ss %s, from slot %s",
}


class CallLog(JobEvents):
    """Logs the events of one job; its names are the numbers of the iterations that its tasks are.

    Attributes
    ----------
    noun : str
        What they are the numbers of; chunks, where results are reduced in those.
    """

    noun = "iteration"

    def submitted(self) -> None:
        """Log that the job was submitted."""
        logger.info("submit: %ss %s, as job %s", self.noun, in_short(self.names), self.job)

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
            line = "lease: %ss %s, to slot %s" if what is False else _LINES.get(what)
            if line is not None and tasks:  # a result is no news: it is combined
                names = in_short([self.names[task] for task in tasks])
                logger.info(line, self.noun, names, self._name_of(slot, worker))


class _Listening:
    """Who wants the lines of loops on stderr, and how the log is without them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._many = 0
        self._handler = logging.StreamHandler()
        self._before = logging.NOTSET, True

    def begin(self) -> bool:
        """Have lines go to stderr, unless the log has them; tell whether there is an end to it."""
        with self.lock:
            if not self._many:
                if not _drops_lines():
                    return False
                self._handler = logging.StreamHandler()
                self._before = logger.level, logger.propagate
                logger.addHandler(self._handler)
                logger.setLevel(logging.INFO)
                logger.propagate = False  # a handler further up may take them now, too
            self._many += 1
        return True

    def end(self) -> None:
        """Undo that, with the last one."""
        with self.lock:
            self._many -= 1
            if not self._many:
                logger.removeHandler(self._handler)
                level, logger.propagate = self._before
                logger.setLevel(level)


_listening = _Listening()


@in_forked_child
def _renew_lock() -> None:
    _listening.lock = threading.Lock()


@contextmanager
def heard() -> Iterator[None]:
    """Have the lines of loops go to stderr, where the log would drop them: in a plain script."""
    begun = _listening.begin()
    try:
        yield
    finally:
        if begun:
            _listening.end()


def _drops_lines() -> bool:
    """Tell whether nobody would get a line: it is too unimportant, or there is no handler."""
    if not logger.isEnabledFor(logging.INFO):
        return True
    some: logging.Logger | None = logger
    while some is not None:
        if any(handler.level <= logging.INFO for handler in some.handlers):
            return False
        some = some.parent if some.propagate else None
    return True


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
