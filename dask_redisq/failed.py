"""Jobs that failed: why, and how they go on."""

from __future__ import annotations

import secrets
import traceback
from typing import Any

from dask_redisq.errors import BadSignature, JobLost, RedisqError
from dask_redisq.future import Future, attach
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.monitor import renew_values
from dask_redisq.names import Names
from dask_redisq.pool import Pool
from dask_redisq.rebuild import rebuild
from dask_redisq.refused import counting
from dask_redisq.status import submitter
from dask_redisq.trust import Signer
from dask_redisq.verdict import as_exception, culprit, what_failed

__all__ = ["failed_jobs", "rerun"]


def failed_jobs(link: Link, keys: Keys, signer: Signer) -> list[dict[str, Any]]:
    """Return one row per job that failed and is still there; see `Queue.failed`."""
    names = [job.decode() for job in link.command("ZRANGE", keys("jobs"), 0, -1)]
    for name in names:
        link.send("HMGET", keys("job", name), "state", "error", "ttl", "ended", "by")
    found = zip(names, link.receive_all(), strict=True)
    return [_row(link, keys, signer, name, meta) for name, meta in found if meta[0] == b"failed"]


def _row(link: Link, keys: Keys, signer: Signer, job: str, meta: list[Any]) -> dict[str, Any]:
    _, reason, ttl, ended, by = meta
    seal = signer.seal(keys.queue, job)
    names: Any = Names(link, keys, job, seal)
    task = what_failed(reason)[1]
    with counting(link, keys, seal):
        try:
            error = as_exception(reason, job, names, seal)
            task = culprit(reason, seal)
        except BadSignature as why:  # of a client with another secret
            error = why
        known = names.known
    return {
        "id": job,
        "error": error,
        "traceback": "".join(traceback.format_exception(error)),
        "task": task,
        "key": known[task] if task is not None and task < len(known) else None,
        "detached": int(ttl) > 0,
        "ended": int(ended) / 1000 if ended else None,
        **submitter(by),
    }


def rerun(pool: Pool, keys: Keys, job: str) -> Future:
    """Do what `Queue.rerun` promises."""
    future = attach(pool, keys, job)
    with pool.lend() as link:
        _restart(link, keys, job)
        # Its constants may have minutes to live, if it failed long ago; and without workers there
        # is nobody yet who would look after it.
        renew_values(link, keys, job)
        rebuild(link, keys, job)
    return future


def _restart(link: Link, keys: Keys, job: str) -> None:
    state = "late"
    fresh = secrets.token_hex(8)
    while state == "late":  # it failed again since, for somebody else
        epoch = link.command("HGET", keys("job", job), "epoch")
        state = link.call("rerun", keys, job=job, epoch=epoch or b"", fresh=fresh).decode()
    if state == "rerun":
        return
    where = f"job {job} of queue {keys.queue!r}"
    if state in {"", "over"}:
        raise JobLost(f"{where} is gone, or about to be: submit it again")
    if state == "incomplete":
        raise JobLost(f"{where} failed, and its graph is not all there: submit it again")
    if state == "kept":
        raise RedisqError(f"{where} is not detached: who submitted it may submit it again")
    raise ValueError(f"{where} did not fail: it is {state}")
