"""The workers of a storm: their processes, and what each slot holds at a moment. Linux only."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.storm.runs import Hit, runs_of
from benchmarks.storm.schedule import ALIVE_EXPIRY, FT_INTERVAL
from dask_redisq.keeper import Kept
from dask_redisq.page import Page

QUEUE = "storm"
SLOTS = 2
#: Where the packages are that are tested.
ROOT = Path(__file__).parents[2]
#: Seconds that a worker which leaves may take for the tasks in hand.
DRAIN = 20.0


@dataclass(frozen=True)
class Waits:
    """How soon a silent worker counts as dead, and how often somebody looks, in seconds."""

    alive_expiry: float = ALIVE_EXPIRY
    ft_interval: float = FT_INTERVAL


def environment(url: str, waits: Waits = Waits()) -> dict[str, str]:
    """Return what the processes of a storm have in their environment."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        **os.environ,
        "PYTHONPATH": path,
        "DASK_REDISQ__URL": url,
        "DASK_REDISQ__ALIVE_EXPIRY": str(waits.alive_expiry),
        "DASK_REDISQ__FT_INTERVAL": str(waits.ft_interval),
    }


class Detour:
    """A proxy process before the server, which loses what it is told to.

    Parameters
    ----------
    path : Path
        Where it listens.
    server : Path
        The server's socket.
    """

    def __init__(self, path: Path, server: Path) -> None:
        self.url = f"unix://{path}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.storm.proxy", str(path), str(server)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        while not path.exists():
            if self._process.poll() is not None:
                msg = f"the proxy {path} did not start"
                raise RuntimeError(msg)
            time.sleep(0.005)

    def tell(self, word: str) -> None:
        """Tell it what to lose; see `proxy`."""
        stdin = self._process.stdin
        if stdin is not None:
            stdin.write(word.encode() + b"\n")
            stdin.flush()

    def close(self) -> None:
        """End it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


class Worker:
    """One `dask-redisq-worker`, as a user starts it.

    Parameters
    ----------
    name : str
        Its name.
    url : str
        Where it finds the server.
    log : Path
        Where it writes.
    slots : int
        How many slots it has.
    waits : Waits
        Its times.
    """

    def __init__(
        self,
        name: str,
        url: str,
        log: Path,
        slots: int = SLOTS,
        waits: Waits = Waits(),
    ) -> None:
        words = ["worker", QUEUE, "--nworkers", str(slots), "--name", name]
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            self._kept = Kept(
                [sys.executable, "-m", "dask_redisq.cli", *words],
                env=environment(url, waits),
                output=output,
            )
        finally:
            os.close(output)
        self.name = name
        self.leaving = False
        self.supervisor = psutil.Process(self._kept.pid)

    @property
    def running(self) -> bool:
        """Whether its supervisor has not ended."""
        return self._kept.poll() is None

    def slots(self) -> list[psutil.Process]:
        """Return its slot processes, in the order of their ids."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in self.supervisor.children():
                with contextlib.suppress(psutil.Error):
                    if "dask_redisq.slot" in child.cmdline():
                        found.append(child)
        return sorted(found, key=lambda process: process.pid)

    def leave(self) -> None:
        """Tell it to drain."""
        self.leaving = True
        self._kept.stop(DRAIN)

    def close(self) -> None:
        """End it, and wait for that."""
        self._kept.close()


def look(slot: psutil.Process, kind: str, folder: Path) -> Hit:
    """Return what a slot holds; it should not run meanwhile, or the server not answer it.

    By the page that it shares with its supervisor, and the runs that it counted itself since
    its lease came.
    """
    now = time.monotonic_ns()
    try:
        words = slot.cmdline()
        number = words[words.index("--page") + 1]
        with Path(f"/proc/{slot.pid}/fd/{number}").open("r+b", buffering=0) as file:
            page = Page(os.dup(file.fileno()))
        cursor = page.read()
        page.close()
    except (psutil.Error, OSError, ValueError):
        return Hit(kind, now, slot.pid)  # it has just begun, or ended
    if not cursor.seq:
        return Hit(kind, now, slot.pid)
    begun = [run for run in runs_of(folder, slot.pid) if run.ns >= cursor.since_ms * 1_000_000]
    return Hit(
        kind,
        now,
        slot.pid,
        frozenset(run.name for run in begun),
        max(0, cursor.tasks - 1 - cursor.position),
        begun[-1].name if begun and cursor.runs else None,
    )


def send(process: psutil.Process, number: signal.Signals) -> bool:
    """Send a signal to a process that we know; false if it is gone."""
    try:
        process.send_signal(number)  # which looks whether the id is still that process's
    except psutil.Error:
        return False
    return True
