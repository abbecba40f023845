"""The server's memory is full: told by type, and it drains. Fault row 25."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from conftest import WorkerProcess, wait_until
from dask.utils_test import inc
from test_faults import Background, log_and_wait, pids

import dask_redisq as redisq
from dask_redisq.link import Link
from dask_redisq.queue import Queue
from dask_redisq.server import PrivateServer


def used_memory(link: Link) -> int:
    """Return how many bytes the server has."""
    return next(
        int(line.split(b":")[1])
        for line in link.command("INFO", "memory").split(b"\r\n")
        if line.startswith(b"used_memory:")
    )


@pytest.fixture
def small() -> Iterator[PrivateServer]:
    """A server that may take 8 MB more than it has."""
    with PrivateServer() as server:
        link = Link(server.url)
        link.command("CONFIG", "SET", "maxmemory", used_memory(link) + 8 * 2**20)
        link.close()
        yield server


@pytest.fixture
def queue(small: PrivateServer, start_worker: Callable[..., WorkerProcess]) -> Iterator[Queue]:
    """A queue on it with two slots."""
    start_worker("test", "--nworkers", "2", url=small.url)
    with Queue("test", small.url) as found:
        found.wait_for_workers(2, timeout=90)
        yield found


def drained(queue: Queue, server: PrivateServer) -> None:
    """The queue is as good as new: nothing is left of the job, and another one runs."""
    link = Link(server.url)
    wait_until(lambda: link.command("KEYS", "*job:*") == [])
    link.close()
    assert queue.get({"x": (sum, [1, 2])}, "x") == 3
    assert queue.stats()["slots"] == 2


def test_a_graph_that_does_not_fit_is_refused_at_submit(queue: Queue, small: PrivateServer) -> None:
    """The error is typed, and comes at once."""
    dsk: dict[Any, Any] = {("x", i): (len, bytes([i]) * 2**20) for i in range(20)}
    with pytest.raises(redisq.ServerFull, match="full"):
        queue.get(dsk, list(dsk))
    drained(queue, small)


def test_results_that_do_not_fit_end_their_job(queue: Queue, small: PrivateServer) -> None:
    """They wait for room for a while; then the error names the task; no slot dies of it."""
    dsk: dict[Any, Any] = {("x", i): (bytes, 2**20) for i in range(20)}
    dsk["sum"] = (list, list(dsk))
    pids = {slot for worker in queue.workers() for slot in worker["slots"]}
    with pytest.raises(redisq.ServerFull, match="full") as caught:
        queue.get(dsk, "sum")
    assert "task" in str(caught.value.__notes__)
    assert {slot for worker in queue.workers() for slot in worker["slots"]} == pids
    drained(queue, small)


def test_what_is_running_ends_though_the_memory_is_full(
    queue: Queue, small: PrivateServer, tmp_path: Path
) -> None:
    """Its results are accepted, the rest of it runs, and its keys go; meanwhile no other job begins."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    dsk: dict[Any, Any] = {("x", i): (log_and_wait, log, gate) for i in range(20)}
    dsk |= {("y", i): (inc, ("x", i)) for i in range(20)}
    dsk["sum"] = (sum, [("y", i) for i in range(20)])
    link = Link(small.url)
    job = Background(queue.get, dsk, "sum", chunk_size=1)
    wait_until(lambda: len(pids(log)) == 2)
    link.command("CONFIG", "SET", "maxmemory", 1)
    try:
        with pytest.raises(redisq.ServerFull, match="full"):
            queue.get({"x": (sum, [1, 2])}, "x")
        gate.touch()
        assert job.result() == sum(pids(log)) + 20
        assert len(pids(log)) == 20
        wait_until(lambda: link.command("KEYS", "*job:*") == [])
    finally:
        gate.touch()
        link.command("CONFIG", "SET", "maxmemory", 0)
        link.close()
    drained(queue, small)


def give_much(log: Path, gate: Path) -> bytes:
    """Return 4 MB, once the gate is there."""
    log_and_wait(log, gate)
    return bytes(4 * 2**20)


def test_a_worker_that_drains_hands_back_what_waits_for_room(
    small: PrivateServer, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """There is room for one of two results; both tasks run elsewhere, with no failure, and in order."""
    log, gate, link = tmp_path / "log", tmp_path / "gate", Link(small.url)
    worker = start_worker("test", "--nworkers", "1", url=small.url)
    with Queue("test", small.url) as queue:
        queue.wait_for_workers(1, timeout=90)
        tasks = [dask.delayed(give_much)(log, gate) for _ in range(2)]
        future = queue.compute(*tasks, detach=True, chunk_size=2)
        wait_until(lambda: len(pids(log)) == 1)
        # A command has its value in memory twice.
        link.command("CONFIG", "SET", "maxmemory", used_memory(link) + 10 * 2**20)
        link.command("CONFIG", "RESETSTAT")
        gate.touch()
        wait_until(lambda: b"errorstat_OOM" in link.command("INFO", "errorstats"))
        assert len(link.command("KEYS", "*value:*")) == 1
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.wait() == 0
        assert link.command("KEYS", "*value:*") == []
        link.command("CONFIG", "SET", "maxmemory", 0)
        start_worker("test", "--nworkers", "1", url=small.url)
        assert [len(x) for x in future.result(timeout=60)] == [4 * 2**20] * 2
        assert len(pids(log)) == 4
        future.forget()
    link.close()


def test_nothing_begins_while_the_memory_is_full(queue: Queue, small: PrivateServer) -> None:
    """It is refused, and readers go on; then it is as before."""
    link = Link(small.url)
    link.command("SET", "ballast", bytes(1), "PX", 600_000)
    link.command("CONFIG", "SET", "maxmemory", 1)
    try:
        with pytest.raises(redisq.ServerFull):
            link.command("SET", "more", bytes(1000))
        with pytest.raises(redisq.ServerFull):
            queue.get({"x": (sum, [1, 2])}, "x")
        assert queue.stats()["slots"] == 2
    finally:
        link.command("CONFIG", "SET", "maxmemory", 0)
        link.command("DEL", "ballast")
        link.close()
    drained(queue, small)
