"""What a slot tells of a lease with its next step, besides what the lease made."""

from __future__ import annotations

from dataclasses import dataclass, field

from dask_redisq.batch import Batch
from dask_redisq.lease import Lease
from dask_redisq.memory import JobMemory

__all__ = ["Report", "kept_of", "own_retries"]


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


def own_retries(memory: JobMemory, lease: Lease, task: int) -> int:
    """Return how often a task may run again by its own annotation; -1 without one."""
    return memory.blocks[task // lease.block].limits.get(task, (0.0, -1))[1]
