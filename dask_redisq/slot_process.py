"""A slot's process as its supervisor holds it: start, page, pipe of life."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dask_redisq.output import Outputs, Tail
from dask_redisq.page import Page
from dask_redisq.watch import Overdue

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
    queues : tuple of str
        The queues that it serves; its page tells one by its place here.
    process : subprocess.Popen
        The process.
    page : Page
        Where it writes what it does.
    tail : Tail
        The last that it printed.
    life : int
        Write end of the pipe whose end tells it that its supervisor is gone.
    started : float
        When, by `time.monotonic`.
    kill_at : float, optional
        When it is killed if it still runs a task of a lease that was cancelled.
    cancelled : tuple of bytes and int
        The job of that lease, and its number.
    stopping : bool
        Whether it was asked to end.
    killed : bool
        Whether its supervisor killed it.
    overdue : Overdue, optional
        The task for which it was killed: it ran longer than its limit.
    given : int
        The lease of which was given back what had not begun.
    ask_at : float
        When to ask next whether somebody waits for that.
    counted : bool
        Whether the tasks that it runs are counted.
    peak : int
        The most memory that it had, in bytes, once it ended; 0 where the system does not tell.
    """

    slot: str
    queues: tuple[str, ...]
    process: subprocess.Popen[bytes]
    page: Page
    tail: Tail
    life: int
    started: float
    kill_at: float | None = None
    cancelled: tuple[bytes, int] = (b"", 0)
    stopping: bool = False
    killed: bool = False
    overdue: Overdue | None = None
    given: int = 0
    ask_at: float = 0.0
    counted: bool = False
    peak: int = 0

    def stop(self) -> None:
        """Ask it, once, to end after the task in hand."""
        if not self.stopping:
            self.stopping = True
            if self.poll() is None:
                os.kill(self.process.pid, signal.SIGTERM)

    def cancel(self, job: bytes, seq: int, kill_at: float) -> None:
        """Ask it to begin no further task of `job` in lease `seq`, or in one before that.

        Note when to kill it if one still runs.
        """
        if (job, seq) != self.cancelled:  # told again, it has no longer for it
            self.page.stop(job, seq)
            self.kill_at, self.cancelled = kill_at, (job, seq)

    def runs_cancelled(self) -> bool:
        """Tell whether what it has in hand was cancelled."""
        cursor, (job, seq) = self.page.read(), self.cancelled
        return cursor.job == job and cursor.seq <= seq

    def kill(self) -> None:
        """End it now, with the processes that its task started."""
        if self.poll() is None:
            self.killed = True
            self._kill_group()

    def poll(self) -> int | None:
        """Return its exit code once it ended, as `subprocess` gives it; what it left is killed."""
        if self.process.returncode is None:
            self._reap(os.WNOHANG)
        return self.process.returncode

    def wait(self) -> None:
        """Wait until it is gone."""
        if self.process.returncode is None:
            self._reap(0)

    def _reap(self, how: int) -> None:
        # Not Popen.poll, nor its kill, which polls first: they would throw its usage away.
        pid, status, usage = os.wait4(self.process.pid, how)
        if pid == 0:
            return
        # Its id is free from now on, but ids are not used again before all others were.
        self._kill_group()
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def _kill_group(self) -> None:
        # A task may have started processes: a shell, a pool of its own. They are in the group
        # that the slot leads, unless they took care to leave it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

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
    outputs: Outputs,
    now: float,
    environment: Mapping[str, str],
    slots: int,
    files: str,
    preload: Sequence[str],
    allowance: int | None = None,
) -> SlotProcess:
    """Start the process of a registered slot, one of `slots` that share the host's memory.

    Uploaded files go below the directory `files`, and `preload` is run first. `allowance` is the
    descriptor of an `Allowance`.

    It inherits this process's directory and environment, with `environment` on top, and gets the
    URL, which may hold a password, there too: `ps` shows a command line to everybody.
    """
    page = Page()
    life_read, life_write = os.pipe()
    tail, stdout, stderr = outputs.open()
    # As this process was started: without -P, a hashlib.py in the working directory would be
    # imported instead of the library's, and no slot would ever come up.
    safe = ["-P"] if sys.flags.safe_path else []
    command = [sys.executable, *safe, "-m", "dask_redisq.slot", "--slot", slot]
    command += ["--page", str(page.fd), "--life", str(life_read), "--where", where]
    command += ["--slots", str(slots), "--files", files]
    counted = [] if allowance is None else [allowance]
    command += [word for fd in counted for word in ("--allowance", str(fd))]
    command += [word for name in preload for word in ("--preload", name)]
    command += [word for queue in queues for word in ("--queue", queue)]
    command += [word for tag in tags for word in ("--tag", tag)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        pass_fds=(page.fd, life_read, *counted),
        start_new_session=True,  # it leads a group, which ends with it
        env={**os.environ, **_ENVIRONMENT, **environment, "DASK_REDISQ__URL": url},
    )
    for fd in (life_read, stdout, stderr):
        os.close(fd)
    return SlotProcess(
        slot, tuple(queues), process, page, tail, life_write, now, counted=bool(counted)
    )
