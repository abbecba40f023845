"""Real worker processes: one for a test, or one that many tests share."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

import psutil

from dask_redisq.link import Link
from dask_redisq.queue import Queue
from dask_redisq.server import PrivateServer

__all__ = ["PATH", "SharedWorker", "WorkerProcess", "command_of", "is_gone", "slots_of"]

#: Workers find the functions of the tests here, and the package that is tested.
HERE = Path(__file__).parent
PATH = os.pathsep.join(map(str, (HERE, HERE / "faults", HERE.parent)))


def slots_of(worker: psutil.Process) -> list[psutil.Process]:
    """Return the slot processes of a worker, in the order of their start."""
    found = []
    for child in worker.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "dask_redisq.slot" in child.cmdline():
                found.append(child)
    return found


def is_gone(process: psutil.Process) -> bool:
    """Tell whether a process ended; an orphan may be a zombie until init looks at it."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def command_of(process: psutil.Process) -> str:
    """Return the command line of a process; of one that ends in this moment nothing."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # a zombie is one of them
        return "keeper"


class WorkerProcess:
    """A real worker, started as a user starts it."""

    def __init__(self, url: str, *words: str, env: dict[str, str] | None = None) -> None:
        # A file: a pipe that nobody reads would stop it when it is full.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._told = 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dask_redisq.cli", "worker", *words],
            env={**os.environ, "PYTHONPATH": PATH, "DASK_REDISQ__URL": url, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=self._said.fileno(),
            stderr=subprocess.STDOUT,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def slots(self) -> list[psutil.Process]:
        """Return its slot processes."""
        return slots_of(psutil.Process(self.pid))

    def wait(self, timeout: float = 10.0) -> int:
        """Return the exit code once it ended."""
        return self.process.wait(timeout)

    def output(self) -> str:
        """Return what it printed, since `mute` if that was called."""
        self._said.seek(self._told)
        return self._said.read().decode()

    def mute(self) -> None:
        """Leave out of `output` what it printed until now."""
        self._told = self._said.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Kill it, if it is still there."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._said.close()


def environment() -> dict[str, str]:
    """Return the environment of a worker that starts now."""
    return {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}


#: What an idle queue with a worker has: all else was left by a test.
OWN = ("queue", "monitor", "workers", "alive:", "worker:", "slots", "slot:", "idle:")


class SharedWorker:
    """One worker with two slots for all the tests that want no more, on a server of its own.

    A start takes two seconds, most tests less. A test that ends a process of it, uploads a file,
    leaves a slot busy or changes the environment has it for itself: the next one gets another.
    """

    def __init__(self) -> None:
        self.server = PrivateServer()
        self.queue = Queue("test", self.server.url)
        self._link = Link(self.server.url, patience=5.0)
        self._worker: WorkerProcess | None = None
        self._slots: set[int] = set()
        self._environment: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._worker is not None:
            self._worker.close()
        self._link.close()
        self.queue.close()
        self.server.close()

    def pids(self) -> set[int]:
        """Return its processes that may outlive a test."""
        return {self.server.pid} | ({self._worker.pid} if self._worker else set())

    def clean(self) -> None:
        """Let nothing be there but the worker; without one that is as it was, nothing at all."""
        if self._worker is not None and not self._as_new():
            self._worker.close()
            self._worker = None
        if self._worker is None:
            self._link.command("FLUSHALL")
            return
        prefix = self.queue.keys.prefix
        left = [
            key for key in self._link.command("KEYS", "*")
            if not key.decode().startswith(tuple(prefix + own for own in OWN))
        ]  # fmt: skip
        if left:
            self._link.command("DEL", *left)
        self._link.command("HDEL", self.queue.keys("queue"), "finished", "refused")

    def ready(self) -> WorkerProcess:
        """Return the worker, started if there is none."""
        if self._worker is None:
            self._environment = environment()
            words = ("test", "--nworkers", "2", "--name", "one")
            self._worker = WorkerProcess(self.server.url, *words)
            self.queue.wait_for_workers(2, timeout=90)
            deadline = time.monotonic() + 10
            while len(self._worker.slots()) < 2 or not self._idle():
                assert time.monotonic() < deadline, "no two idle slots"
                time.sleep(0.01)
            self._slots = {process.pid for process in self._worker.slots()}
        self._worker.mute()
        return self._worker

    def _as_new(self) -> bool:
        """Whether the worker has the slots that it began with, and they wait for work."""
        assert self._worker is not None
        files = self._link.command("EXISTS", self.queue.keys("files"))
        if self._worker.process.poll() is not None or files or self._environment != environment():
            return False
        deadline = time.monotonic() + 2
        while {process.pid for process in self._worker.slots()} == self._slots:
            if self._idle():
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return False

    def _idle(self) -> bool:
        slots = [slot for row in self.queue.workers() for slot in row["slots"]]
        keys = [self.queue.keys("slot", slot) for slot in slots]
        return len(slots) == 2 and all(self._link.command("HGET", k, "idle") == b"1" for k in keys)
