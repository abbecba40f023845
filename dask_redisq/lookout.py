"""Whether anybody can run what is left of a job: says so once if not, and gives up in the end.

Two looks. One is for a job of which nothing is heard. The other is for tasks that only some slots
may run: these may wait for a worker that is not there while the rest of the job goes on for hours.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from dask_redisq.annotations import RESOURCE, SOFT
from dask_redisq.errors import NoWorkersError
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.registry import able_workers, is_suspended, read_restrictions
from dask_redisq.versions import python_tag

__all__ = ["Lookout"]

logger = logging.getLogger("dask_redisq")

#: Seconds without progress after which missing workers are spoken of, and between two looks at a
#: job that makes some.
QUIET = 5.0
#: Seconds between two looks at a job that makes none.
AGAIN = 0.5
#: Seconds before the first look: a small job is over by then.
FIRST = 0.25


class Lookout:
    """Looks for workers that may run the tasks of one job.

    Parameters
    ----------
    link : Link
        The client's connection.
    keys : Keys
        The queue.
    job : str
        The job's id.
    limit : float or None
        Seconds without an able worker after which it gives up; None for never.
    restricted : Mapping of int to tuple of str, optional
        Task -> where it may run; see `dask_redisq.annotations`. None: who looks did not submit
        the job, and asks the server when it is late.
    now : float
        The time, as for all that follows by `time.monotonic`.
    said : set of str
        What was said; shared by the jobs of a loop, which are one thing to its user.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        job: str,
        limit: float | None,
        restricted: Mapping[int, tuple[str, ...]] | None,
        now: float,
        said: set[str],
    ) -> None:
        self.link = link
        self.keys = keys
        self.job = job
        self.limit = limit
        self.needs = _hard_ones(restricted or {})
        self._known = restricted is not None
        #: When the first look at a quiet job is due, in seconds without progress.
        self.patience = QUIET if limit is None else min(QUIET, limit)
        self._said = said
        self._looked: float | None = None
        #: Since when nobody was seen who may run one of the restricted tasks.
        self._since: float | None = None
        self._next = now + FIRST if self.needs else float("inf")

    def __repr__(self) -> str:
        return f"<Lookout of job {self.job}, {len(self.needs)} tasks not for all>"

    def wait(self, left: float) -> float:
        """Return how long to wait for news, of `left` seconds, so that a first look is in time."""
        return left if self._looked is not None else min(left, max(0.01, self.patience))

    def look_at_quiet(self, now: float, quiet: float, progress: int | None = None) -> None:
        """Look if it is time, after `quiet` seconds without progress.

        Parameters
        ----------
        now, quiet : float
            The time, and for how long nothing was heard.
        progress : int, optional
            How many tasks were finished when the job was asked last; None: that was not told.

        Raises
        ------
        NoWorkersError
            If nobody is able, and was not for too long.
        """
        if quiet < self.patience or (self._looked is not None and now < self._looked + AGAIN):
            return
        self._looked = now
        knew = self._known
        problem = self.problem(progress)
        if self._known and not knew and self.needs:
            self._next = now + QUIET
        if problem is not None:
            self._tell(problem, quiet)

    def problem(self, progress: int | None = None) -> str | None:
        """Return why nobody runs what is left of the job; None if somebody may, or does."""
        if is_suspended(self.link, self.keys):
            if self._goes_on(progress):
                return None
            return f"queue {self.keys.queue!r} is suspended, until Queue.resume()"
        if not self._known:
            self._known = True
            self.needs = _hard_ones(read_restrictions(self.link, self.keys, self.job))
        return self._lack()

    def look_beside(self, now: float) -> None:
        """Look if it is time, though the job makes progress, at the tasks that not all may run.

        Raises
        ------
        NoWorkersError
            If nobody is able, and was not for too long.
        """
        if now < self._next:
            return
        problem = self._lack(hard_only=True)
        self._next = now + QUIET
        if problem is None:
            self._since = None
            return
        since = self._since = now if self._since is None else self._since
        self._tell(problem, now - since)
        due = [since + QUIET] if self.limit is None else [since + QUIET, since + self.limit]
        self._next = min([self._next, *[at for at in due if at > now]])

    def _tell(self, problem: str, seconds: float) -> None:
        """Say once that nobody is able, or give up, after so many seconds."""
        if seconds >= QUIET and not self._said:
            self._said.add(problem)
            logger.warning("job %s waits: %s", self.job, problem)
        if self.limit is not None and seconds >= self.limit:
            raise NoWorkersError(f"gave up after {self.limit:g} s: {problem}")

    def _lack(self, *, hard_only: bool = False) -> str | None:
        """Return what is lacking for what is left to do; None if nothing."""
        problem = able_workers(self.link, self.keys, python_tag(), set(self.needs.values()))
        if problem is None or not self.needs:
            return problem
        # Who ran the tasks that are finished may have left since, and nobody misses it.
        bits = self.link.command("GET", self.keys("finished", self.job)) or b""
        left = {t: tags for t, tags in self.needs.items() if not _bit(bits, t)}
        if len(left) == len(self.needs):
            return problem
        if hard_only and not left:
            return None
        return able_workers(self.link, self.keys, python_tag(), set(left.values()))

    def _goes_on(self, progress: int | None) -> bool:
        """Tell whether a slot has a task of this job, or had one since we asked."""
        if self.link.command("HLEN", self.keys("leases", self.job)):
            return True
        finished = self.link.command("HGET", self.keys("job", self.job), "finished")
        return progress is None or int(finished or 0) != progress


def _hard_ones(restricted: Mapping[int, tuple[str, ...]]) -> dict[int, tuple[str, ...]]:
    return {task: tags for task, tags in restricted.items() if _is_hard(tags)}


def _is_hard(tags: tuple[str, ...]) -> bool:
    """Tell whether a restriction keeps a task from a slot for good."""
    return SOFT not in tags or any(tag.startswith(RESOURCE) for tag in tags)


def _bit(bits: bytes, number: int) -> bool:
    at = number // 8
    return at < len(bits) and bool(bits[at] & (128 >> number % 8))
