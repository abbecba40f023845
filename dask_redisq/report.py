"""What a slot tells of a lease with its next step, besides what the lease made."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from dask_redisq.batch import Batch
from dask_redisq.errors import ServerFull, ValueTooLarge
from dask_redisq.job_memory import JobMemory
from dask_redisq.keys import Keys
from dask_redisq.lease import Lease
from dask_redisq.link import Link

__all__ = ["Report", "kept_of", "own_retries", "store_apart"]

#: A value that nobody accepted is gone after this many ms.
UNSEEN = 600_000
#: Seconds for which results wait for room in a server whose memory is full, and between two tries.
FULL_WAIT, FULL_PAUSE = 10.0, 0.2


@dataclass
class Report:
    """What the next step tells of the last lease."""

    job: str = ""
    epoch: str = ""
    queue: str = ""
    attempt: str = ""
    batch: Batch = field(default_factory=Batch)
    failure: bytes = b""
    #: Tasks whose values later jobs may read: those that are not inside the call stay here.
    kept: frozenset[int] = frozenset()


def kept_of(memory: JobMemory, lease: Lease, batch: Batch) -> frozenset[int]:
    """Return the tasks of a batch whose values later jobs may read from here."""
    blocks, size = memory.blocks, lease.block
    if not blocks[lease.tasks[0] // size].kept:  # it is the job that is kept
        return frozenset()
    large = [p.task for p in batch.published if not p.inline]
    return frozenset([t for t in large if t in blocks[t // size].outputs])


def own_retries(memory: JobMemory, lease: Lease, task: int, why: BaseException) -> int:
    """Return how often a task that failed may run again by its own annotation; -1 without one."""
    if isinstance(why, ValueTooLarge):
        return 0  # it would be as large the next time
    return memory.blocks[task // lease.block].limits.get(task, (0.0, -1))[1]


def store_apart(link: Link, keys: Keys, report: Report, stopping: Callable[[], bool]) -> None:
    """Write large values before the call that makes them count; each is born with an expiry.

    If there is no room for them, they wait for some, and are a failure after that; but a slot that
    is to end reports nothing then: all of the lease goes back, and runs elsewhere.
    """
    batch = report.batch
    apart = [p for p in batch.published if not p.inline]
    names = [keys("value", report.job, p.task, report.attempt) for p in apart]
    deadline = time.monotonic() + FULL_WAIT
    while True:
        try:
            for name, p in zip(names, apart, strict=True):
                link.send("SET", name, p.data, "PX", UNSEEN)
            link.receive_all()
            return
        except ServerFull as full:
            if stopping():  # nobody's fault: there may be room soon, and another worker
                link.command("UNLINK", *names)
                report.batch = Batch()
                return
            # Others may finish meanwhile, which frees; what was written is written again.
            if time.monotonic() > deadline:
                sizes = sum(len(p.data) for p in apart)
                error = ServerFull(f"{full}, and results of {sizes:,} bytes wait for room")
                batch.failed = batch.failed or (apart[0].task, error)
                return
            time.sleep(FULL_PAUSE)
