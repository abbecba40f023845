"""Reads the values of a kept job: one that is neither read at once nor forgotten.

Its outputs stay until nobody holds it: neither this client, nor a job that uses them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from dask.typing import Key

from dask_redisq.codec import pack, unpack
from dask_redisq.follow import Follower
from dask_redisq.job_memory import JobEnded, JobMemory
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.monitor import Monitor
from dask_redisq.options import JobOptions
from dask_redisq.page import Wait
from dask_redisq.record import read_record
from dask_redisq.serving import stand_in
from dask_redisq.task import Given
from dask_redisq.trust import Seal

__all__ = ["KeptReader"]

#: Tasks that one call looks at.
LOOK = 2000
#: Longest pause between two looks, in seconds.
PAUSE = 0.1


class KeptReader(Follower):
    """Reads some values of a kept job, over `link`; see `Follower`."""

    def __init__(
        self,
        link: Link,
        keys: Keys,
        job: str,
        names: Sequence[Key],
        seal: Seal,
        options: JobOptions,
    ) -> None:
        super().__init__(link, keys, job, (), names, seal, options)
        #: The epoch of the job, by the last look.
        self.epoch = ""
        #: Whether the job had ended, in whatever way, by the last look.
        self.over = False
        self._seen = 0
        self._check: Callable[[], object] | None = None

    @property
    def detached(self) -> bool:
        """True: others may read it too, and its lease is kept by who holds it."""
        return True

    def look(self, tasks: Collection[int], *, values: bool = False) -> dict[int, Any]:
        """Return those of up to 2,000 tasks that are finished, with the records of their values.

        Raises
        ------
        BaseException
            What a task raised, or why the job is gone.
        """
        told = self.link.call(
            "look_kept",
            self.keys,
            job=self.id,
            tasks=pack(list(tasks)),
            values=int(values),
        )
        state, reason, epoch, wait, *items = unpack(told)
        self.over = state != b"running"
        if state not in (b"running", b"done"):
            self.ended = state.decode()
            raise self._verdict(self.ended, reason)
        self.epoch = epoch.decode()
        self._seen += len(items)
        if wait:
            self._repair(self._seen)
        return dict(zip(items[::2], items[1::2], strict=True))

    def wait_as(self, options: JobOptions, check: Callable[[], object] | None) -> None:
        """Wait as a job with these settings would, for workers; and call `check` at each look."""
        limit = options.no_workers_timeout
        self.options = replace(self.options, no_workers_timeout=limit)
        self._check = check

    def finished(self, tasks: Iterable[int], deadline: float | None = None) -> Iterator[int]:
        """Yield the tasks as they are finished; look after dead workers meanwhile.

        Parameters
        ----------
        tasks : iterable of int
            Outputs of the job.
        deadline : float, optional
            When to give up with a `TimeoutError`; by `time.monotonic`.
        """
        left = list(dict.fromkeys(tasks))
        if len(left) <= LOOK and len(self.look(left)) == len(left):
            yield from left
            return
        with stand_in(self.link.url, self.keys, Wait.FUTURES):
            yield from self._finished(left, deadline)

    def _finished(self, tasks: Iterable[int], deadline: float | None) -> Iterator[int]:
        left = dict.fromkeys(tasks)
        options = self.options
        monitor = Monitor(self.link, self.keys, self.id, options.ft_interval, options.alive_expiry)
        pause, heard = PAUSE / 50, time.monotonic()
        while left:
            some = list(islice(left, LOOK))
            done = self.look(some)
            for task in some:
                del left[task]
                if task not in done:
                    left[task] = None  # to the end: with many, each slice has its turn
            yield from done
            if self._check is not None:
                self._check()
            now = time.monotonic()
            if done:
                pause, heard = PAUSE / 50, now
                continue
            if deadline is not None and now >= deadline:
                raise TimeoutError(self.lateness())
            time.sleep(pause if deadline is None else max(0.0, min(pause, deadline - now)))
            pause = min(1.5 * pause, PAUSE)
            monitor.run(time.monotonic())
            self._lookout.look_at_quiet(now, now - heard)

    def warned(self) -> set[bytes]:
        """Return what tasks of the job warned of by now; see `issue_warnings`."""
        return set(self.link.command("SMEMBERS", self.keys("warnings", self.id)))

    def read(self, tasks: Collection[int], deadline: float | None = None) -> dict[int, Any]:
        """Return task -> value; wait until they are finished."""
        self.received.clear()
        while missing := [task for task in tasks if task not in self.received]:
            some = missing[:LOOK]
            for _ in self.finished(some, deadline):
                pass
            for task, record in self.look(some, values=True).items():
                self._read_items([task, record])  # one that is lost is made again
                if type(self.received.get(task)) is Given:
                    self._read_given(task, record)
        return dict(self.received)

    def _read_given(self, task: int, record: bytes) -> None:
        memory = JobMemory(self.link, self.keys, self.id, self.seal)
        del self.received[task]
        try:
            self.received[task] = memory.read_given(task, read_record(record)[1])[0]
        except JobEnded:
            self._report_lost(task)
        except Exception as error:
            self._note_unread(task, error)
            raise
