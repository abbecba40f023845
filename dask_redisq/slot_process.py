"""A slot's process as its supervisor holds it: start, page, pipe of life."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dask_redisq.page import Page

__all__ = ["SlotProcess", "start_slot"]

#: What distributed's nanny sets for its workers: one thread a process, the same hashes everywhere.
_ENVIRONMENT = {
    "PYTHONHASHSEED": "6640",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass
class SlotProcess:
    """One slot process.

    Attributes
    ----------
    slot : str
        Its start id, by which the server knows it.
    process : subprocess.Popen
        The process.
    page : Page
        Where it writes what it does.
    life : int
        Write end of the pipe whose end tells it that its supervisor is gone.
    started : float
        When, by `time.monotonic`.
    kill_at : float, optional
        When it is killed if it still runs a task of the job `kill_job`, which was cancelled.
    stopping : bool
        Whether it was asked to end.
    """

    slot: str
    process: subprocess.Popen[bytes]
    page: Page
    life: int
    started: float
    kill_at: float | None = None
    kill_job: bytes = b""
    stopping: bool = False

    def stop(self) -> None:
        """Ask it, once, to end after the task in hand."""
        if not self.stopping:
            self.stopping = True
            self.process.terminate()

    def cancel(self, job: bytes, kill_at: float) -> None:
        """Ask it to begin no further task of `job`; note when to kill it if one still runs."""
        if job != self.kill_job:  # told again, it has no longer for it
            self.page.stop(job)
            self.kill_at, self.kill_job = kill_at, job

    def kill(self) -> None:
        """End it now, and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Give up page and pipe, once the process ended."""
        os.close(self.life)
        self.page.close()


def start_slot(
    slot: str,
    queues: Sequence[str],
    tags: Sequence[str],
    where: str,
    url: str,
    now: float,
    environment: Mapping[str, str],
) -> SlotProcess:
    """Start the process of a registered slot.

    It inherits this process's directory and environment, with `environment` on top, and gets the
    URL, which may hold a password, there too: `ps` shows a command line to everybody.
    """
    page = Page()
    life_read, life_write = os.pipe()
    # As this process was started: without -P, a hashlib.py in the working directory would be
    # imported instead of the library's, and no slot would ever come up.
    safe = ["-P"] if sys.flags.safe_path else []
    command = [sys.executable, *safe, "-m", "dask_redisq.slot", "--slot", slot]
    command += ["--page", str(page.fd), "--life", str(life_read), "--where", where]
    command += [word for queue in queues for word in ("--queue", queue)]
    command += [word for tag in tags for word in ("--tag", tag)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        pass_fds=(page.fd, life_read),
        env={**os.environ, **_ENVIRONMENT, **environment, "DASK_REDISQ__URL": url},
    )
    os.close(life_read)
    return SlotProcess(slot, process, page, life_write, now)
