"""The read-only picture of a queue: it changes nothing, and no job or worker needs it."""

from __future__ import annotations

from typing import Any

from dask_redisq.codec import unpack
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.registry import list_workers

__all__ = ["counts", "jobs"]


def counts(link: Link, keys: Keys) -> dict[str, int]:
    """Return waiting, ready, running and finished tasks, workers and slots of a queue.

    ``finished`` counts all that the queue ever finished, so its growth is a rate;
    ``refused_payloads`` all that was refused for its signature.

    It is read by many calls while work goes on, and in this order no task is counted twice: one
    that runs now and is finished in a moment is not among the finished. So their sum never is more
    than there are, and a progress bar gets full.
    """
    finished, refused = link.command("HMGET", keys("queue"), "finished", "refused")
    waiting = ready = running = 0
    for job in link.command("ZRANGE", keys("jobs"), 0, -1):
        name = job.decode()
        state, n, done = link.command("HMGET", keys("job", name), "state", "n", "finished")
        if state != b"running":
            continue
        leases = link.command("HVALS", keys("leases", name))
        here = sum(len(unpack(lease)[1]) for lease in leases)
        at_hand = link.command("ZCARD", keys("ready", name))
        for tag in link.command("ZRANGE", keys("sets", name), 0, -1):
            at_hand += link.command("ZCARD", keys("tagged", name, tag.decode()))
        left = int(n) - int(done)
        here = min(here, left)
        at_hand = min(at_hand, left - here)
        running += here
        ready += at_hand
        waiting += left - here - at_hand
    workers = list_workers(link, keys)
    return {
        "waiting": waiting,
        "ready": ready,
        "running": running,
        "finished": int(finished or 0),
        "refused_payloads": int(refused or 0),
        "workers": len(workers),
        "slots": sum(len(row["slots"]) for row in workers),
    }


def jobs(link: Link, keys: Keys) -> list[dict[str, Any]]:
    """Return one row per job of a queue, in the order of their creation."""
    found = link.command("ZRANGE", keys("jobs"), 0, -1, "WITHSCORES")
    rows = []
    for job, created in zip(found[::2], found[1::2], strict=True):
        name = job.decode()
        state, sealed, ttl, n, done = link.command(
            "HMGET", keys("job", name), "state", "sealed", "ttl", "n", "finished"
        )
        if state is not None:
            rows.append(
                {
                    "id": name,
                    "state": state.decode(),
                    "sealed": sealed is not None,
                    "detached": int(ttl) > 0,
                    "n": int(n),
                    "finished": int(done),
                    "created": float(created) / 1000,
                }
            )
    return rows
