"""The scheduler as a Dask user meets it: every collection, every way to choose it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from operator import add
from pathlib import Path
from threading import Thread
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from conftest import WorkerProcess
from dask._task_spec import Alias, DataNode, List, Task, TaskRef
from dask.array.core import concatenate3
from dask.bag.core import reify
from dask.dot import _to_cytoscape_json
from dask.utils_test import inc

import dask_redisq as redisq
from dask_redisq.link import Link
from dask_redisq.queue import Queue


@pytest.fixture(scope="module")
def cluster() -> Iterator[redisq.LocalCluster]:
    """A server and two slots for the module."""
    with redisq.LocalCluster(n_workers=2, queue="test") as running:
        yield running


@pytest.fixture
def queue(cluster: redisq.LocalCluster) -> Queue:
    """The module's queue."""
    return Queue("test", cluster.url)


@pytest.fixture
def link(cluster: redisq.LocalCluster) -> Iterator[Link]:
    """A connection to the module's server."""
    opened = Link(cluster.url)
    yield opened
    opened.close()


def test_delayed_values_come_back(queue: Queue) -> None:
    """A graph of delayed calls is computed on the workers."""
    total = dask.delayed(sum)([dask.delayed(inc)(i) for i in range(20)])
    assert total.compute(scheduler=queue.get) == sum(range(1, 21))


def test_an_array_reduction_equals_the_one_in_process(queue: Queue) -> None:
    """Blocks travel, and the reduction is the same to the bit."""
    x = da.random.default_rng(1).normal(size=(600, 600), chunks=(100, 100))
    y = (x + x.T).sum(axis=0)
    assert np.array_equal(y.compute(scheduler=queue.get), y.compute(scheduler="sync"))


def test_a_large_array_comes_back_whole(queue: Queue) -> None:
    """Large blocks go by keys of their own."""
    x = da.arange(1_000_000, chunks=100_000) * 2
    assert np.array_equal(x.compute(scheduler=queue.get), np.arange(1_000_000) * 2)


def test_an_array_is_put_together_by_the_client(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers finish a task per block and no other; the concatenation is a call in here."""
    joined: list[int] = []

    def join(blocks: list[np.ndarray]) -> Any:
        joined.append(len(blocks))
        return concatenate3(blocks)

    monkeypatch.setattr("dask.array.core.concatenate3", join)
    x = da.arange(1000, chunks=100) * 2
    before = queue.stats()["finished"]
    assert np.array_equal(x.compute(scheduler=queue.get), np.arange(1000) * 2)
    assert queue.stats()["finished"] == before + x.npartitions
    assert joined == [x.npartitions]


def test_a_bag_of_words_is_counted(queue: Queue) -> None:
    """Iterators between tasks are read once, and the counts are right."""
    bag = db.from_sequence(["a b a", "c b a"] * 50, npartitions=7)
    words = bag.str.split().flatten().frequencies()
    assert dict(words.compute(scheduler=queue.get)) == {"a": 150, "b": 100, "c": 50}


def test_a_groupby_of_a_dataframe_is_right(queue: Queue) -> None:
    """Frames travel with their index and their types."""
    frame = pd.DataFrame({"k": [i % 7 for i in range(1000)], "v": range(1000)})
    grouped = dd.from_pandas(frame, npartitions=8).groupby("k").v.agg(["sum", "mean"])
    result = grouped.compute(scheduler=queue.get).sort_index()
    pd.testing.assert_frame_equal(result, frame.groupby("k").v.agg(["sum", "mean"]))


def test_a_bare_shuffle_keeps_every_row(queue: Queue) -> None:
    """Dask's default, a shuffle through the local disk, is rewritten to tasks."""
    frame = pd.DataFrame({"k": np.arange(1000) % 13, "v": range(1000)})
    shuffled = dd.from_pandas(frame, npartitions=5).shuffle("k")
    with dask.config.set({"dataframe.shuffle.method": "disk"}):
        result = shuffled.compute(scheduler=queue.get)
    assert sorted(result.v) == list(range(1000))


def test_a_groupby_of_a_bag_through_disk_is_refused(queue: Queue) -> None:
    """It would lose rows on several hosts; the error says what to do."""
    grouped = db.range(20, npartitions=2).groupby(lambda x: x % 2, shuffle="disk")
    with pytest.raises(redisq.RedisqError, match="tasks"):
        grouped.compute(scheduler=queue.get)


def test_collections_of_several_kinds_compute_together(queue: Queue) -> None:
    """One call, one job."""
    x, y = da.ones(10, chunks=5).sum(), dask.delayed(inc)(1)
    assert dask.compute(x, y, scheduler=queue.get) == (10, 2)


def test_the_name_redisq_and_the_settings_choose_the_scheduler(queue: Queue) -> None:
    """``scheduler="redisq"`` and ``dask.config.set`` lead to the queue of the settings."""
    settings = {"redisq.url": queue.url, "redisq.queue": "test"}
    with dask.config.set(settings):
        assert dask.delayed(inc)(1).compute(scheduler="redisq") == 2
        with dask.config.set(scheduler=redisq.get):
            assert dask.delayed(inc)(2).compute() == 3
        with redisq.enable():
            assert dask.config.get("dataframe.shuffle.method") == "tasks"
            assert dask.delayed(inc)(3).compute() == 4
    with redisq.enable(queue="test", url=queue.url):
        assert dask.delayed(inc)(4).compute() == 5


def test_the_same_queue_object_serves_the_same_place(queue: Queue) -> None:
    """Default queues are cached by server and name."""
    from dask_redisq.scheduler import default_queue

    assert default_queue("test", queue.url) is default_queue("test", queue.url)


@pytest.mark.parametrize(
    ("dsk", "keys", "expected"),
    [
        ({"x": 1, "y": (inc, "x")}, ["y", ["x", "y"]], (2, (1, 2))),
        ({0: (inc, 1), "": (inc, 0), ("a", None): (add, 0, "")}, [0, "", ("a", None)], (2, 3, 5)),
        ({"x": (inc, 1), "y": "x", "z": "y"}, ["z", "x"], (2, 2)),
        ({"x": None, "y": (inc, 1)}, ["x", "y", "y"], (None, 2, 2)),
        ({"x": (inc, 1), "l": ["x", (inc, "x")]}, "l", [2, 3]),
        ({"x": (dict, [["a", 1]]), "y": (len, "x")}, "y", 1),
        ({"x": (lambda: None,), "y": (lambda v: v is None, "x")}, ["x", "y"], (None, True)),
        ({}, [], ()),
    ],
)
def test_odd_graphs_give_what_dask_gives(queue: Queue, dsk: Any, keys: Any, expected: Any) -> None:
    """Nested keys, odd keys, aliases, constants, values that are false."""
    assert queue.get(dsk, keys) == expected


def test_task_spec_nodes_and_legacy_tuples_mix(queue: Queue) -> None:
    """All node types of Dask, in one graph."""
    dsk = {
        "data": DataNode("data", 5),
        "alias": Alias("alias", "data"),
        "task": Task("task", add, TaskRef("alias"), TaskRef("legacy")),
        "legacy": (inc, "data"),
        "list": List(TaskRef("task"), TaskRef("data"), 3),
        "nested": Task("nested", sum, List(TaskRef("task"), Task(None, inc, TaskRef("legacy")))),
        "named": Task("named", dict, a=TaskRef("task"), b=List(TaskRef("data"))),
    }
    expected = ([11, 5, 3], 18, {"a": 11, "b": [5]}, 5)
    assert queue.get(dsk, ["list", "nested", "named", "alias"]) == expected


def test_exceptions_are_fine_as_values(queue: Queue) -> None:
    """An exception that is returned is a value."""
    assert isinstance(queue.get({"x": (ValueError, "fine")}, "x"), ValueError)


def test_only_what_is_needed_runs(queue: Queue, tmp_path: Path) -> None:
    """The graph is culled to the keys."""
    dsk = {"a": (inc, 1), "b": (Path.touch, tmp_path / "ran")}
    assert queue.get(dsk, "a") == 2
    assert not (tmp_path / "ran").exists()


def test_functions_of_main_travel_by_value(queue: Queue) -> None:
    """What pickle would send by the name ``__main__`` goes by value."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("def double(x):\n    return 2 * x\n", space)  # noqa: S102 - a stand-in for a script
    assert queue.get({"x": (space["double"], 4)}, "x") == 8


def test_many_threads_compute_at_once(queue: Queue) -> None:
    """Each call has a connection of its own."""
    results: dict[int, Any] = {}

    def compute(i: int) -> None:
        results[i] = queue.get({"x": (inc, i), "y": (inc, "x")}, "y")

    threads = [Thread(target=compute, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: i + 2 for i in range(8)}


def test_nothing_of_a_job_stays_behind(queue: Queue, link: Link) -> None:
    """After an answer no key of its job is left, and each key that is left has an expiry."""
    x = da.ones((500, 500), chunks=250)
    x.sum().compute(scheduler=queue.get)
    names = link.command("KEYS", "*")
    assert names
    assert not [name for name in names if b":job:" in name]
    assert all(name.startswith(b"redisq:{test}:") for name in names)
    assert not [name for name in names if link.command("PTTL", name) < 0]


def test_a_large_constant_is_read_once_per_slot(queue: Queue, link: Link) -> None:
    """1,000 tasks, an array in an argument and one in a closure: two reads per slot at most."""
    array, hidden = np.arange(100_000), np.arange(50_000)

    def use(i: int, data: np.ndarray) -> int:
        return int(data[i] + hidden[i])

    link.command("CONFIG", "RESETSTAT")
    dsk = {("x", i): (use, i, "data") for i in range(1000)} | {"data": array}
    result = queue.get(dsk, [("x", i) for i in range(1000)])
    assert result == tuple(2 * i for i in range(1000))
    stats = link.command("INFO", "commandstats").decode()
    (reads,) = [line for line in stats.splitlines() if line.startswith("cmdstat_get:")]
    assert int(reads.split("calls=")[1].split(",")[0]) <= 2 * 2


def test_a_chunk_size_bounds_every_lease(queue: Queue) -> None:
    """``chunk_size=1``: a chain of tasks takes a lease for each, continuation included."""
    dsk: dict[Any, Any] = {("c", 0): (inc, 0)}
    dsk |= {("c", i): (inc, ("c", i - 1)) for i in range(1, 20)}
    assert queue.get(dsk, ("c", 19), chunk_size=1) == 20
    assert queue.get(dsk, ("c", 19), chunksize=-1) == 20


def test_stats_count_what_was_finished(queue: Queue) -> None:
    """``finished`` grows by each task; workers are rows with their slots."""
    before = queue.stats()["finished"]
    queue.get({("x", i): (inc, i) for i in range(50)}, [("x", i) for i in range(50)])
    stats = queue.stats()
    assert stats["finished"] == before + 50
    assert (stats["waiting"], stats["ready"], stats["running"]) == (0, 0, 0)
    assert (stats["workers"], stats["slots"]) == (1, 2)
    (row,) = queue.workers()
    assert len(row["slots"]) == 2


def test_a_restricted_task_runs_where_its_tag_is(queue: Queue) -> None:
    """``workers=`` takes a tag; only a worker that carries it runs the task."""
    with closing(redisq.start_local_workers(1, "test", queue.url, tag="gpu")) as worker:
        queue.wait_for_workers(3, timeout=90)
        dsk = {("p", i): (os.getppid,) for i in range(20)}
        assert set(queue.get(dsk, list(dsk), workers="gpu")) == {worker.pid}


def test_a_slots_environment_is_that_of_a_distributed_worker(queue: Queue) -> None:
    """The same hashes everywhere, one thread per process, and the client's directory."""
    names = ["PYTHONHASHSEED", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"]
    dsk: dict[Any, Any] = {i: (os.getenv, name) for i, name in enumerate(names)}
    dsk["cwd"] = (os.getcwd,)
    assert queue.get(dsk, [*range(4), "cwd"]) == ("6640", "1", "1", "1", os.getcwd())  # noqa: PTH109


def test_a_task_with_many_edges_stalls_nobody(queue: Queue, link: Link) -> None:
    """A fan-out to 6,000 tasks and the fan-in of all of them: no script takes 100 ms; hole H62."""
    link.command("CONFIG", "SET", "slowlog-log-slower-than", "100000")
    link.command("SLOWLOG", "RESET")
    n = 6000
    dsk: dict[Any, Any] = {"root": (inc, 0)}
    dsk |= {("x", i): (add, "root", i) for i in range(n)}
    dsk["sum"] = (sum, [("x", i) for i in range(n)])
    assert queue.get(dsk, ["sum", ("x", 5)]) == (n + sum(range(n)), 6)
    assert link.command("SLOWLOG", "LEN") == 0


def test_a_chain_of_ten_thousand_tasks_is_no_depth(queue: Queue, workers: WorkerProcess) -> None:
    """Nothing recurses."""
    dsk: dict[Any, Any] = {("x", 0): 0}
    dsk |= {("x", i): (inc, ("x", i - 1)) for i in range(1, 10_001)}
    assert queue.get(dsk, ("x", 10_000)) == 10_000


def touch_and_inc(x: Any, ran: Path) -> Any:
    """Leave a file that tells of the call, and add one."""
    ran.touch()
    return x + 1


def collection(kind: str, ran: Path) -> Any:
    """Make a collection of such calls, none of which Dask makes while it builds."""
    if kind == "array":
        return da.ones(3, chunks=1).map_blocks(touch_and_inc, ran, meta=np.ones(0))
    if kind == "bag":
        return db.from_sequence([1, 1, 1], npartitions=3).map(touch_and_inc, ran)
    if kind == "dataframe":
        frame = dd.from_pandas(pd.DataFrame({"v": [1, 1, 1]}), npartitions=3)
        return frame.map_partitions(touch_and_inc, ran, meta={"v": int})
    return dask.delayed(np.repeat)(dask.delayed(touch_and_inc)(1, ran), 3)


@pytest.mark.parametrize("kind", ["array", "bag", "dataframe", "delayed"])
def test_optimizing_and_drawing_compute_nothing(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """No job is made, and no task runs here or there, until a result is asked for."""
    # Dask draws with a package that is not installed: all but its last step is done here.
    monkeypatch.setattr("dask.dot.cytoscape_graph", lambda dsk, **_: _to_cytoscape_json(dsk))
    ran, before = tmp_path / "ran", queue.stats()["finished"]
    with redisq.enable(queue.name, queue.url):
        x = collection(kind, ran)
        dask.optimize(x)
        for optimize_graph in (False, True):
            drawn = dask.visualize(x, engine="cytoscape", optimize_graph=optimize_graph)
            assert any("touch_and_inc" in node["data"]["label"] for node in drawn["nodes"])
        assert queue.jobs() == []
        assert queue.stats()["finished"] == before
        assert not ran.exists()
        assert np.ravel(x.compute()).tolist() == [2, 2, 2]
    assert ran.exists()
    assert queue.stats()["finished"] > before


def reify_and_note(seq: Any) -> Any:
    """Do what Dask's `reify` does, and leave a line in the file that the environment names."""
    with Path(os.environ["REIFIED"]).open("a") as file:
        file.write("1\n")
    return reify(seq)


def test_nested_iterators_of_a_bag_are_read_as_often_as_dask_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask's test_to_delayed_optimize_graph, which counts in its own process, with a file."""
    log = tmp_path / "log"
    monkeypatch.setenv("REIFIED", str(log))
    monkeypatch.setattr("dask.bag.core.reify", reify_and_note)
    with redisq.LocalCluster(n_workers=1) as cluster:
        bag = db.from_sequence([1, 2, 3, 4, 5, 6], npartitions=1).map(inc).map(inc).map(inc)
        for optimize, reads in ((True, 1), (False, 3)):
            log.write_text("")
            (part,) = bag.to_delayed(optimize_graph=optimize)
            assert part.compute(scheduler=cluster.get) == [4, 5, 6, 7, 8, 9]
            assert len(log.read_text().split()) == reads
