"""A function that runs once in each slot of a queue: distributed's ``Client.run``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from dask_redisq import client_lease
from dask_redisq.amounts import deadline_of
from dask_redisq.body import Caught, catching
from dask_redisq.calls import Call, plan_calls
from dask_redisq.errors import RedisqError
from dask_redisq.job import Job
from dask_redisq.keys import Keys
from dask_redisq.options import MOST_PRIORITY, job_options
from dask_redisq.pool import Pool
from dask_redisq.registry import list_workers
from dask_redisq.secret import find_secret
from dask_redisq.serving import serves
from dask_redisq.versions import python_tag

__all__ = ["run_on_slots"]

#: Slots in one job: it has a restriction for each, and there are at most 255 of those.
MOST = 200


def run_on_slots(
    pool: Pool,
    keys: Keys,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    on_error: str,
    timeout: float | None,
) -> dict[str, Any]:
    """Do what `Queue.run_on_workers` promises."""
    if on_error not in ("raise", "return"):
        raise ValueError(f"on_error is 'raise' or 'return', not {on_error!r}")
    if serves(pool.url, keys):
        raise RedisqError(
            "a task cannot run something on the workers of its own queue: its slot is one of them"
        )
    client_lease.look()
    deadline = deadline_of(timeout, time.monotonic())
    with pool.lend(keys) as link:
        rows = [row for row in list_workers(link, keys) if python_tag() in row["tags"]]
        slots = sorted(slot for row in rows for slot in row["slots"])
        call = Call(partial(catching, None, fn), args, kwargs)
        found: dict[Any, Any] = {}
        for first in range(0, len(slots), MOST):
            some = slots[first : first + MOST]
            plan = plan_calls([call] * len(some), some)
            plan.restricted = {task: (slot,) for task, slot in enumerate(some)}
            options = job_options({"priority": MOST_PRIORITY, "chunk_size": 1})
            job = _OnSlots(link, keys, plan, options, find_secret(pool.url))
            job.deadline = deadline
            found |= job.compute()
    values = {s: v.error(f"on slot {s}") if type(v) is Caught else v for s, v in found.items()}
    if on_error == "raise":
        for slot, value in values.items():
            if type(found[slot]) is Caught:
                raise value
    return values


class _OnSlots(Job):
    """A job of one task for each of some slots; those that are gone are not waited for."""

    #: When to give up, by `time.monotonic`.
    deadline: float | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.restricted = {}  # a slot that is gone is no worker that is missing
        #: Tasks of the slots that were there at the last look.
        self._left: set[int] = set()

    def again(self, received: Mapping[int, Any]) -> _OnSlots:
        """Return a new job for the slots that `received` lacks; see `Job.again`."""
        job = super().again(received)
        job.deadline = self.deadline
        return job

    def gather(self, deadline: float | None = None) -> dict[int, Any]:
        """Wait for the results of the slots that are there; see `Follower.gather`."""
        return super().gather(self.deadline if deadline is None else deadline)

    def ask(self) -> bool:
        """Ask once; tell whether the results of all slots that are there have come."""
        # Before the question: what a slot that has gone since had to say is in the answer.
        there = {slot.decode() for slot in self.link.command("SMEMBERS", self.keys("slots"))}
        self._left = {t for t, slot in enumerate(self.plan.keys) if slot in there}
        return super().ask() or self.received.keys() >= self._left

    def lateness(self) -> str:
        """Say how many slots have not run it."""
        missing = len(self._left - self.received.keys())
        return f"{missing} of {len(self.plan)} slots have not run it yet"
