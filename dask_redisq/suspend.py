"""Hold a queue, and let it go on: no slot gets another lease meanwhile."""

from __future__ import annotations

from dask_redisq.keys import Keys
from dask_redisq.link import Link

__all__ = ["set_suspended"]


def set_suspended(link: Link, keys: Keys, *, on: bool) -> None:
    """Do what `Queue.suspend` and `Queue.resume` promise.

    The script is told how often that was done before, so that no late copy of it does it again; of
    two callers at once the second one looks anew.
    """
    while True:
        since, turn = link.command("HMGET", keys("queue"), "suspended", "turns")
        if (since is not None) is on:
            return
        link.call("suspend", keys, on=int(on), turn=int(turn or 0))
