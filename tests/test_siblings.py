"""After a job's first error nothing of it begins any more, nor of what its tasks compute."""

from __future__ import annotations

import time
from pathlib import Path

import dask
import pytest
from conftest import WorkerProcess, wait_until

from dask_redisq.queue import Queue


def note(log: Path, _: int) -> None:
    """Leave the time; take a moment."""
    with log.open("a") as file:
        file.write(f"{time.time()}\n")
    time.sleep(0.01)


def compute_many(url: str, log: Path) -> None:
    """Compute a job of many tasks, on the queue that this runs on."""
    with Queue("test", url) as queue:
        tasks = [dask.delayed(note)(log, i) for i in range(2000)]
        dask.compute(*tasks, scheduler=queue.get, chunk_size=1)


def fail_then(log: Path) -> None:
    """Raise once the other ones are under way."""
    wait_until(lambda: log.exists() and len(log.read_text().split()) > 5, 20)
    with log.with_name("failed").open("w") as file:
        file.write(str(time.time()))
    raise ValueError("the first error")


def test_what_siblings_compute_does_not_begin_either(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """No task of a nested job starts more than half a second after the error."""
    log = tmp_path / "log"
    nested = [dask.delayed(compute_many)(queue.url, log) for _ in range(2)]
    failing = dask.delayed(fail_then)(log)
    with pytest.raises(ValueError, match="the first error"):
        dask.compute(*nested, failing, scheduler=queue.get)
    wait_until(lambda: queue.jobs() == [])
    wait_until(lambda: queue.stats()["running"] == 0)
    failed = float((tmp_path / "failed").read_text())
    assert max(map(float, log.read_text().split())) < failed + 0.5
