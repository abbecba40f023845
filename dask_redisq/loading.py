"""Brings to a slot what a lease needs: its blocks, and the inputs of its tasks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dask_redisq.job_memory import JobMemory
from dask_redisq.keys import Keys
from dask_redisq.lease import Lease
from dask_redisq.link import Link
from dask_redisq.memory import SlotMemory

__all__ = ["Loader"]

#: Seconds before tasks go back whose inputs another job makes again; they come again at once.
REMADE = 0.05


class Loader:
    """Loads for leases of one job.

    Parameters
    ----------
    link : Link
        The slot's connection.
    keys : Keys
        The queue.
    memory : SlotMemory
        What the slot has.
    job : JobMemory
        What it has of the job.
    begin : callable
        Called as ``begin(task, -1)`` before something for that task is unpickled: if this kills
        the process, the task is charged.
    reading : callable
        Called as ``reading(first, last)`` with the tasks that are unpickled, in one piece, and with
        -1 twice when they are.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        memory: SlotMemory,
        job: JobMemory,
        begin: Callable[[int, int], None],
        reading: Callable[[int, int], None],
    ) -> None:
        self.link = link
        self.keys = keys
        self.memory = memory
        self.job = job
        self.begin = begin
        self.reading = reading

    def __repr__(self) -> str:
        return f"<Loader of queue {self.keys.queue}>"

    def load_blocks(self, lease: Lease) -> None:
        """Fetch the lease's blocks; if unpickling one kills this process, a task is charged.

        That is one of the lease, for it is what the server knows to be in hand, and it may be
        innocent: the page says which tasks were read. After a death its task comes alone, to a new
        process, and that tells the tasks apart as it reads them, so that it knows which one kills.
        """
        first: dict[int, int] = {}
        for task in lease.tasks:
            first.setdefault(task // lease.block, task)

        def reading(block: int, place: int) -> None:
            its = block * lease.block
            if place < 0:
                self.begin(first[block], -1)
                self.reading(its, its + lease.block - 1)
            else:
                self.reading(its + place, its + place)

        try:
            self.job.load_blocks(sorted(first), reading, marked=lease.alone)
        finally:
            self.reading(-1, -1)

    def load_inputs(self, lease: Lease) -> tuple[dict[int, Any], list[int]]:
        """Return the inputs of the lease's tasks, and the tasks whose inputs were all there.

        The others go back un-begun, and the server is asked about them: never is another task
        waited for while a lease is held.
        """
        needs = {t: self.job.blocks[t // lease.block].inputs[t % lease.block] for t in lease.tasks}
        outer, able = self._load_outer(lease)
        if len(able) < len(lease.tasks):
            needs = {t: needs[t] for t in able}
        wanted: dict[int, int] = {}  # the first task that needs it
        for task, inputs in needs.items():
            for i in inputs:
                wanted.setdefault(i, task)
        if not wanted:
            return outer, able
        values = self.memory.fetch_values(
            self.keys, lease.job, wanted, lambda i: self.begin(wanted[i], -1)
        )
        if len(values) == len(wanted):
            return values | outer, able
        runnable = []
        for task, inputs in needs.items():
            missing = [i for i in inputs if i not in values]
            if not missing:
                runnable.append(task)
            else:
                self.link.call(
                    "report_missing", self.keys, job=lease.job, task=task, input=missing[0]
                )
        return values | outer, runnable

    def _load_outer(self, lease: Lease) -> tuple[dict[int, Any], list[int]]:
        """Return what the lease's tasks read of kept jobs, and the tasks that have all of it.

        A kept job that lost a value makes it again, maybe right here: the others go back.
        """
        blocks, size = self.job.blocks, lease.block
        needs = {t: o for t in lease.tasks if (o := blocks[t // size].outer.get(t))}
        if not needs:
            return {}, lease.tasks
        wanted = {kept: task for task, some in needs.items() for kept in some}
        values = self.memory.fetch_kept(
            self.keys, wanted, lambda kept: self.begin(wanted[kept], -1)
        )
        able = [t for t in lease.tasks if all(k.number in values for k in needs.get(t, ()))]
        if not able:
            time.sleep(REMADE)
        return values, able
