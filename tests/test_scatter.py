"""Data that stays where it is: `Queue.scatter`, and what reads it."""

from __future__ import annotations

import functools
import itertools
import operator
import random
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from conftest import WorkerProcess, wait_until

import dask_redisq as redisq
from dask_redisq.link import Link
from dask_redisq.queue import Queue
from dask_redisq.server import PrivateServer


def sent_by(link: Link, what: bytes = b"total_net_output_bytes") -> int:
    """Return the bytes that the server ever sent."""
    stats = dict(
        line.split(b":", 1) for line in link.command("INFO", "stats").split() if b":" in line
    )
    return int(stats[what])


def got_by(link: Link) -> int:
    """Return the bytes that the server ever got."""
    return sent_by(link, b"total_net_input_bytes")


def shifted_sum(i: int, table: np.ndarray[Any, Any]) -> float:
    """Return a number that needs both."""
    return float(table.sum()) + i


def test_the_second_loop_over_scattered_data_moves_none_of_it(
    queue: Queue, workers: WorkerProcess, link: Link
) -> None:
    """Each slot reads it once at most; then not a byte of 8 MB."""
    table = queue.scatter(np.ones(2**20))
    expected = [2.0**20 + i for i in range(40)]
    for _ in range(3):  # until both slots had a task
        assert queue.foreach(shifted_sum, 40, itertools.repeat(table), chunk_size=1) == expected
    before = sent_by(link)
    assert queue.foreach(shifted_sum, 40, itertools.repeat(table), chunk_size=1) == expected
    assert sent_by(link) - before < 2**18


@pytest.mark.parametrize("kind", ["array", "list", "frame"])
def test_large_data_goes_to_the_server_once(
    queue: Queue, workers: WorkerProcess, link: Link, kind: str
) -> None:
    """Not a second time, as the value of a task that a slot made."""
    thing: Any = np.arange(2**20, dtype=float)
    if kind == "list":
        thing = thing.tolist()
    elif kind == "frame":
        thing = pd.DataFrame({"x": thing})
    before = got_by(link)
    data = queue.scatter(thing)
    assert queue.foreach(last_of, 8, itertools.repeat(data), chunk_size=1) == [2.0**20 - 1] * 8
    assert 2**23 < got_by(link) - before < 1.3 * 2**23
    found = data.compute()
    assert type(found) is type(thing)
    assert last_of(0, found) == 2.0**20 - 1
    if kind == "array":
        found[0] = 1  # as writable as an array that a task returns


def last_of(_: int, table: Any) -> float:
    """Return the last number of some."""
    return float(np.asarray(table).ravel()[-1])


def test_large_data_that_the_server_lost_is_an_error_that_says_so(
    queue: Queue, workers: WorkerProcess, link: Link
) -> None:
    """Nobody has it any more: neither the reader nor a loop waits for it for ever."""
    data = queue.scatter(np.ones(2**20))
    assert data.compute().sum() == 2**20
    (row,) = queue.jobs()
    pattern = f"redisq:{{test}}:job:{row['id']}:const:*"
    (name,) = link.command("KEYS", pattern)
    link.command("DEL", name)
    with pytest.raises(redisq.RedisqError, match="gone from the server"):
        data.compute()
    with pytest.raises(redisq.RedisqError, match="gone from the server"):
        queue.foreach(shifted_sum, 2, itertools.repeat(data))


def test_to_look_how_large_data_is_draws_no_random_number(
    queue: Queue, workers: WorkerProcess
) -> None:
    """A program that is seeded goes on with its own: Dask looks at ten random items of a list."""
    states = random.getstate(), str(np.random.get_state())  # noqa: NPY002
    data = queue.scatter(list(range(50_000)))
    objects = queue.scatter(np.array(["a", 1] * 50_000, dtype=object))
    assert queue.foreach(len, [data, objects, list(range(100))]) == [50_000, 100_000, 100]
    assert (random.getstate(), str(np.random.get_state())) == states  # noqa: NPY002


def test_scattered_data_is_an_input_of_dask_graphs(queue: Queue, workers: WorkerProcess) -> None:
    """Of delayed calls, also inside of containers, and next to collections."""
    data = queue.scatter({"x": [1, 2, (sum, [3])]})
    size = dask.delayed(lambda table: len(table["x"]))(data)
    inside = dask.delayed(lambda box: box["here"]["x"][0])({"here": data})
    x = da.ones(10, chunks=5).sum()
    assert dask.compute(size, inside, x, scheduler=queue.get) == (3, 1, 10)
    assert data.compute(scheduler=queue.get) == {"x": [1, 2, (sum, [3])]}


def test_scattered_data_is_freed_with_its_last_reference(
    queue: Queue, workers: WorkerProcess
) -> None:
    """The job that keeps it goes."""
    data = queue.scatter([1, 2, 3])
    assert queue.foreach(len, itertools.repeat(data, 1)) == [3]
    assert len(queue.jobs()) == 1
    del data
    wait_until(lambda: queue.jobs() == [])


def test_a_delayed_value_that_is_nowhere_is_no_argument_of_a_loop(
    queue: Queue, workers: WorkerProcess
) -> None:
    """It is to be persisted, or scattered."""
    with pytest.raises(TypeError, match="persisted first, or scattered"):
        queue.foreach(len, [dask.delayed(list)()])
    with dask.config.set(scheduler=queue.get):
        kept = dask.delayed(list)("abc").persist()
    assert queue.foreach(len, [kept]) == [3]


def test_scattered_data_gives_its_value(queue: Queue, workers: WorkerProcess) -> None:
    """Whatever the scheduler: those of Dask know nothing of where it is."""
    data = queue.scatter([1, 2, 3])
    assert data.compute() == [1, 2, 3]
    assert data.compute(scheduler="sync") == [1, 2, 3]


def test_scattered_data_inside_of_something_says_how_it_is_passed(
    queue: Queue, workers: WorkerProcess
) -> None:
    """Of a closure, a tuple, a dict, a partial, an exported name."""
    data: Any = queue.scatter([1, 2, 3])
    told = r"argument of its own, foreach\(f, items, itertools.repeat\(ref\)\)"
    cases: list[tuple[Any, Any]] = [
        (lambda i: data[i], range(3)),
        (len, [(data, 1)]),
        (len, [{"a": data}]),
        (functools.partial(operator.getitem, data), range(3)),
    ]
    for fn, items in cases:
        with pytest.raises(redisq.TaskNotSerializable, match=told):
            queue.foreach(fn, items)
    with pytest.raises(redisq.TaskNotSerializable, match=told):
        queue.foreach(lambda i: TABLE[i], 3, export={"TABLE": data})


TABLE: list[int] = []


def test_scattered_data_of_another_queue_says_where_it_is(
    queue: Queue, workers: WorkerProcess
) -> None:
    """It is not lost, and need not be persisted again; nobody waits for workers."""
    data = queue.scatter([1, 2, 3])
    told = "is on queue 'test', and workers of queue 'other' cannot read it"
    with redisq.Queue("other", queue.url) as other:
        with pytest.raises(redisq.RedisqError, match=told):
            other.foreach(len, [data])
        with pytest.raises(redisq.RedisqError, match=told):
            dask.delayed(len)(data).compute(scheduler=other.get)
        with redisq.Executor(other) as executor, pytest.raises(redisq.RedisqError, match=told):
            executor.submit(len, data).result(60)
        assert other.jobs() == []


def test_scattered_data_of_another_server_says_where_it_is(
    queue: Queue, workers: WorkerProcess, only_server: PrivateServer
) -> None:
    """There may be a queue of the same name."""
    data = queue.scatter([1, 2, 3])
    with (
        redisq.Queue("test", only_server.url) as other,
        pytest.raises(redisq.RedisqError, match=f"is on queue 'test' on {queue.url}, and workers"),
    ):
        other.foreach(len, [data])
