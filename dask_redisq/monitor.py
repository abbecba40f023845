"""Periodic checks, each at most once per interval for the whole queue.

Every waiting client, every supervisor and every slot that got no work runs them; when somebody
last looked is in the server. Who was not there and served himself for one whole expiry judges
nobody: after an outage of the server all alive keys are gone at once, and no worker is dead.

Nor after the server stood still, though no connection broke: the beats then lie in its sockets,
behind the look perhaps. So a monitor asks for the time first, and looks only if it came at once.
"""

from __future__ import annotations

import logging
import math
from typing import Protocol

from dask_redisq.codec import unpack
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.rebuild import try_rebuild
from dask_redisq.settings import setting

__all__ = ["Audit", "Check", "Monitor", "Recovery", "renew_values", "server_ms", "sweep"]

logger = logging.getLogger("dask_redisq")


class Check(Protocol):
    """Something that is looked after from time to time.

    Attributes
    ----------
    name : str
        In `Monitor.stats`.
    """

    name: str

    def run(self, now: float) -> None:
        """Look if it is time; `now` is `time.monotonic()`."""

    def stats(self) -> dict[str, int]:
        """Return what was done so far."""


class Monitor:
    """The periodic checks of one queue.

    Parameters
    ----------
    link : Link
        Whose unbroken service is the licence to judge.
    keys : Keys
        The queue.
    who : str
        Name of who looks.
    interval, expiry : float, optional
        Seconds; from the settings ``ft-interval`` and ``alive-expiry`` by default.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        who: str,
        interval: float | None = None,
        expiry: float | None = None,
    ) -> None:
        self.keys = keys
        interval = setting("ft-interval") if interval is None else interval
        expiry = setting("alive-expiry") if expiry is None else expiry
        self.checks: list[Check] = [
            Recovery(link, keys, who, interval, expiry),
            Audit(link, keys, who, interval),
        ]

    def run(self, now: float) -> None:
        """Let each check look if it is time; `now` is `time.monotonic()`."""
        for check in self.checks:
            check.run(now)

    def stats(self) -> dict[str, dict[str, int]]:
        """Return what each check did, by its name."""
        return {check.name: check.stats() for check in self.checks}


class Recovery:
    """Gives the leases of dead workers back, and removes jobs that nobody waits for."""

    name = "recovery"

    def __init__(self, link: Link, keys: Keys, who: str, interval: float, expiry: float) -> None:
        self.link = link
        self.keys = keys
        self.who = who
        self.interval = interval
        self.expiry = expiry
        self._next = self._here_since = 0.0
        self._here = -math.inf
        #: How far the server's clock was ahead of `now` at the last look, in ms.
        self._ahead: float | None = None
        self._looks = self._dead = self._rebuilt = 0

    def stats(self) -> dict[str, int]:
        """Return how often it looked, how many workers it found dead, and what it rebuilt."""
        return {"looks": self._looks, "dead": self._dead, "rebuilt": self._rebuilt}

    def run(self, now: float) -> None:
        """Look if it is time; see `Check`."""
        # All processes of a host were stopped for a while, this one too: the alive keys are gone,
        # and whoever looks first would find the others dead.
        if now - self._here > max(self.expiry, 2 * self.interval):
            self._here_since = now
        self._here = now
        if now < self._next or (deadline := self._may_judge_before(now)) is None:
            return
        # A little early, so that two monitors in turn keep the interval that is promised.
        self._next = now + self.interval
        # Never sent again: the server was away meanwhile, and the call would be the first that it
        # gets, before any beat.
        answer = self.link.call_once(
            "recover", self.keys, who=self.who, interval=int(self.interval * 900), deadline=deadline
        )
        if answer is None:
            return
        looked, dead, ended, damaged, values = unpack(answer)
        self._looks += looked
        self._dead += len(dead)
        for worker in dead:
            logger.warning(
                "worker %s of queue %s died: its tasks run again", worker.decode(), self.keys.queue
            )
        for job in ended:
            sweep(self.link, self.keys, job.decode())
        for job in damaged:
            self._rebuilt += try_rebuild(self.link, self.keys, job.decode())
        for job in values:
            renew_values(self.link, self.keys, job.decode())

    def _may_judge_before(self, now: float) -> int | None:
        """Return up to which time of the server, in ms, no beat is missing for its sake, or ours.

        There are three beats an expiry. None: some may be missing now.
        """
        longest = self.expiry / 3
        since = self.link.served_since(longest)
        if since is None:
            return None
        if self._ahead is None:
            self._ahead = server_ms(self.link) - 1000 * now
        if now - max(since, self._here_since) < self.expiry:
            return None
        server = server_ms(self.link)
        # All were stopped since somebody read what `now` is: then more time passed there than here.
        stopped = server - 1000 * now - self._ahead > 1000 * longest
        self._ahead = server - 1000 * now
        if stopped or self.link.served_since(longest) != since:
            return None
        return server + int(1000 * longest)


class Audit:
    """Compares the counts of jobs with their graphs; what does not fit is rebuilt.

    Nothing is known that it would find, but for keys that somebody deleted: it is here because
    a count that is wrong is a job that hangs, or worse, and nobody would see why.
    """

    name = "audit"

    def __init__(self, link: Link, keys: Keys, who: str, interval: float) -> None:
        self.link = link
        self.keys = keys
        self.who = who
        self.interval = interval
        self._next = 0.0
        self._blocks = self._wrong = 0

    def stats(self) -> dict[str, int]:
        """Return how many blocks of tasks it compared, and how many jobs were wrong."""
        return {"blocks": self._blocks, "wrong": self._wrong}

    def run(self, now: float) -> None:
        """Look if it is time; see `Check`."""
        if now < self._next or self.link.unbroken_since is None:
            return
        self._next = now + self.interval
        answer = self.link.call("audit", self.keys, who=self.who, interval=int(self.interval * 900))
        blocks, damaged = unpack(answer)
        self._blocks += blocks
        for job, wrong in zip(damaged[::2], damaged[1::2], strict=True):
            self._wrong += 1
            name = job.decode()
            logger.warning("job %s is rebuilt, for it is damaged: %s", name, wrong.decode())
            try_rebuild(self.link, self.keys, name)


def server_ms(link: Link) -> int:
    """Return the time of the server's clock, in ms."""
    seconds, micros = map(int, link.command("TIME"))
    return 1000 * seconds + micros // 1000


def sweep(link: Link, keys: Keys, job: str) -> bool:
    """Remove all keys of an ended job, slice by slice; false if it still runs."""
    while (answer := link.call("sweep", keys, job=job)) == 0:
        pass
    return bool(answer > 0)


def renew_values(link: Link, keys: Keys, job: str) -> None:
    """Renew the expiry of a job's large values and constants, slice by slice."""
    cursor: object = "0"
    while True:
        cursor = link.call("renew_values", keys, job=job, cursor=cursor)
        if cursor in ("0", b"0"):
            return
