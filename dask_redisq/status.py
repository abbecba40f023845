"""The read-only picture of a queue: workers and counts. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dask_redisq.codec import unpack
from dask_redisq.keys import Keys
from dask_redisq.link import Link

__all__ = ["able_workers", "counts", "list_workers"]


def _text(thing: Any) -> Any:
    if isinstance(thing, bytes):
        return thing.decode()
    if isinstance(thing, list):
        return [_text(x) for x in thing]
    if isinstance(thing, dict):
        return {_text(k): _text(v) for k, v in thing.items()}
    return thing


def list_workers(link: Link, keys: Keys) -> list[dict[str, Any]]:
    """Return one row per worker whose alive key is there, with its slots."""
    found = link.command("HGETALL", keys("workers"))
    rows = []
    for worker, info in zip(found[::2], found[1::2], strict=True):
        name = worker.decode()
        if not link.command("EXISTS", keys("alive", name)):
            continue
        slots = link.command("SMEMBERS", keys("worker_slots", name))
        rows.append({"id": name, **_text(unpack(info)), "slots": sorted(_text(list(slots)))})
    return sorted(rows, key=lambda row: (row["name"], row["id"]))


def counts(link: Link, keys: Keys) -> dict[str, int]:
    """Return waiting, ready, running and finished tasks, workers and slots of a queue.

    ``finished`` counts all that the queue ever finished, so its growth is a rate.
    """
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
        running += here
        ready += at_hand
        waiting += max(0, int(n) - int(done) - here - at_hand)
    workers = list_workers(link, keys)
    return {
        "waiting": waiting,
        "ready": ready,
        "running": running,
        "finished": int(link.command("HGET", keys("queue"), "finished") or 0),
        "workers": len(workers),
        "slots": sum(len(row["slots"]) for row in workers),
    }


def able_workers(
    link: Link, keys: Keys, python: str, wanted: Iterable[frozenset[str]]
) -> str | None:
    """Return what is lacking to run tasks of this Python and these restrictions; None if nothing.

    Parameters
    ----------
    python : str
        The tag of the client's Python.
    wanted : iterable of frozenset of str
        For each restriction, the tags of which a slot must carry one.
    """
    rows = list_workers(link, keys)
    if not rows:
        start = f"dask-redisq-worker {keys.queue} --url URL"
        return f"queue {keys.queue!r} has no workers. Start some: {start}"
    fitting = [set(row["tags"]) for row in rows if python in row["tags"]]
    if not fitting:
        others = sorted({row["python"] for row in rows})
        return (
            f"queue {keys.queue!r} has workers of Python {', '.join(others)}, and this client is "
            f"{python}: pickled functions need the same minor version"
        )
    for tags in wanted:
        if not any(tags & carried for carried in fitting):
            return f"no worker of queue {keys.queue!r} carries any of the tags {sorted(tags)}"
    return None
