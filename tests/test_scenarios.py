"""Scenarios of doRedis's promises that want whole workers, several queues or many bytes.

`test_foreach` has those of loops, `faults/` 11 to 20; docs/loops.md says which test holds which.
"""

from __future__ import annotations

import gc
import getpass
import itertools
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from conftest import WorkerProcess, wait_until
from test_faults import Background, log_and_wait, pids

import dask_redisq as redisq
from dask_redisq.link import Link
from dask_redisq.queue import Queue
from dask_redisq.slot_loop import TURN

StartWorker = Callable[..., WorkerProcess]


def nap(i: int, over: Path) -> int:
    """Sleep for 20 ms, until that is over; count, and return i."""
    if not over.exists():
        time.sleep(0.02)
    redisq.get_redis().incr("count")
    return i


def count(link: Link) -> int:
    """Return how many were counted."""
    return int(link.command("GET", "count") or 0)


def rate(link: Link, seconds: float = 2.0) -> float:
    """Return how many are counted in a second."""
    before, start = count(link), time.monotonic()
    time.sleep(seconds)
    return (count(link) - before) / (time.monotonic() - start)


def test_scenario_4_workers_that_join_make_it_faster(
    queue: Queue, workers: WorkerProcess, start_worker: StartWorker, link: Link, tmp_path: Path
) -> None:
    """Two slots, then six: within three samples the rate is 2.5 times as high; all count once."""
    n, over = 8_000, tmp_path / "over"
    loop = Background(queue.foreach, nap, n, itertools.repeat(over), combine=sum)
    try:
        wait_until(lambda: count(link) > 100)
        two = rate(link)
        start_worker("test", "--nworkers", "4")
        queue.wait_for_workers(6, timeout=90)
        six = 0.0
        for _ in range(3):
            six = max(six, rate(link))
            if six >= 2.5 * two:
                break
    finally:
        over.touch()  # what is left does not sleep
    assert loop.result(60) == sum(range(n))
    assert count(link) == n
    assert six >= 2.5 * two


def test_scenario_5_workers_that_vanish_lose_nothing(
    queue: Queue, start_worker: StartWorker, link: Link, tmp_path: Path
) -> None:
    """Four of six slots are killed with their workers, at random times: each result comes once."""
    n, over = 2_000, tmp_path / "over"
    words = ("test", "--nworkers", "2", "--alive-expiry", "2")
    _, *doomed = [start_worker(*words) for _ in range(3)]
    queue.wait_for_workers(6, timeout=90)
    loop = Background(queue.foreach, nap, n, itertools.repeat(over), inorder=False, ft_interval=1)
    try:
        wait_until(lambda: count(link) > 50)
        for worker in doomed:
            time.sleep(random.uniform(0.1, 0.8))
            os.kill(worker.pid, signal.SIGKILL)
        time.sleep(0.5)
    finally:
        over.touch()
    assert sorted(loop.result(60)) == list(range(n))
    assert len(queue.workers()) == 1


def half_sum(j: int) -> float:
    """Read one half of the matrix, and no other."""
    data: Any = redisq.get_redis().get(f"A{j}")
    return float(np.frombuffer(data).sum())


def test_scenario_9_a_job_does_not_grow_with_data_in_keys_of_ones_own(
    queue: Queue, workers: WorkerProcess, link: Link
) -> None:
    """Listing 8: the sums are right, and a loop sends the server a few thousand bytes."""
    queue.foreach(abs, 2)  # the first loop on a server sends it the scripts, 100 kB
    for size in (10, 1000):
        a = np.random.default_rng(size).normal(size=(size, size))
        halves = np.array_split(a, 2)
        for j, half in enumerate(halves):
            link.command("SET", f"A{j}", half.tobytes())
        before = received(link)
        assert queue.foreach(half_sum, 2) == [float(half.sum()) for half in halves]
        assert received(link) - before < 20_000


def received(link: Link) -> int:
    """Return the bytes that the server ever received."""
    lines = link.command("INFO", "stats").decode().splitlines()
    return int(dict(line.split(":", 1) for line in lines if ":" in line)["total_net_input_bytes"])


def test_scenario_21_a_second_client_removes_one_job_of_two(
    queue: Queue, workers: WorkerProcess, link: Link, tmp_path: Path
) -> None:
    """Whoever waits for it is told; a part of an id is nobody's; the other job is not touched."""
    gates = [tmp_path / f"gate {i}" for i in range(2)]
    logs = [tmp_path / f"log {i}" for i in range(2)]
    one, other = (
        queue.compute(dask.delayed(log_and_wait)(log, gate))
        for log, gate in zip(logs, gates, strict=True)
    )
    wait_until(lambda: all(pids(log) for log in logs))
    with Queue("test", link.url) as second:
        assert not second.remove_job(one.id[:8])
        assert second.remove_job(one.id, reason="it was the wrong one")
        with pytest.raises(redisq.JobCancelled, match="it was the wrong one"):
            one.result(60)
        states = {row["id"]: row["state"] for row in second.jobs()}
        assert states.pop(one.id, "cancelled") == "cancelled"
        assert states == {other.id: "running"}
    gates[1].touch()
    assert other.result(60) == pids(logs[1])[0]
    name = one.id
    del one
    gc.collect()

    def left() -> list[bytes]:
        return [key for key in link.command("KEYS", f"*{name}*") if b":tomb:" not in key]

    wait_until(lambda: left() == [])


def test_scenario_24_a_worker_on_two_queues(
    link: Link, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Both are served, the first one first, and it ends when both are removed.

    What one lease has in hand, and what it is given within a second of it, it does before it looks
    at the first queue again.
    """
    with Queue("a", link.url) as a, Queue("b", link.url) as b:
        worker = start_worker("a", "b", "--nworkers", "1")
        assert b.foreach(abs, [-1]) == [1]
        log, gate = tmp_path / "log", tmp_path / "gate"
        holding = b.compute(dask.delayed(log_and_wait)(log, gate))
        wait_until(lambda: pids(log))
        order = tmp_path / "order"
        loops = []
        for queue in (b, a):
            loops.append(Background(queue.foreach, note, [queue.name] * 3, [order] * 3))
            wait_until(lambda queue=queue: queue.stats()["ready"] == 3)  # type: ignore[misc]
        time.sleep(TURN)
        gate.touch()
        for loop in loops:
            loop.result()
        holding.result(60)
        assert order.read_text() == "aaabbb"
        a.remove()
        assert b.foreach(abs, [-2]) == [2]
        assert worker.process.poll() is None
        b.remove()
        assert worker.wait(5) == 0


def note(name: str, order: Path) -> None:
    """Write down whose task runs."""
    with order.open("a") as file:
        file.write(name)


def sixteen(i: int) -> np.ndarray[Any, Any]:
    """Return 16 MB."""
    return np.full(2**21, float(i))


@pytest.mark.slow_fault
def test_scenario_28_two_hundred_large_results(queue: Queue, workers: WorkerProcess) -> None:
    """200 of 16 MB go through, and are let go; test_misbehave has what is too large for a value."""
    total = queue.foreach(
        sixteen, 200, combine=lambda a, b: a + float(b[-1]), init=0.0, inorder=False
    )
    assert total == sum(range(200))


def test_scenario_30_jobs_and_tasks_are_told_whatever_their_names(
    link: Link, start_worker: StartWorker, tmp_path: Path
) -> None:
    """With user, host, process, start; what is finished vanishes; nobody goes through all keys."""
    name = "night_run.v2 *[a-z]? of Ann"
    with Queue(name, link.url) as queue:
        start_worker(name, "--nworkers", "1", "--name", "lab_3.x * y")
        queue.wait_for_workers(1, timeout=90)
        link.command("CONFIG", "RESETSTAT")
        log, gate = tmp_path / "log", tmp_path / "gate"
        future = queue.compute(
            dask.delayed(log_and_wait)(log, gate, dask_key_name="a_b.c * d"), detach=True
        )
        wait_until(lambda: pids(log))
        (job,) = queue.jobs()
        assert (job["id"], job["state"], job["user"]) == (future.id, "running", getpass.getuser())
        assert (job["host"], job["pid"]) == (socket.gethostname(), os.getpid())
        assert abs(job["created"] - time.time()) < 60
        (task,) = queue.tasks()
        assert (task["job"], task["key"], task["worker"]) == (future.id, "a_b.c * d", "lab_3.x * y")
        assert task["host"] == socket.gethostname()
        assert task["user"] == getpass.getuser()
        assert task["pid"] == queue.workers()[0]["pid"]
        assert job["created"] - 0.01 < task["since"] < time.time() + 1
        gate.touch()
        wait_until(lambda: queue.jobs()[0]["state"] == "done")
        wait_until(lambda: not queue.tasks(), timeout=1)
        future.forget()
        wait_until(lambda: not queue.jobs(), timeout=5)
        used = link.command("INFO", "commandstats").decode()
        assert "cmdstat_keys:" not in used
        assert "cmdstat_scan:" not in used
