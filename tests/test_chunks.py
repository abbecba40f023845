"""Which tasks a lease runs, and how many, where a chunk size says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import WorkerProcess
from dask.order import order

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
    queue.wait_for_workers(1, timeout=90)
    dsk: dict[Any, Any] = {("a", i): (finished, queue.url) for i in range(20)}
    dsk |= {("b", i): (finished, queue.url, ("a", i)) for i in range(20)}
    seen = queue.get(dsk, list(dsk), chunk_size=k)
    assert max(seen.count(reported) for reported in seen) <= k


def note(log: Path, word: str, *_: Any) -> None:
    """Append a line."""
    with log.open("a") as file:
        file.write(f"{word}\n")


def test_tasks_run_in_the_order_of_dask(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """On one slot, task by task; a graph of up to 64 tasks is numbered by `dask.order`."""
    log = tmp_path / "log"
    # What a task writes is not its key: that would be an input of it.
    dsk: dict[Any, Any] = {f"a{i}": (note, log, f"A{i}") for i in range(6)}
    dsk |= {f"b{i}": (note, log, f"B{i}", f"a{i}", f"a{(i + 3) % 6}") for i in range(6)}
    dsk["end"] = (note, log, "END", *[f"b{i}" for i in range(6)])
    start_worker("test", "--nworkers", "1")
    queue.wait_for_workers(1, timeout=90)
    queue.get(dsk, "end", chunk_size=1)
    rank = order(dsk)
    assert log.read_text().lower().split() == sorted(dsk, key=rank.__getitem__)


# Results that can be read once.


def numbers(n: int) -> Iterator[int]:
    """Return an iterator."""
    return iter(range(n))


def read_half_once(some: Iterable[int], log: Path) -> int:
    """Read two and raise, the first time; later read all."""
    if not log.exists():
        log.touch()
        for _, _ in zip(range(2), some, strict=False):
            pass
        raise ValueError("half-way")
    return sum(some)


@pytest.mark.parametrize("chunk_size", [1, None])
def test_every_user_of_an_iterator_sees_all_of_it(
    queue: Queue, start_worker: Callable[..., WorkerProcess], chunk_size: int | None
) -> None:
    """Its slot pickled it, which reads it to its end, and kept it for what runs there."""
    start_worker("test", "--nworkers", "1")
    dsk: dict[Any, Any] = {"a": (numbers, 5), "c": (list, "a")}
    dsk |= {("b", i): (sum, "a") for i in range(4)}
    wanted = [*[("b", i) for i in range(4)], "c"]
    got = queue.get(dsk, wanted, chunk_size=chunk_size)
    assert got == (10, 10, 10, 10, [0, 1, 2, 3, 4])


def test_an_iterator_that_a_failed_task_has_begun_is_whole_for_its_next_try(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Maker and user ran in one lease: the maker's result counts, and is not what is left of it."""
    start_worker("test", "--nworkers", "1")
    dsk = {"a": (numbers, 5), "b": (read_half_once, "a", tmp_path / "log")}
    assert queue.get(dsk, "b", retries=1) == 10
