"""What a slot has of the jobs that it works for: blocks, constants and values, fetched once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from dask_redisq.cache import ValueCache
from dask_redisq.codec import Block, PackedBlock, loads
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.record import read_record
from dask_redisq.trust import BLOCK, UNSIGNED, VALUE, Seal, Signer

__all__ = ["JobEnded", "JobMemory", "SlotMemory"]

#: Jobs whose blocks and constants are kept; with more, those that ended are forgotten.
JOBS = 8
#: Bytes of constants that are kept, over all jobs; more for a single one.
MOST_BYTES = 2**30
#: Blocks kept of one job.
BLOCKS = 256
#: Fields in one HMGET.
FIELDS = 2000


class JobEnded(Exception):
    """What every task of a job needs is not there: the job ended meanwhile."""


class JobMemory:
    """Blocks and constants of one job, as read over `link` and passed by its `seal`."""

    def __init__(self, link: Link, keys: Keys, job: str, seal: Seal) -> None:
        self._link = link
        self._keys = keys
        self._job = job
        self.seal = seal
        self.blocks: OrderedDict[int, Block] = OrderedDict()
        #: Bytes of its constants that are here.
        self.size = 0
        self._buffers: dict[str, bytearray] = {}
        self._objects: dict[str, Any] = {}

    def load_blocks(self, numbers: list[int], reading: Callable[[int], object]) -> None:
        """Fetch those of the blocks that are not here.

        `reading` is called with the number of each before it is unpickled.

        Raises
        ------
        JobEnded
            If one is not there.
        BadSignature
            If one is not from who has our secret.
        Exception
            Whatever unpickling raises, `ModuleNotFoundError` for instance.
        """
        missing = [n for n in numbers if n not in self.blocks]
        if missing:
            found = self._link.command("HMGET", self._keys("blocks", self._job), *missing)
            for number, payload in zip(missing, found, strict=True):
                if payload is None:
                    raise JobEnded(f"block {number} of job {self._job} is gone")
                packed = PackedBlock.read(self.seal.open(BLOCK, b"", number, payload))
                reading(number)
                self.blocks[number] = packed.open(self._buffer, self._object)
        for number in numbers:
            self.blocks.move_to_end(number)
        while len(self.blocks) > max(BLOCKS, len(numbers)):
            self.blocks.popitem(last=False)

    def is_there(self) -> tuple[str, str]:
        """Return the command that tells whether the job is on the server."""
        return ("EXISTS", self._keys("job", self._job))

    def _buffer(self, digest: str) -> bytearray:
        # Not bytes: an array in it would be read-only, which a small one, inside a pickle, is not.
        # The tasks of the job that run here share it, as threads share the object itself: one copy
        # for each slot and job, 0.1 s for 100 MB.
        if digest not in self._buffers:
            self._buffers[digest] = bytearray(self._fetch(digest))
        return self._buffers[digest]

    def _object(self, digest: str) -> Any:
        if digest not in self._objects:
            self._objects[digest] = loads(self._fetch(digest))
        return self._objects[digest]

    def _fetch(self, digest: str) -> bytes:
        found: bytes | None = self._link.command("GET", self._keys("const", self._job, digest))
        if found is None:
            raise JobEnded(f"constant {digest} of job {self._job} is gone")
        self.seal.check_constant(digest, found)
        self.size += len(found)
        return found


class SlotMemory:
    """The jobs that a slot works for, and the values of the current one."""

    def __init__(self, link: Link, signer: Signer = UNSIGNED) -> None:
        self._link = link
        self._signer = signer
        self._jobs: OrderedDict[str, JobMemory] = OrderedDict()
        self.values = ValueCache()

    def job(self, keys: Keys, job: str, epoch: str) -> JobMemory:
        """Turn to `job` and return what is known of it."""
        self.values.turn_to(job, epoch)
        if job not in self._jobs:
            self._make_room()
            self._jobs[job] = JobMemory(self._link, keys, job, self._signer.seal(keys.queue, job))
        self._jobs.move_to_end(job)
        return self._jobs[job]

    def _make_room(self) -> None:
        """Forget jobs that ended, if there are many, and then some that were not used for long."""
        if len(self._jobs) >= JOBS:
            for memory in self._jobs.values():
                self._link.send(*memory.is_there())
            for job, there in zip(list(self._jobs), self._link.receive_all(), strict=True):
                if not there:
                    del self._jobs[job]
        while sum(memory.size for memory in self._jobs.values()) > MOST_BYTES:
            self._jobs.popitem(last=False)

    def fetch_values(
        self, keys: Keys, job: str, tasks: Iterable[int], reading: Callable[[int], object]
    ) -> dict[int, Any]:
        """Return the values of `tasks`, from memory or the server; what is missing is left out.

        A wide fan-in is read in slices, and a value that is stored apart by itself. `reading` is
        called with each task before its value is unpickled.
        """
        values = self.values.found(tasks)
        seal = self._jobs[job].seal
        wanted = [t for t in tasks if t not in values]
        apart: list[tuple[int, str]] = []
        for first in range(0, len(wanted), FIELDS):
            some = wanted[first : first + FIELDS]
            records = self._link.command("HMGET", keys("values", job), *some)
            for task, record in zip(some, records, strict=True):
                if record is None:
                    continue
                data, attempt = read_record(record)
                if data is None:
                    apart.append((task, attempt))
                else:
                    reading(task)
                    self._enter(values, task, data, attempt, seal)
        for task, attempt in apart:
            data = self._link.command("GET", keys("value", job, task, attempt))
            if data is not None:
                reading(task)
                self._enter(values, task, data, attempt, seal)
        return values

    def _enter(
        self, values: dict[int, Any], task: int, data: bytes, attempt: str, seal: Seal
    ) -> None:
        values[task] = loads(seal.open(VALUE, attempt.encode(), task, data) if seal.signs else data)
        self.values.put(task, values[task], len(data))
