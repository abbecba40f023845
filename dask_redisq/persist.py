"""Persisted collections: their values stay on the workers and the server, by key, for later graphs.

Dask calls `Queue.persist` since 2026.1 (section 1.4 of Dask's contract). What a persisted
collection holds in place of its values are parts: each names a task of a kept job. How later graphs
find them is told in `part_names`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from dask.delayed import Delayed
from dask.typing import Key

from dask_redisq.amounts import deadline_of
from dask_redisq.client_lease import Hold
from dask_redisq.errors import JobLost, RedisqError
from dask_redisq.frames import ShortTraceback
from dask_redisq.future import cancel_job
from dask_redisq.kept import LOOK, KeptReader
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.options import JobOptions
from dask_redisq.passwords import redact
from dask_redisq.plan import Plan
from dask_redisq.pool import Pool
from dask_redisq.task_warnings import issue_warnings
from dask_redisq.trust import Signer

__all__ = [
    "KeptJob",
    "Part",
    "Scattered",
    "by_job",
    "elsewhere",
    "fetch_parts",
    "futures_of",
    "wait_for_parts",
]


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
            f"{self!r} cannot be pickled: this process holds it. Give what was scattered or "
            "persisted to a task as an argument of its own, foreach(f, items, "
            "itertools.repeat(ref)), executor.submit(f, ref) or dask.delayed(f)(ref), and not "
            "inside of a list, a closure, a partial or export=; or compute it first"
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
        ValueError
            If `timeout` is no number.
        BaseException
            What a task raised, as its own type.
        JobCancelled, JobLost, RedisqError
            What went wrong otherwise.
        """
        deadline = deadline_of(timeout, time.monotonic())
        with (
            ShortTraceback(),
            self.kept.pool.lend() as link,
            self.kept.follow(link) as reader,
        ):
            return reader.read([self.task], deadline)[self.task]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `result` would raise, None if it would not; waits as that does."""
        deadline = deadline_of(timeout, time.monotonic())
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


class Scattered(Delayed):
    """What stands for an object that `Queue.scatter` sent.

    Dask's own schedulers know nothing of parts: computed by itself it is read from where it is.
    """

    __slots__ = ()

    def __init__(self, part: Part) -> None:
        # As what dask.delayed made, and persist kept.
        super().__init__(part.key, {part.key: part})  # type: ignore[no-untyped-call]

    def compute(self, **_: Any) -> Any:
        """Return the object, whatever the scheduler."""
        return self.__dask_graph__()[self.key].result()


def wait_for_parts(
    plan: Plan,
    link: Link,
    keys: Keys,
    options: JobOptions,
    check: Callable[[], object] | None = None,
) -> None:
    """Wait until what tasks of a plan read of kept jobs is there; raise what ended them otherwise.

    Those who wait are here, in the client: a task never waits for another one.

    Parameters
    ----------
    plan : Plan
        Of tasks that are not yet submitted.
    link : Link
        To the server of their queue.
    keys : Keys
        Their queue: workers read nothing of another one.
    options : JobOptions
        Of their job: how long to wait for workers.
    check : callable, optional
        Called at each look; raises to give up.
    """
    if not plan.outer:
        return
    used = {value.number for some in plan.outer.values() for value in some}
    for kept, tasks in by_job(plan.parts[number] for number in sorted(used, reverse=True)):
        if kept.keys.queue != keys.queue:
            raise elsewhere("a persisted or scattered value", kept, keys)
        try:
            with kept.follow(link) as reader:
                reader.wait_as(options, check)
                for _ in reader.finished(tasks):
                    pass
        except JobLost:
            if kept.pool.url == link.url:  # else there may be two names of one server
                raise
            raise elsewhere("a persisted or scattered value", kept, keys, link.url) from None
        if not kept.options.pure:
            plan.outer = {
                task: tuple(
                    [k._replace(epoch=reader.epoch) if k.job == kept.id else k for k in some]
                )
                for task, some in plan.outer.items()
            }


def elsewhere(what: str, kept: KeptJob, keys: Keys, url: str = "") -> RedisqError:
    """Return the error for a value of another queue; with `url` for one of another server."""
    there, here = f"queue {kept.keys.queue!r}", f"queue {keys.queue!r}"
    if url:
        there, here = f"{there} on {redact(kept.pool.url)}", f"{here} on {redact(url)}"
    return RedisqError(
        f"{what} is on {there}, and workers of {here} cannot read it: scatter or persist it there "
        "as well, or compute on the queue where it is"
    )


def fetch_parts(parts: Mapping[Key, Part], link: Link) -> dict[Key, Any]:
    """Return key -> value for requested keys that parts are the values of."""
    values: dict[tuple[str, int], Any] = {}
    for kept, tasks in by_job(parts.values()):
        with kept.follow(link) as reader:
            found = reader.read(tasks)
        values |= {(kept.id, task): value for task, value in found.items()}
    return {key: values[part.job, part.task] for key, part in parts.items()}


def by_job(parts: Iterable[Part]) -> list[tuple[KeptJob, list[int]]]:
    """Return kept jobs, each with the numbers of those of its tasks that some parts are."""
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
