"""What a `Queue` has for those who look after its jobs: which there are, and their end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dask_redisq import status
from dask_redisq.errors import SecretError
from dask_redisq.failed import failed_jobs, rerun
from dask_redisq.future import Future, cancel_job, job_id
from dask_redisq.keys import Keys
from dask_redisq.pool import Pool
from dask_redisq.secret import find_secret

__all__ = ["Jobs"]


class Jobs:
    """A queue whose jobs can be looked at, ended, and run again."""

    pool: Pool
    keys: Keys

    # -- look ----------------------------------------------------------------------------

    def jobs(self) -> list[dict[str, Any]]:
        """Return one row per job: id, state, sealed, detached, n, finished, created, and by whom.

        ``n`` counts its tasks, ``created`` is in seconds since 1970 by the server's clock, and
        ``state`` is running, done, failed or cancelled. ``user``, ``host`` and ``pid`` are of the
        process that submitted it, as it says itself; a slot's, for what a task computes. A loop is
        one job after the other.

        Examples
        --------
        >>> [row["id"] for row in queue.jobs() if row["detached"]]  # doctest: +SKIP
        ['0f343b0931126a20f133d67c2b018a3b']
        """
        with self.pool.lend() as link:
            return status.jobs(link, self.keys)

    def tasks(self, job: str | Mapping[str, Any] | Future | None = None) -> list[dict[str, Any]]:
        """Return one row per task that a slot has now: job, user, task, key, since, slot ... pid.

        A slot takes several short tasks at a time, in the order of their numbers. Which one it
        has in hand, and which it has done, it says when it calls next: until then there is a row
        for each of them. What follows from these tasks it may run as well, and no row tells.
        ``since`` is when it was given them, in seconds since 1970 by the server's clock.

        ``worker``, ``host`` and ``pid`` are of the worker, whose process starts those of its slots:
        their command lines have ``--slot`` with the id that is ``slot``. ``user`` submitted the
        job.

        ``task`` is the number in its job, ``key`` that of the graph for jobs of `compute`; of
        others only the client knows, and it is None.

        Parameters
        ----------
        job : str, row or Future, optional
            Of this job alone, as for `cancel`.

        Examples
        --------
        >>> [(row["key"], row["worker"]) for row in queue.tasks()]  # doctest: +SKIP
        [(('sum', 0, 3), 'lab-3')]
        """
        only = None if job is None else job_id(job)
        try:
            signer = find_secret(self.pool.url)
        except SecretError:  # who may look, and no more
            signer = None
        with self.pool.lend() as link:
            return status.tasks(link, self.keys, signer, only)

    def failed(self) -> list[dict[str, Any]]:
        """Return one row per job that failed and is still there: why, and where.

        Detached ones are, for their ``result_ttl``, and those whose future somebody holds. A row
        has id, error, traceback, task, key, detached, ended, user, host and pid. ``error`` is the
        exception, as the client would raise it, ``traceback`` its text; ``task`` the number of the
        task that failed, and ``key`` its name in the graph, or None as for `tasks`.

        Examples
        --------
        >>> for row in queue.failed():  # doctest: +SKIP
        ...     print(row["id"], row["key"], row["traceback"])
        """
        signer = find_secret(self.pool.url)
        with self.pool.lend() as link:
            return failed_jobs(link, self.keys, signer)

    # -- end, and begin again ------------------------------------------------------------

    def cancel(self, job: str | Mapping[str, Any] | Future, reason: str | None = None) -> bool:
        """Cancel a job: its waiting tasks never start, a running one is ended after a second.

        Who waits for it gets `JobCancelled`, with the job, this process and the reason. To cancel
        a job that has ended, or is not there, is harmless.

        Parameters
        ----------
        job : str, row or Future
            Its id, a row of `jobs`, `tasks` or `failed`, or its future.
        reason : str, optional
            For those who wait.

        Returns
        -------
        bool
            Whether it was running.

        Examples
        --------
        >>> queue.cancel(future.id, reason="the input was wrong")  # doctest: +SKIP
        True
        """
        name = job_id(job)
        with self.pool.lend() as link:
            return cancel_job(link, self.keys, name, reason)

    #: The name that doRedis has for it.
    remove_job = cancel

    def rerun(self, job: str | Mapping[str, Any] | Future) -> Future:
        """Let a detached job that failed go on from where it failed.

        What is finished stays so; the task that failed runs again, with all that is left, and
        deaths and retries are counted anew. After the cause is gone: a file is there now, a worker
        has more memory, a module was uploaded. The functions are those that were submitted.

        A job that was cancelled is gone, and cannot be run again.

        Parameters
        ----------
        job : str, row or Future
            Its id, or its row of `failed`, or its future.

        Returns
        -------
        Future
            As `Queue.attach` gives it. Futures that have told of the failure still do.

        Raises
        ------
        ValueError
            If it did not fail.
        JobLost
            If it is gone, its results have expired, or it failed before all of it was sent.
        RedisqError
            If it is not detached: who submitted it may submit it again.

        Examples
        --------
        >>> queue.rerun(queue.failed()[0]).result()  # doctest: +SKIP
        1000000.0
        """
        return rerun(self.pool, self.keys, job_id(job))
