"""Remove a queue: its workers leave, then its keys go. Or have its workers start anew."""

from __future__ import annotations

import math
import time

from dask_redisq.amounts import deadline_of
from dask_redisq.errors import RedisqError, ServerRefused
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.registry import list_workers
from dask_redisq.serving import serves

__all__ = ["remove_queue", "restart_workers"]

#: Milliseconds for which no job is made on a queue whose remover may have died.
LIFE = 10_000


def remove_queue(link: Link, keys: Keys, timeout: float | None) -> None:
    """Cancel the jobs, tell every worker to leave, wait for that, then delete all keys.

    But for the tombs of its jobs, and one of its loops, small keys that expire: a client that
    looks for its job, or comes with the next part of a loop, a moment later is told that the queue
    was removed, and not that the server lost its data.
    """
    deadline = deadline_of(timeout, time.monotonic()) or math.inf
    try:  # first of all: a queue without workers, whose keys nobody may look for, is no removed one
        link.command("SCAN", 0, "MATCH", keys.pattern(), "COUNT", 1)
    except ServerRefused as why:
        raise ServerRefused(
            f"queue {keys.queue!r} is as it was: who removes one needs +scan besides a client's "
            f"rights. {why}"
        ) from why
    reason, removing = "its queue was removed", keys("removing")
    link.call("stop_workers", keys, reason=reason, life=LIFE)
    while time.monotonic() < deadline:
        workers = link.command("HKEYS", keys("workers"))
        names = [keys("alive", w.decode()) for w in workers]
        if not names or not link.command("EXISTS", *names):
            break
        time.sleep(0.02)
        link.command("SET", removing, reason, "PX", LIFE)
    cursor, stay = b"0", (keys("tomb", "").encode(), removing.encode())
    while True:
        # Set anew, not renewed: of two removers the one that ended took it away.
        link.command("SET", removing, reason, "PX", LIFE)
        cursor, found = link.command("SCAN", cursor, "MATCH", keys.pattern(), "COUNT", 500)
        gone = [name for name in found if not name.startswith(stay)]
        if gone:
            link.command("UNLINK", *gone)
        if cursor == b"0":
            link.command("UNLINK", removing)
            # A loop that begins in the millisecond of the removal is taken for an older one.
            time.sleep(0.001)
            return


def restart_workers(link: Link, keys: Keys, timeout: float | None) -> None:
    """Do what `Queue.restart_workers` promises."""
    deadline = deadline_of(timeout, time.monotonic()) or math.inf
    if serves(link.url, keys):
        raise RedisqError(
            "a task cannot restart the workers of its own queue, and wait for them: its slot is "
            "one of them"
        )
    old = set(link.call("restart_workers", keys, worker=""))
    while True:
        slots = link.command("SMEMBERS", keys("slots"))
        states = [link.command("HMGET", keys("slot", s.decode()), "seq", "worker") for s in slots]
        started = [seq for seq, _ in states if int(seq or 0) > 0]
        wanted = sum(row["nworkers"] for row in list_workers(link, keys))
        if not old.intersection(slots) and len(started) >= wanted:
            return
        if time.monotonic() >= deadline:
            left = len(old.intersection(slots))
            raise TimeoutError(
                f"{left} of {len(old)} slots of queue {keys.queue!r} run their tasks still, and "
                f"{len(started)} are ready, {timeout:g} s after they were told to start anew"
            )
        time.sleep(0.02)
