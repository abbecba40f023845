"""Who is registered on a queue, whether there is work, and whether they can do it."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from dask_redisq.amounts import deadline_of
from dask_redisq.annotations import RESOURCE, may_run
from dask_redisq.codec import unpack
from dask_redisq.errors import NoWorkersError
from dask_redisq.keys import Keys
from dask_redisq.link import Link

__all__ = [
    "able_workers", "has_work", "is_suspended", "list_workers", "live_slots", "read_restrictions",
    "wait_for_slots",
]  # fmt: skip


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
    """Return how many slots of workers whose alive key is there ever called.

    A supervisor registers a slot before its process is there, which takes a second to be up. Who
    waited for six slots, and counted what they did in the next three seconds, found four of them
    idle for a third of that.
    """
    return sum(
        _has_started(link, keys, slot) for row in list_workers(link, keys) for slot in row["slots"]
    )


def has_work(link: Link, keys: Keys) -> bool:
    """Tell whether a job of a queue has not ended; one that is only kept has."""
    if link.command("EXISTS", keys("active")):  # there are ready tasks: most often this is enough
        return True
    newest_first = link.command("ZRANGE", keys("jobs"), 0, -1)[::-1]
    for first in range(0, len(newest_first), 100):
        for job in newest_first[first : first + 100]:
            link.send("HGET", keys("job", job.decode()), "state")
        if b"running" in link.receive_all():
            return True
    return False


def is_suspended(link: Link, keys: Keys) -> bool:
    """Tell whether a queue gives no leases; see `Queue.suspend`."""
    return link.command("HGET", keys("queue"), "suspended") is not None


def wait_for_slots(link: Link, keys: Keys, n: int, timeout: float | None) -> None:
    """Do what `Queue.wait_for_workers` promises."""
    deadline = deadline_of(timeout, time.monotonic())
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


def read_restrictions(link: Link, keys: Keys, job: str) -> dict[int, tuple[str, ...]]:
    """Return task -> where it may run, of those tasks of a job that not all slots may run."""
    marks = link.command("GET", keys("restrict", job)) or b""
    numbers = sorted(set(marks) - {0})
    if not numbers:
        return {}
    packed = link.command("HMGET", keys("job", job), *[f"hard:{number}" for number in numbers])
    found = {
        number: tuple(tag.decode() for tag in unpack(tags))
        for number, tags in zip(numbers, packed, strict=True)
        if tags is not None
    }
    return {task: found[number] for task, number in enumerate(marks) if number in found}


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
    carried = [(row, _tags_of(link, keys, row)) for row in fitting]
    for tags in wanted or [(python,)]:
        able = [
            row
            for row, some in carried
            if any(may_run(tags, own, row.get("resources", {})) for own in some)
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
    common = [*row["tags"], *row["slots"]]  # each slot carries its id
    own = [link.command("HGET", keys("slot", slot), "tag") for slot in row["slots"]]
    return [common, *[[*common, tag.decode()] for tag in own if tag]]


def _has_started(link: Link, keys: Keys, slot: str) -> bool:
    """Tell whether a slot ever called: its supervisor registers it before its process is there."""
    seq = link.command("HGET", keys("slot", slot), "seq")
    return int(seq or 0) > 0
