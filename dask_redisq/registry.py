"""Who is registered on a queue, and whether they can run a job's tasks."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from dask_redisq.annotations import RESOURCE, may_run
from dask_redisq.codec import unpack
from dask_redisq.errors import NoWorkersError
from dask_redisq.keys import Keys
from dask_redisq.link import Link

__all__ = ["able_workers", "list_workers", "live_slots", "wait_for_slots"]


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


def live_slots(link: Link, keys: Keys) -> int:
    """Return how many slots are registered of workers whose alive key is there."""
    workers = [worker.decode() for worker in link.command("HKEYS", keys("workers"))]
    living = [worker for worker in workers if link.command("EXISTS", keys("alive", worker))]
    return sum(link.command("SCARD", keys("worker_slots", worker)) for worker in living)


def wait_for_slots(link: Link, keys: Keys, n: int, timeout: float | None) -> None:
    """Do what `Queue.wait_for_workers` promises."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        slots = link.command("SCARD", keys("slots"))
        if slots >= n:  # perhaps some of workers that vanished
            slots = live_slots(link, keys)
        if slots >= n:
            return
        if deadline is not None and time.monotonic() >= deadline:
            raise NoWorkersError(
                f"queue {keys.queue!r} has {slots} slots after {timeout:g} s, not {n}"
            )
        time.sleep(0.01)


def able_workers(
    link: Link, keys: Keys, python: str, wanted: Collection[tuple[str, ...]]
) -> str | None:
    """Return what is lacking to run tasks of this Python and these restrictions; None if nothing.

    Parameters
    ----------
    python : str
        The tag of the client's Python.
    wanted : collection of tuple of str
        The restrictions; see `dask_redisq.annotations`.
    """
    rows = list_workers(link, keys)
    if not rows:
        start = f"dask-redisq-worker {keys.queue} --url URL"
        return f"queue {keys.queue!r} has no workers. Start some: {start}"
    fitting = [row for row in rows if python in row["tags"]]
    if not fitting:
        others = sorted({row["python"] for row in rows})
        return (
            f"queue {keys.queue!r} has workers of Python {', '.join(others)}, and this client is "
            f"{python}: pickled functions need the same minor version"
        )
    for tags in wanted or [(python,)]:
        able = [
            row
            for row in fitting
            if any(
                may_run(tags, own, row.get("resources", {})) for own in _tags_of(link, keys, row)
            )
        ]
        if not able:
            needs = [tag.removeprefix(RESOURCE) for tag in tags if tag.startswith(RESOURCE)]
            plain = sorted(tag for tag in tags if not tag.startswith(RESOURCE))
            what = f" carries any of the tags {plain}" if plain else ""
            what += " and" if plain and needs else ""
            what += f" has the resources {needs}" if needs else ""
            return f"no worker of queue {keys.queue!r}{what}"
        if not any(_has_started(link, keys, slot) for row in able for slot in row["slots"]):
            names = ", ".join(sorted({row["name"] for row in able}))
            return (
                f"workers are registered on queue {keys.queue!r} ({names}), but none of their "
                "slots has started: see the worker's log"
            )
    return None


def _tags_of(link: Link, keys: Keys, row: dict[str, Any]) -> list[list[str]]:
    """Return what a worker carries, and what each of its slots does of which a task set the tag."""
    own = [link.command("HGET", keys("slot", slot), "tag") for slot in row["slots"]]
    return [row["tags"], *[[*row["tags"], tag.decode()] for tag in own if tag]]


def _has_started(link: Link, keys: Keys, slot: str) -> bool:
    """Tell whether a slot ever called: its supervisor registers it before its process is there."""
    seq = link.command("HGET", keys("slot", slot), "seq")
    return int(seq or 0) > 0
