"""What a `Queue` has for those who look after it: its workers, its pauses, its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dask_redisq import status
from dask_redisq.files import upload
from dask_redisq.keys import Keys
from dask_redisq.on_slots import run_on_slots
from dask_redisq.pool import Pool
from dask_redisq.registry import list_workers, wait_for_slots
from dask_redisq.removal import remove_queue, restart_workers
from dask_redisq.secret import find_secret
from dask_redisq.suspend import set_suspended

__all__ = ["Managed"]


class Managed:
    """A queue that can be looked at, and removed."""

    pool: Pool
    keys: Keys

    # -- look ----------------------------------------------------------------------------

    def workers(self) -> list[dict[str, Any]]:
        """Return one row per living worker: id, name, host, pid, versions, tags, slots."""
        with self.pool.lend() as link:
            return list_workers(link, self.keys)

    def stats(self) -> dict[str, int]:
        """Return counts: waiting, ready and running tasks, workers, slots, and two that only grow.

        These are ``finished`` and ``refused_payloads``: see `BadSignature`. And ``suspended``, 1
        while `suspend` holds.
        """
        with self.pool.lend() as link:
            return status.counts(link, self.keys)

    def wait_for_workers(self, n: int, timeout: float | None = None) -> None:
        """Wait until `n` slots of living workers are ready for tasks: registered, and up.

        Parameters
        ----------
        n : int
            Slots, over all workers.
        timeout : float, optional
            Seconds; by default for ever.

        Raises
        ------
        NoWorkersError
            If there are fewer when the time is over.
        """
        with self.pool.lend() as link:
            wait_for_slots(link, self.keys, n, timeout)

    # -- workers -------------------------------------------------------------------------

    def upload_file(self, path: str | Path) -> None:
        """Send a Python file, or an archive of such, to all workers, for their tasks to import.

        Jobs that are submitted from now on see it, also on workers that join later. One that
        was uploaded before, under the same name, is imported anew.

        Parameters
        ----------
        path : str or Path
            A file; ``.zip``, ``.egg`` and ``.whl`` are imported from.

        Raises
        ------
        OSError
            If it cannot be read.
        SyntaxError
            If it is no Python: nothing was sent.
        ValueError
            If it has the name of a module of Python's own, or of what workers run on; nor then.

        Examples
        --------
        >>> queue.upload_file("model.py")  # doctest: +SKIP
        """
        signer = find_secret(self.pool.url)
        with self.pool.lend() as link:
            upload(link, self.keys, Path(path), signer)

    def restart_workers(self, timeout: float = 60.0) -> None:
        """Have all slots start anew, each after its task in hand: after a module was edited, say.

        Waits until they are back. Jobs go on, persisted values are read from the server again.

        Parameters
        ----------
        timeout : float, default 60
            Seconds.

        Raises
        ------
        TimeoutError
            If some are not, since a task runs for longer, say; they will be later.
        ValueError
            If `timeout` is no number.
        RedisqError
            In a task of this queue, whose slot would wait for itself.
        """
        with self.pool.lend() as link:
            restart_workers(link, self.keys, timeout)

    def run_on_workers(
        self, fn: Callable[..., Any], *args: Any, on_error: str = "raise",
        timeout: float | None = None, **kwargs: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Run a function once in each slot of each worker that is here now: ``Client.run``.

        A slot that is busy runs it behind what it has in hand, and before all else. One that ends
        meanwhile, by what the function does or not, is left out of the answer; so are slots of
        another Python than this one. Slots that start later do not run it: see a worker's
        ``--preload``.

        Parameters
        ----------
        fn : callable
            Called as ``fn(*args, **kwargs)``.
        on_error : {"raise", "return"}
            Whether an exception of `fn` is raised, when all slots have run it, or stands for the
            value of its slot.
        timeout : float, optional
            Seconds; by default for ever.

        Returns
        -------
        dict
            Slot -> value, by the names of `workers`.

        Raises
        ------
        TimeoutError
            If some slots have not run it in time; they do not any more.

        Examples
        --------
        >>> set(queue.run_on_workers(os.cpu_count).values())  # doctest: +SKIP
        {8}
        """
        return run_on_slots(
            self.pool, self.keys, fn, args, kwargs, on_error=on_error, timeout=timeout
        )

    # -- hold ----------------------------------------------------------------------------

    def suspend(self) -> None:
        """Give no slot anything to do, until `resume`; clients wait, and jobs can be submitted.

        What a slot has in hand it ends, all of its lease, and what follows from that in one line;
        so it may be a while until nothing runs: see `tasks`. A task that computes on this queue
        waits meanwhile. Workers may come, go and be started again, jobs end: it stays suspended,
        as long as the queue is there (a day, without workers and jobs).

        Examples
        --------
        >>> queue.suspend()  # doctest: +SKIP
        >>> queue.stats()["suspended"]  # doctest: +SKIP
        1
        """
        with self.pool.lend() as link:
            set_suspended(link, self.keys, on=True)

    def resume(self) -> None:
        """End what `suspend` began: slots go on at once. Nothing, if it is not suspended.

        Examples
        --------
        >>> queue.resume()  # doctest: +SKIP
        """
        with self.pool.lend() as link:
            set_suspended(link, self.keys, on=False)

    # -- remove --------------------------------------------------------------------------

    def remove(self, timeout: float = 15.0) -> None:
        """Cancel the jobs, tell every worker to leave, then delete all keys: doRedis's removeQueue.

        Waits until the workers left, or until those that do not answer are past their expiry; at
        most `timeout` seconds.

        What was submitted before it returns, or is the next part of a loop that began before, is a
        `JobCancelled`; what comes later is of a new queue, and waits for workers. So do calls of an
        `Executor` that it had not sent yet.

        Of each job that was cancelled, by this or before, or whose results were forgotten or
        expired, a small key stays, ``redisq:{QUEUE}:tomb:JOB``, for ten minutes from then: who
        comes late is told what became of it. So is a loop, by ``redisq:{QUEUE}:tomb:queue``.
        """
        with self.pool.lend() as link:
            remove_queue(link, self.keys, timeout)
