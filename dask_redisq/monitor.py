"""Looks for the dead, at most once per interval for the whole queue.

Every waiting client and every supervisor runs one; the lock that they share is in the server.
Who was not there and connected himself for one whole expiry judges nobody: after an outage
of the server all alive keys are gone at once, and none of their workers is dead.
"""

from __future__ import annotations

import logging
import math

from dask_redisq.codec import unpack
from dask_redisq.errors import ServerFull
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.rebuild import rebuild
from dask_redisq.settings import setting

__all__ = ["Monitor", "renew_values", "sweep"]

logger = logging.getLogger("dask_redisq")


class Monitor:
    """A periodic check of one queue.

    Parameters
    ----------
    link : Link
        Whose unbroken connection is the licence to judge.
    keys : Keys
        The queue.
    who : str
        Name in the shared lock.
    interval, expiry : float, optional
        Seconds; from the settings ``ft-interval`` and ``alive-expiry`` by default.
    """

    name = "recover"

    def __init__(
        self,
        link: Link,
        keys: Keys,
        who: str,
        interval: float | None = None,
        expiry: float | None = None,
    ) -> None:
        self.link = link
        self.keys = keys
        self.who = who
        self.interval = setting("ft-interval") if interval is None else interval
        self.expiry = setting("alive-expiry") if expiry is None else expiry
        self._next = self._here_since = 0.0
        self._here = -math.inf
        self._looks = self._dead = 0

    def stats(self) -> dict[str, int]:
        """Return how often this monitor looked, and how many workers it found dead."""
        return {"looks": self._looks, "dead": self._dead}

    def run(self, now: float) -> None:
        """Look if it is time; `now` is `time.monotonic()`."""
        # All processes of a host were stopped for a while, this one too: the alive keys are gone,
        # and whoever looks first would find the others dead.
        if now - self._here > max(self.expiry, 2 * self.interval):
            self._here_since = now
        self._here = now
        since = self.link.unbroken_since
        if now < self._next or since is None or now - max(since, self._here_since) < self.expiry:
            return
        # A little early, so that two monitors in turn keep the interval that is promised.
        self._next = now + self.interval
        # Never sent again: the server was away meanwhile, and the call would be the first that it
        # gets, before any beat.
        answer = self.link.call_once(
            "recover", self.keys, who=self.who, interval=int(self.interval * 900)
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
            self._rebuild(job.decode())
        for job in values:
            renew_values(self.link, self.keys, job.decode())

    def _rebuild(self, job: str) -> None:
        """Rebuild a job, unless the server has no room for it: that must not end a worker."""
        try:
            rebuild(self.link, self.keys, job)
        except ServerFull as error:
            logger.warning(
                "job %s cannot be rebuilt now, the next look tries again: %s", job, error
            )


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
