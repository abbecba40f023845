"""How many tasks a lease runs where a chunk size says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import WorkerProcess

import dask_redisq as redisq
from dask_redisq.queue import Queue


def finished(url: str, *_: Any) -> int:
    """Return how many tasks of the queue were reported before this one ran."""
    with redisq.Queue("test", url) as queue:
        return queue.stats()["finished"]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_no_lease_runs_more_tasks_than_the_chunk_size(
    queue: Queue, start_worker: Callable[..., WorkerProcess], k: int
) -> None:
    """What follows from a leased task counts, too: a slot reports after `k` tasks."""
    start_worker("test", "--nworkers", "1", "--name", "one")
    queue.wait_for_workers(1, timeout=20)
    dsk: dict[Any, Any] = {("a", i): (finished, queue.url) for i in range(20)}
    dsk |= {("b", i): (finished, queue.url, ("a", i)) for i in range(20)}
    seen = queue.get(dsk, list(dsk), chunk_size=k)
    assert max(seen.count(reported) for reported in seen) <= k
