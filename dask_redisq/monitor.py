"""Looks for the dead, at most once per interval for the whole queue.

Every waiting client and every supervisor runs one; the lock that they share is in the server.
Who was not served himself for one whole expiry judges nobody: after an outage of
the server all alive keys are gone at once, and none of their workers is dead.

Nor after the server stood still, though no connection broke: the beats then lie in its sockets,
behind the look perhaps. So a monitor asks for the time first, and looks only if it came at once.
"""

from __future__ import annotations

import logging

from dask_redisq.codec import unpack
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
        Whose unbroken service is the licence to judge.
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
        self._next = 0.0
        self._looks = self._dead = 0

    def stats(self) -> dict[str, int]:
        """Return how often this monitor looked, and how many workers it found dead."""
        return {"looks": self._looks, "dead": self._dead}

    def run(self, now: float) -> None:
        """Look if it is time; `now` is `time.monotonic()`."""
        if now < self._next or not self._may_judge(now):
            return
        # A little early, so that two monitors in turn keep the interval that is promised.
        self._next = now + self.interval
        answer = self.link.call_once(
            "recover", self.keys, who=self.who, interval=int(self.interval * 900)
        )
        if answer is None:
            return  # sent again after an outage, it would find all workers dead
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
            rebuild(self.link, self.keys, job.decode())
        for job in values:
            renew_values(self.link, self.keys, job.decode())

    def _may_judge(self, now: float) -> bool:
        """Tell whether no beat can be missing for the server's sake; they come three an expiry."""
        since = self.link.served_since(self.expiry / 3)
        if since is None or now - since < self.expiry:
            return False
        self.link.command("TIME")
        return self.link.served_since(self.expiry / 3) == since


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
