"""What a slot has of the jobs that it works for: blocks, constants and values, fetched once."""

from __future__ import annotations

import gc
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from dask_redisq.cache import ValueCache
from dask_redisq.codec import KeptValue, loads, pack, unpack
from dask_redisq.errors import JobLost
from dask_redisq.job_memory import JobEnded, JobMemory
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.open_files import holds_files
from dask_redisq.rebuild import try_rebuild
from dask_redisq.record import read_record
from dask_redisq.staying import let_go
from dask_redisq.task import Given
from dask_redisq.trust import UNSIGNED, VALUE, Seal, Signer

__all__ = ["SlotMemory"]

#: Jobs whose blocks and constants are kept; with more, those that ended are forgotten.
JOBS = 8
#: Bytes of constants that are kept, over all jobs; more for a single one.
MOST_BYTES = 2**30
#: Fields in one HMGET.
FIELDS = 2000
#: Seconds between two looks for kept jobs that are gone.
TIDY = 2.0
#: Seconds between two tries to rebuild a kept job.
REBUILD = 0.5
#: Seconds before tasks are leased again of which a block or constant was gone.
GONE = 0.05


class SlotMemory:
    """The jobs that a slot works for, and the values of the current one."""

    def __init__(self, link: Link, signer: Signer = UNSIGNED, most_kept: int = 2**30) -> None:
        self._link = link
        self._signer = signer
        self._jobs: OrderedDict[str, JobMemory] = OrderedDict()
        self.values = ValueCache()
        #: (queue, job, task, attempt) -> a value of a kept job, whatever job this slot works for.
        self.kept = ValueCache(most_kept)
        self._tidy_at: dict[str, float] = {}
        #: A kept job that is to be rebuilt -> when to try that next.
        self._rebuild_at: dict[str, float] = {}

    def job(self, keys: Keys, job: str, epoch: str) -> JobMemory:
        """Turn to `job` and return what is known of it."""
        self.values.turn_to(job, epoch)
        if job not in self._jobs:
            if holds_files():
                # A file that is opened a second time shows what it was when it was opened first.
                self._jobs.clear()
                let_go()
                gc.collect()
            self._make_room()
            self._jobs[job] = JobMemory(self._link, keys, job, self._signer.seal(keys.queue, job))
        self._jobs.move_to_end(job)
        return self._jobs[job]

    def forget(self, job: str) -> None:
        """Have what is of a job read again when it comes again."""
        del self._jobs[job]

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

    def fetch_kept(
        self, keys: Keys, wanted: Iterable[KeptValue], reading: Callable[[KeptValue], object]
    ) -> dict[int, Any]:
        """Return number -> value for those of some values of kept jobs that are there.

        The server is asked which attempt counts; what this slot made, or read before, does not
        move. One that was lost is asked for, so that it is made again; a job that is damaged is
        rebuilt.

        Raises
        ------
        JobLost
            If such a job is gone, failed, or made them again although they are others then.
        """
        jobs: dict[str, list[KeptValue]] = {}
        for kept in wanted:
            jobs.setdefault(kept.job, []).append(kept)
        values: dict[int, Any] = {}
        for job, those in jobs.items():
            seal = self._signer.seal(keys.queue, job)
            for first in range(0, len(those), FIELDS):
                some = those[first : first + FIELDS]
                records = self._look_kept(keys, job, some)
                for kept in some:
                    record = records.get(kept.task)
                    if record is None:  # it is made, or made again
                        continue
                    found = self._read_kept(keys, kept, record, seal, reading)
                    if found:
                        values[kept.number] = found[0]
                    else:
                        self._link.call("report_missing", keys, job=job, task=-1, input=kept.task)
        return values

    def _look_kept(self, keys: Keys, job: str, some: list[KeptValue]) -> dict[int, bytes]:
        """Return task -> the record of its value, empty if that is lost, for finished tasks."""
        tasks = pack([kept.task for kept in some])
        told = self._link.call("look_kept", keys, job=job, tasks=tasks, values=1)
        state, _, epoch, wait, *items = unpack(told)
        if state not in (b"running", b"done"):
            raise JobLost(
                f"job {job} of queue {keys.queue!r} kept a value that this task uses, and it is "
                f"{state.decode() or 'gone'}: persist the collection again"
            )
        if any(kept.epoch and kept.epoch != epoch.decode() for kept in some):
            raise JobLost(
                f"values of job {job} of queue {keys.queue!r} were lost and made again, and with "
                "pure=False they are others now: submit what uses them again"
            )
        if wait:
            self._rebuild_kept(keys, job)
        else:
            self._rebuild_at.pop(job, None)
        return dict(zip(items[::2], items[1::2], strict=True))

    def missed(self, keys: Keys, job: str, what: JobEnded) -> None:
        """Have a job repaired, or given up, if it goes on though nobody can run its tasks.

        If it is not all here its client may bring what is missing, or is found dead: until then
        its tasks come and go back, and not at full speed.
        """
        if not try_rebuild(self._link, keys, job, what.needs):
            time.sleep(GONE)

    def _rebuild_kept(self, keys: Keys, job: str) -> None:
        """Rebuild a kept job that is damaged, unless that was tried just now.

        It may be that nobody else does. Its client reads it no more, that of the job which uses it
        knows only its own, and a monitor judges nothing for a whole expiry after the server was
        away: the tasks would go back, and come again, for as long.
        """
        now = time.monotonic()
        if now >= self._rebuild_at.get(job, 0.0):
            self._rebuild_at[job] = now + REBUILD
            try_rebuild(self._link, keys, job)

    def _read_kept(
        self,
        keys: Keys,
        kept: KeptValue,
        record: bytes,
        seal: Seal,
        reading: Callable[[KeptValue], object],
    ) -> tuple[Any, ...]:
        """Return the value of a record as the one item of a tuple; an empty one if it is lost."""
        data, attempt = read_record(record) if record else (None, "")
        name = (keys.queue, kept.job, kept.task, attempt)
        here = self.kept.found([name])
        if here:
            return (here[name],)
        apart = data is None
        if data is None:
            data = self._link.command("GET", keys("value", kept.job, kept.task, attempt))
        if data is None:
            return ()
        reading(kept)
        value = loads(seal.open(VALUE, attempt.encode(), kept.task, data) if seal.signs else data)
        size = len(data)
        if type(value) is Given:
            try:
                memory = JobMemory(self._link, keys, kept.job, seal)
                value, size = memory.read_given(kept.task, attempt)
            except JobEnded:
                return ()
        if apart:
            self.kept.put(name, value, size)
        return (value,)

    def tidy(self, keys: Keys, now: float) -> None:
        """Forget values of kept jobs that are gone, and close files; an idle slot calls this."""
        if holds_files():
            # Nobody could write into one. What is needed again is read again.
            for memory in self._jobs.values():
                memory.blocks.clear()
            let_go()
            gc.collect()  # those of netCDF4 are in cycles
        let_go(now)
        names = [name for name in self.kept.names() if name[0] == keys.queue]
        if not names or now < self._tidy_at.get(keys.queue, 0.0):
            return
        self._tidy_at[keys.queue] = now + TIDY
        jobs = sorted({job for _, job, *_ in names})
        for job in jobs:
            self._link.send("EXISTS", keys("job", job))
        gone = {j for j, there in zip(jobs, self._link.receive_all(), strict=True) if not there}
        self.kept.drop([name for name in names if name[1] in gone])

    def _enter(
        self, values: dict[int, Any], task: int, data: bytes, attempt: str, seal: Seal
    ) -> None:
        values[task] = loads(seal.open(VALUE, attempt.encode(), task, data) if seal.signs else data)
        self.values.put(task, values[task], len(data))
