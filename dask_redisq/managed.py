"""What a `Queue` has for those who look after it: its workers, its jobs, its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dask_redisq import status
from dask_redisq.files import upload
from dask_redisq.keys import Keys
from dask_redisq.pool import Pool
from dask_redisq.registry import list_workers, wait_for_slots
from dask_redisq.removal import remove_queue, restart_workers
from dask_redisq.secret import find_secret

__all__ = ["Managed"]


class Managed:
    """A queue that can be looked at, and removed."""

    pool: Pool
    keys: Keys

    @property
    def url(self) -> str:
        """URL of its server."""
        raise NotImplementedError

    # -- look ----------------------------------------------------------------------------

    def workers(self) -> list[dict[str, Any]]:
        """Return one row per living worker: id, name, host, pid, versions, tags, slots."""
        with self.pool.lend() as link:
            return list_workers(link, self.keys)

    def stats(self) -> dict[str, int]:
        """Return counts: waiting, ready and running tasks, workers, slots, and two that only grow.

        These are ``finished`` and ``refused_payloads``: see `BadSignature`.
        """
        with self.pool.lend() as link:
            return status.counts(link, self.keys)

    def jobs(self) -> list[dict[str, Any]]:
        """Return one row per job: id, state, sealed, detached, n, finished, created.

        ``n`` counts its tasks, ``created`` is in seconds since 1970 by the server's clock, and
        ``state`` is running, done, failed or cancelled.

        Examples
        --------
        >>> [row["id"] for row in queue.jobs() if row["detached"]]  # doctest: +SKIP
        ['0f343b0931126a20f133d67c2b018a3b']
        """
        with self.pool.lend() as link:
            return status.jobs(link, self.keys)

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

        Examples
        --------
        >>> queue.upload_file("model.py")  # doctest: +SKIP
        """
        signer = find_secret(self.url)
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
        """
        with self.pool.lend() as link:
            restart_workers(link, self.keys, timeout)

    # -- remove --------------------------------------------------------------------------

    def remove(self, timeout: float = 15.0) -> None:
        """Cancel the jobs, tell every worker to leave, then delete all keys: doRedis's removeQueue.

        Waits until the workers left, or until those that do not answer are past their expiry; at
        most `timeout` seconds.
        """
        with self.pool.lend() as link:
            remove_queue(link, self.keys, timeout)
