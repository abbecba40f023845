"""Persisted collections: their values stay on the workers and the server, by key, for later graphs.

Dask calls `Queue.persist` since 2026.1 (section 1.4 of Dask's contract). What a persisted
collection holds in place of its values are parts: each names a task of a kept job. Later graphs
reach a scheduler with the keys alone, so a table tells which part has which name; it forgets those
that nobody holds.
"""

from __future__ import annotations

import os
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from dask.typing import Key

from dask_redisq.client_lease import Hold
from dask_redisq.frames import ShortTraceback
from dask_redisq.future import cancel_job
from dask_redisq.kept import LOOK, KeptReader
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.options import JobOptions
from dask_redisq.plan import Plan
from dask_redisq.pool import Pool
from dask_redisq.task_warnings import issue_warnings
from dask_redisq.trust import Signer

__all__ = [
    "KeptJob",
    "Part",
    "enter_parts",
    "fetch_parts",
    "find_part",
    "futures_of",
    "living_parts",
    "wait_for_parts",
]

#: Names of freed values that are remembered, for each queue.
MOST_FREED = 10_000


class KeptJob:
    """A job whose values this client holds; it ends when the last part of it is garbage.

    Parameters
    ----------
    pool : Pool
        The server.
    keys : Keys
        The queue.
    job : str
        Its id.
    names : list of hashable
        The graph key of each task.
    signer : Signer
        Checks what is read.
    options : JobOptions
        Its settings.
    """

    def __init__(
        self,
        pool: Pool,
        keys: Keys,
        job: str,
        names: list[Key],
        signer: Signer,
        options: JobOptions,
    ) -> None:
        self.pool = pool
        self.keys = keys
        self.id = job
        self.options = options
        self._names = names
        self._pid = os.getpid()
        self._issued: set[bytes] = set()
        self._all_issued = False
        self._seal = signer.seal(keys.queue, job)
        self._hold = Hold(pool.url, keys.queue, job, options.client_lease)

    def __repr__(self) -> str:
        return f"<KeptJob {self.id} of queue {self.keys.queue}>"

    def reader(self, link: Link) -> KeptReader:
        """Return what reads its values over `link`."""
        return KeptReader(link, self.keys, self.id, self._names, self._seal, self.options)

    @contextmanager
    def follow(self, link: Link) -> Iterator[KeptReader]:
        """Give what reads its values over `link`; issue what its tasks warned of, each once.

        If the job failed, too: they may tell why it did.
        """
        reader = self.reader(link)
        try:
            yield reader
        except BaseException:
            if reader.ended is not None:
                with suppress(Warning):  # which a filter made an error, and would hide this one
                    self._issue_warnings(reader)
            raise
        self._issue_warnings(reader)

    def _issue_warnings(self, reader: KeptReader) -> None:
        if self._all_issued:
            return
        found = reader.warned() - self._issued
        self._issued |= found
        self._all_issued = reader.over  # what ended warns of nothing more
        issue_warnings(found)

    def lives(self) -> bool:
        """Tell whether this process holds it, and its values are there or on their way."""
        if self._pid != os.getpid():  # a forked child holds nothing
            return False
        with self.pool.lend() as link:
            reader = self.reader(link)
            try:
                reader.look([])
            except BaseException:
                if reader.ended is None:
                    raise
                return False
        return True

    def done(self, tasks: list[int]) -> list[int]:
        """Return those of some tasks that are finished, or never will be, without waiting."""
        found: list[int] = []
        with self.pool.lend() as link:
            reader = self.reader(link)
            for first in range(0, len(tasks), LOOK):
                try:
                    found += reader.look(tasks[first : first + LOOK])
                except BaseException:
                    if reader.ended is None:
                        raise
                    return tasks
        return found


class Part:
    """One value of a persisted collection, now or later: a future, in Dask's words.

    Attributes
    ----------
    key : hashable
        Its name in graphs.
    job : str
        The kept job that makes it.
    task : int
        Its number there.

    Examples
    --------
    >>> x = x.persist(scheduler=queue.get)  # doctest: +SKIP
    >>> for part in redisq.as_completed(redisq.futures_of(x)):  # doctest: +SKIP
    ...     print(part.key, part.result().sum())
    """

    __dask_future__ = True

    def __init__(self, kept: KeptJob, key: Key, task: int) -> None:
        self.kept = kept
        self.key = key
        self.task = task

    def __repr__(self) -> str:
        return f"<Part {self.key!r} of job {self.job}>"

    def __dask_tokenize__(self) -> tuple[str, str, int]:
        return ("redisq-part", self.job, self.task)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} cannot be pickled: this process holds it. Pass the collection to a graph, "
            "or compute it"
        )

    @property
    def job(self) -> str:
        """The kept job that makes it."""
        return self.kept.id

    @property
    def where(self) -> tuple[Pool, Keys]:
        """The server and the queue of its job."""
        return self.kept.pool, self.kept.keys

    def result(self, timeout: float | None = None) -> Any:
        """Return the value; wait for it if need be.

        Parameters
        ----------
        timeout : float, optional
            Seconds; by default for ever.

        Raises
        ------
        TimeoutError
            If it is not there in time; the job goes on.
        BaseException
            What a task raised, as its own type.
        JobCancelled, JobLost, RedisqError
            What went wrong otherwise.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with (
            ShortTraceback(),
            self.kept.pool.lend() as link,
            self.kept.follow(link) as reader,
        ):
            return reader.read([self.task], deadline)[self.task]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `result` would raise, None if it would not; waits as that does."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with ShortTraceback(), self.kept.pool.lend() as link:
            reader: KeptReader | None = None
            try:
                with self.kept.follow(link) as reader:
                    for _ in reader.finished([self.task], deadline):
                        pass
            except BaseException as error:
                if reader is None or reader.ended is None:
                    raise
                return error
        return None

    def done(self) -> bool:
        """Tell, without waiting, whether it is there, or never will be."""
        return bool(self.kept.done([self.task]))

    def cancel(self, reason: str | None = None) -> bool:
        """Cancel the job that makes it, with all its other parts; see `Queue.cancel`."""
        with self.kept.pool.lend() as link:
            return cancel_job(link, self.kept.keys, self.job, reason)


class _Table:
    """Which parts have which name; the newest that is still there is found by it.

    Two collections of one name may be persisted one after the other: when the later one is garbage
    the earlier one is still somebody's.
    """

    def __init__(self) -> None:
        self._parts: dict[Key, list[weakref.ref[Part]]] = {}
        self._freed: OrderedDict[Key, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._parts)

    def __repr__(self) -> str:
        return f"<_Table of {len(self._parts)} names>"

    def enter(self, key: Key, part: Part) -> None:
        """Let `part` be found by `key` until it is garbage."""
        if self.find(key) is part:
            return

        def forget(gone: weakref.ref[Part]) -> None:
            left = [ref for ref in self._parts.get(key, ()) if ref is not gone]
            if left:
                self._parts[key] = left
            else:
                self._parts.pop(key, None)
                self._freed[key] = None
                if len(self._freed) > MOST_FREED:
                    self._freed.popitem(last=False)

        self._freed.pop(key, None)
        ref = weakref.ref(part, forget)  # first: it may start the collector, which calls forget
        self._parts.setdefault(key, []).append(ref)

    def find(self, key: Key) -> Part | None:
        """Return the newest part that is there."""
        for ref in reversed(self._parts.get(key, ())):
            part = ref()
            if part is not None:
                return part
        return None

    def was_freed(self, key: Key) -> bool:
        """Tell whether there was a part of that name; only the latest are remembered."""
        return key in self._freed


_tables: dict[tuple[str, str], _Table] = {}


def enter_parts(pool: Pool, keys: Keys, parts: Mapping[Key, Part]) -> None:
    """Let later graphs on this queue find parts by these names."""
    table = _tables.setdefault((pool.url, keys.queue), _Table())
    for key, part in parts.items():
        table.enter(key, part)


def find_part(pool: Pool, keys: Keys) -> Callable[[Key], Part | None]:
    """Return a function that finds the part with a name.

    It raises a `KeyError` for one that was freed: its graph has outlived the collection.
    """

    def find(key: Key) -> Part | None:
        if not _tables:  # or a missing key would start a private server
            return None
        table = _tables.get((pool.url, keys.queue))
        if table is None:
            return None
        part = table.find(key)
        if part is None and table.was_freed(key):
            raise KeyError(
                f"{key!r} was persisted by this process, and was freed, since no collection that "
                "holds it is left: keep a reference to the persisted collection"
            )
        return part

    return find


def living_parts(pool: Pool, keys: Keys, names: Iterable[Key]) -> dict[Key, Part]:
    """Return those parts with some names that are, or will be, values; not what failed or is gone.

    Another computation under one of these names could give another value, which would then be the
    value of both collections: they are told apart by their names alone.
    """
    table = _tables.get((pool.url, keys.queue)) if _tables else None
    if not table:
        return {}
    found = {name: part for name in names if (part := table.find(name)) is not None}
    dead = {kept.id for kept, _ in _by_job(found.values()) if not kept.lives()}
    return {name: part for name, part in found.items() if part.job not in dead}


def wait_for_parts(plan: Plan, link: Link) -> None:
    """Wait until what tasks of a plan read of kept jobs is there; raise what ended them otherwise.

    Those who wait are here, in the client: a task never waits for another one.
    """
    if not plan.outer:
        return
    used = {value.number for some in plan.outer.values() for value in some}
    for kept, tasks in _by_job(plan.parts[number] for number in sorted(used, reverse=True)):
        with kept.follow(link) as reader:
            for _ in reader.finished(tasks):
                pass
        if not kept.options.pure:
            plan.outer = {
                task: tuple(
                    [k._replace(epoch=reader.epoch) if k.job == kept.id else k for k in some]
                )
                for task, some in plan.outer.items()
            }


def fetch_parts(parts: Mapping[Key, Part], link: Link) -> dict[Key, Any]:
    """Return key -> value for requested keys that parts are the values of."""
    values: dict[tuple[str, int], Any] = {}
    for kept, tasks in _by_job(parts.values()):
        with kept.follow(link) as reader:
            found = reader.read(tasks)
        values |= {(kept.id, task): value for task, value in found.items()}
    return {key: values[part.job, part.task] for key, part in parts.items()}


def _by_job(parts: Iterable[Part]) -> list[tuple[KeptJob, list[int]]]:
    jobs: dict[str, tuple[KeptJob, dict[int, None]]] = {}
    for part in parts:
        jobs.setdefault(part.job, (part.kept, {}))[1][part.task] = None
    return [(kept, list(tasks)) for kept, tasks in jobs.values()]


def futures_of(*collections: Any) -> list[Part]:
    """Return the parts that persisted collections hold, in the order of their keys.

    As in distributed; see `as_completed` and `wait`.

    Examples
    --------
    >>> import dask_redisq as redisq
    >>> redisq.futures_of(1)
    []
    """
    from dask.base import unpack_collections

    found: dict[int, Part] = {}
    for collection in unpack_collections(*collections)[0]:
        for value in dict(collection.__dask_graph__()).values():
            if isinstance(value, Part):
                found[id(value)] = value
    return list(found.values())
