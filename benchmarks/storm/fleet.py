"""All that a storm started: the server, the workers, their detours, the client processes."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import psutil

from benchmarks.storm.server import DurableServer
from benchmarks.storm.workers import QUEUE, Detour, Worker, environment
from dask_redisq.keeper import Kept

#: Serial numbers of the jobs of one client.
SERIALS = 1_000_000
#: Seconds that a job of a killed client process outlives it.
CLIENT_LEASE = 15.0


class Fleet:
    """What may be hit.

    Every other worker and all client processes have a detour before the server; the others and
    the threads reach it directly.

    Parameters
    ----------
    folder : Path
        Of mode 0700, with a short name.
    workers, clients : int
        How many workers and client processes there are in calm weather.
    """

    def __init__(self, folder: Path, workers: int, clients: int) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.runs.mkdir()
        self.server = DurableServer(folder)
        self.wanted = workers
        self.workers: list[Worker] = []
        self.clients: dict[str, Kept] = {}
        self.detours = [Detour(folder / f"p{i}", self.server.socket) for i in range(3)]
        self._client_count = clients
        self._workers_started = self._clients_started = 0

    # -- workers ------------------------------------------------------------------------

    def start_worker(self) -> Worker:
        """Start another worker."""
        number = self._workers_started
        self._workers_started += 1
        url = self.server.url if number % 2 else self.detours[number // 2 % 2].url
        worker = Worker(f"w{number}", url, self.folder / f"worker-{number}.log")
        self.workers.append(worker)
        return worker

    def living(self) -> list[Worker]:
        """Return the workers that run and were not told to leave."""
        return [worker for worker in self.workers if worker.running and not worker.leaving]

    def slots(self) -> Iterator[psutil.Process]:
        """Yield the slots of all workers that run."""
        for worker in self.workers:
            if worker.running:
                yield from worker.slots()

    def fill(self) -> None:
        """Start workers until there are as many as there should be."""
        while len(self.living()) < self.wanted:
            self.start_worker()

    # -- client processes -----------------------------------------------------------------

    def start_clients(self, seed: int, until: float) -> None:
        """Start client processes until there are as many as there should be."""
        while len(self.running_clients()) < self._client_count:
            self._clients_started += 1
            name = f"p{self._clients_started}"
            first = (1000 + self._clients_started) * SERIALS
            words = [self.detours[2].url, name, str(seed), str(first), str(self.runs), str(until)]
            output = os.open(
                self.folder / f"client-{name}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
            )
            try:
                self.clients[name] = Kept(
                    [sys.executable, "-m", "benchmarks.storm.clients", *words],
                    env={
                        **environment(self.server.url),
                        "DASK_REDISQ__CLIENT_LEASE": str(CLIENT_LEASE),
                    },
                    output=output,
                )
            finally:
                os.close(output)

    def running_clients(self) -> list[str]:
        """Return the names of client processes that have not ended."""
        return [name for name, kept in self.clients.items() if kept.poll() is None]

    # -- the end ----------------------------------------------------------------------------

    def wait_for_workers(self, timeout: float) -> None:
        """Wait until all workers ended by themselves."""
        deadline = time.monotonic() + timeout
        while any(worker.running for worker in self.workers) and time.monotonic() < deadline:
            time.sleep(0.05)

    def left_processes(self) -> list[str]:
        """Return the command lines of processes that outlived those that started them."""
        mark, found = str(self.folder), []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                url = process.environ().get("DASK_REDISQ__URL", "")
                if mark in url and process.pid != os.getpid():
                    found.append(" ".join(process.cmdline()))
        return found

    def close(self) -> None:
        """End all that is left."""
        for kept in self.clients.values():
            kept.close(0)
        for worker in self.workers:
            worker.close()
        for detour in self.detours:
            detour.close()
        self.server.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


__all__ = ["CLIENT_LEASE", "QUEUE", "SERIALS", "Fleet"]
