"""The read-only picture of a queue: it changes nothing, and no job or worker needs it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from dask.typing import Key

from dask_redisq.codec import unpack
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.names import keys_of
from dask_redisq.refused import counting
from dask_redisq.registry import list_workers
from dask_redisq.trust import Signer

__all__ = ["counts", "jobs", "submitter", "tasks"]


def counts(link: Link, keys: Keys) -> dict[str, int]:
    """Return waiting, ready, running and finished tasks, workers and slots of a queue.

    And whether it is ``suspended``, 0 or 1.

    ``finished`` counts all that the queue ever finished, so its growth is a rate;
    ``refused_payloads`` all that was refused for its signature.

    It is read by many calls while work goes on, and in this order no task is counted twice: one
    that runs now and is finished in a moment is not among the finished. So their sum never is more
    than there are, and a progress bar gets full.
    """
    finished, refused, suspended = link.command(
        "HMGET", keys("queue"), "finished", "refused", "suspended"
    )
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
        "suspended": int(suspended is not None),
    }


def jobs(link: Link, keys: Keys) -> list[dict[str, Any]]:
    """Return one row per job of a queue, in the order of their creation."""
    found = link.command("ZRANGE", keys("jobs"), 0, -1, "WITHSCORES")
    names = [job.decode() for job in found[::2]]
    for name in names:
        link.send("HMGET", keys("job", name), "state", "sealed", "ttl", "n", "finished", "by")
    rows = []
    for name, created, meta in zip(names, found[1::2], link.receive_all(), strict=True):
        state, sealed, ttl, n, done, by = meta
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
                    **submitter(by),
                }
            )
    return rows


def submitter(by: bytes | None) -> dict[str, Any]:
    """Return who submitted a job, as `create.lua` was told: for people."""
    user, host, pid = unpack(by) if by else (b"", b"", 0)
    return {"user": user.decode(), "host": host.decode(), "pid": pid}


def tasks(
    link: Link, keys: Keys, signer: Signer | None, job: str | None = None
) -> list[dict[str, Any]]:
    """Return one row per leased task of a queue, or of one job; see `Queue.tasks`.

    From the slots, of which there are few, and not from the jobs: five round trips, however much
    there is to do.
    """
    slots = sorted(slot.decode() for slot in link.command("SMEMBERS", keys("slots")))
    for slot in slots:
        link.send("HMGET", keys("slot", slot), "worker", "job", "since")
    held = [
        (slot, worker, of.decode(), float(since) / 1000 if since else None)
        for slot, (worker, of, since) in zip(slots, link.receive_all(), strict=True)
        if of is not None and job in (None, of.decode())
    ]
    for slot, _, of, _ in held:
        link.send("HGET", keys("leases", of), slot)
    leases = link.receive_all()
    about = _workers(link, keys)
    jobs = {of for _, _, of, _ in held}
    graph_keys, users = _graph_keys(link, keys, signer, jobs), _users(link, keys, jobs)
    rows = []
    for (slot, worker, of, since), lease in zip(held, leases, strict=True):
        name, host, pid = about.get(worker, ("", "", 0))
        for task in unpack(lease)[1] if lease else ():  # it has ended meanwhile
            known = graph_keys[of]
            rows.append(
                {
                    "job": of,
                    "user": users[of],
                    "task": task,
                    "key": known[task] if task < len(known) else None,
                    "since": since,
                    "slot": slot,
                    "worker": name,
                    "host": host,
                    "pid": pid,
                }
            )
    return sorted(rows, key=lambda row: (row["job"], row["task"]))


def _workers(link: Link, keys: Keys) -> dict[bytes, tuple[str, str, int]]:
    """Return the name, the host and the process of each worker."""
    found = link.command("HGETALL", keys("workers"))
    about = {worker: unpack(info) for worker, info in zip(found[::2], found[1::2], strict=True)}
    return {
        worker: (info[b"name"].decode(), info[b"host"].decode(), info[b"pid"])
        for worker, info in about.items()
    }


def _users(link: Link, keys: Keys, jobs: Collection[str]) -> dict[str, str]:
    """Return who submitted some jobs."""
    for job in jobs:
        link.send("HGET", keys("job", job), "by")
    return {job: submitter(by)["user"] for job, by in zip(jobs, link.receive_all(), strict=True)}


def _graph_keys(
    link: Link, keys: Keys, signer: Signer | None, jobs: Collection[str]
) -> dict[str, Sequence[Key]]:
    """Return the graph keys of some jobs; none for those whose client alone knows them."""
    for job in jobs:
        link.send("GET", keys("names", job))
    found = {}
    for job, data in zip(jobs, link.receive_all(), strict=True):
        if signer is None:
            found[job] = keys_of(data, None)
            continue
        seal = signer.seal(keys.queue, job)
        with counting(link, keys, seal):
            found[job] = keys_of(data, seal)
    return found
