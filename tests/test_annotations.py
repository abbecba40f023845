"""Annotations and keywords reach the tasks they are meant for: section 1.3 of Dask's contract."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from conftest import WorkerProcess

from dask_redisq.queue import Queue


def stumble(block: Any, log: Path) -> Any:
    """Raise the first time that it runs on each block."""
    mark = log.with_name(f"{log.name}-{int(np.sum(block))}")
    if not mark.exists():
        mark.touch()
        raise ValueError("the first time")
    return block


def where(_: Any = None) -> str:
    """Return the name of the worker, as its test gave it."""
    return os.environ["WHERE"]


def where_block(block: Any) -> Any:
    """Return a block of the name of the worker."""
    return np.full(block.shape, os.environ["WHERE"])


@pytest.fixture
def two(queue: Queue, start_worker: Callable[..., WorkerProcess]) -> Queue:
    """A queue with workers left and right, one slot each."""
    for name in ("left", "right"):
        start_worker("test", "--nworkers", "1", "--name", name, env={"WHERE": name})
    queue.wait_for_workers(2, timeout=20)
    return queue


def test_annotations_of_an_array_survive_its_fusion(two: Queue) -> None:
    """Dask fuses tasks over the borders of layers, and would lose them."""
    with dask.annotate(workers="right"):
        x = da.ones(40, chunks=2).map_blocks(where_block, dtype="U5")
    names = x.compute(scheduler=two.get)
    assert set(names) == {"right"}
    assert dask.config.get("optimization.fuse.active", None) is None


def test_retries_of_an_array_hold_for_its_tasks_alone(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """What is built outside of the annotation has none."""
    x = da.arange(8, chunks=4)
    with dask.annotate(retries=1):
        y = x.map_blocks(stumble, tmp_path / "y", dtype=x.dtype)
    assert y.sum().compute(scheduler=queue.get) == 28
    z = x.map_blocks(stumble, tmp_path / "z", dtype=x.dtype)
    with pytest.raises(ValueError, match="the first time"):
        z.sum().compute(scheduler=queue.get)


def test_what_is_annotated_around_compute_holds_for_the_computation(two: Queue) -> None:
    """Also where a callable says it by key."""
    tasks = [dask.delayed(where)(i, dask_key_name=f"t{i}") for i in range(12)]
    with dask.annotate(workers="left"):
        assert set(dask.compute(*tasks, scheduler=two.get)) == {"left"}
    with dask.annotate(workers=lambda key: "left" if key < "t3" else "right"):
        got = dask.compute(*tasks, scheduler=two.get)
    assert got == tuple("left" if f"t{i}" < "t3" else "right" for i in range(12))


def test_the_graph_goes_before_a_keyword_and_that_before_the_ambient(two: Queue) -> None:
    """In distributed's order."""
    with dask.annotate(workers="left"):
        built = dask.delayed(where)(1)
    plain = dask.delayed(where)(2)
    with dask.annotate(workers="left"):
        got = dask.compute(built, plain, scheduler=two.get, workers="right")
    assert got == ("left", "right")


def test_a_detached_job_takes_what_is_annotated_around_it(two: Queue) -> None:
    """As any other."""
    with dask.annotate(workers="right"):
        future = two.compute([dask.delayed(where)(i) for i in range(8)], detach=True)
    assert set(future.result(20)) == {"right"}
