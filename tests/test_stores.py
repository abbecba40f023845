"""Where tasks write: files that all workers see, under shared locks; no memory of the client."""

from __future__ import annotations

import gc
import importlib
import io
import os
import pickle
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from conftest import WorkerProcess, wait_until
from dask.base import collections_to_expr
from dask.core import flatten
from dask.graph_manipulation import checkpoint
from dask.utils import SerializableLock

import dask_redisq as redisq
from dask_redisq.dask_input import plain_graph
from dask_redisq.graph import plan_graph
from dask_redisq.plan import Plan
from dask_redisq.queue import Queue
from dask_redisq.unshared import share_or_refuse

xr = pytest.importorskip("xarray")
zarr = pytest.importorskip("zarr")


def grid() -> Any:
    """Return an array of 16 chunks."""
    return da.arange(1600, chunks=100).reshape(40, 40).rechunk((10, 10)).astype("f8")


def expected() -> Any:
    """Return what is in it."""
    return np.arange(1600.0).reshape(40, 40)


# Arrays and frames.


@pytest.mark.parametrize("lock", [True, False])
@pytest.mark.parametrize("source", ["made", "given"])
def test_storing_into_an_array_of_the_client_is_refused(
    queue: Queue, *, lock: bool, source: str
) -> None:
    """A worker would write into its own copy; on Dask's processes nothing says so."""
    x = grid() if source == "made" else da.from_array(expected(), chunks=10) + 1
    target = np.zeros((40, 40))
    with pytest.raises(redisq.RedisqError, match="a NumPy array, which is in this process"):
        da.store(x, target, lock=lock, scheduler=queue.get)
    assert not target.any()
    two = da.store([x, x], [target, target.copy()], compute=False, lock=lock)
    with pytest.raises(redisq.RedisqError, match="a NumPy array"):
        dask.compute(two, scheduler=queue.get)


def test_storing_into_copies_can_be_allowed(queue: Queue, workers: WorkerProcess) -> None:
    """They change, on the workers, and the target does not."""
    target = np.zeros((40, 40))
    with dask.config.set({"redisq.allow-memory-store": True}):
        da.store(grid(), target, lock=False, scheduler=queue.get)
    assert not target.any()


def test_storing_into_zarr_in_memory_is_refused(queue: Queue) -> None:
    """As for an array."""
    target = zarr.create_array(
        store=zarr.storage.MemoryStore(), shape=(40, 40), chunks=(10, 10), dtype="f8"
    )
    with pytest.raises(redisq.RedisqError, match="a zarr array in memory"):
        da.store(grid(), target, scheduler=queue.get)


@pytest.mark.parametrize("kind", ["url", "mapper", "wrapped"])
def test_storing_into_a_file_system_in_memory_is_refused(queue: Queue, kind: str) -> None:
    """Each process has a `memory://` of its own; so does what wraps one."""
    fsspec = pytest.importorskip("fsspec")
    store: Any = f"memory://{kind}/x.zarr"
    if kind == "mapper":
        store = fsspec.get_mapper(store)
    elif kind == "wrapped":
        store = zarr.storage.LoggingStore(zarr.storage.MemoryStore(), log_level="ERROR")
    target = zarr.create_array(
        store=store, shape=(40, 40), chunks=(10, 10), dtype="f8", overwrite=True
    )
    with pytest.raises(redisq.RedisqError, match="a zarr array in memory"):
        da.store(grid(), target, scheduler=queue.get)


def test_a_store_whose_name_was_lost_in_fusion_is_found(queue: Queue) -> None:
    """What reads the stored blocks is one task with what stores them, and has its own name."""
    target = np.zeros((40, 40))
    stored: Any = da.store(grid(), target, compute=False, return_stored=True)
    with pytest.raises(redisq.RedisqError, match="a NumPy array"):
        (stored + 1).compute(scheduler=queue.get)


@pytest.mark.parametrize("wrapped", ["delayed", "list", "checkpoint", "target", "loaded", "sum"])
def test_a_store_into_memory_is_refused_as_an_argument_of_a_task(
    queue: Queue, wrapped: str
) -> None:
    """Dask puts each task of such an argument into another one; with one chunk they are one."""
    out = np.zeros((40, 40))
    target = dask.delayed(out) if wrapped == "target" else out
    words: Any = {"compute": False, "return_stored": wrapped in {"loaded", "sum"}}
    x = da.ones((40, 40), chunks=40 if wrapped == "sum" else 10)
    stored: Any = da.store(x, target, **words)
    if wrapped == "sum":
        stored = stored.sum()
    fn = dask.delayed(lambda stored: 1)
    made = checkpoint(fn(stored)) if wrapped == "checkpoint" else fn(stored)
    made = fn([stored, 1]) if wrapped == "list" else made
    with pytest.raises(redisq.RedisqError, match="a NumPy array, which is in this process"):
        made.compute(scheduler=queue.get)


def test_zarr_in_memory_is_refused_as_an_argument_of_a_task(queue: Queue) -> None:
    """That is how xarray does it by itself."""
    target = zarr.create_array(
        store=zarr.storage.MemoryStore(), shape=(40, 40), chunks=(10, 10), dtype="f8"
    )
    with redisq.enable(queue):
        written = dask.delayed(lambda x: 1)(grid().to_zarr(target, compute=False))
        later = dataset().to_zarr(zarr.storage.MemoryStore(), compute=False, zarr_format=2)
        for made in (written, later):
            with pytest.raises(redisq.RedisqError, match="a zarr array in memory"):
                made.compute()


def test_storing_into_a_zip_file_is_refused(queue: Queue, tmp_path: Path) -> None:
    """One process writes its list of contents, as it closes it: what others wrote is not there."""
    store = zarr.storage.ZipStore(tmp_path / "x.zip", mode="w")
    target = zarr.create_array(store=store, shape=(40, 40), chunks=(10, 10), dtype="f8")
    with pytest.raises(redisq.RedisqError, match=r"in a zip file, .* Store into a directory"):
        da.store(grid(), target, scheduler=queue.get)
    store.close()


def test_storing_what_is_in_memory_is_no_store_into_it(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """The source may be an array of the client; the target is a file."""
    target = zarr.create_array(
        store=str(tmp_path / "x.zarr"), shape=(40, 40), chunks=(10, 10), dtype="f8"
    )
    da.store(da.from_array(expected(), chunks=10), target, lock=False, scheduler=queue.get)
    assert np.array_equal(target[:], expected())


def test_to_zarr_and_back(queue: Queue, workers: WorkerProcess, tmp_path: Path) -> None:
    """Each chunk by the slot that made it."""
    with dask.config.set(scheduler=queue.get):
        grid().to_zarr(str(tmp_path / "x.zarr"))
        assert np.array_equal(da.from_zarr(str(tmp_path / "x.zarr")).compute(), expected())


def test_stores_of_unlike_chunks_take_the_lock_of_the_queue(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Two tasks write into one chunk of the file: without a lock one would undo the other."""
    target = zarr.create_array(
        store=str(tmp_path / "x.zarr"), shape=(40, 40), chunks=(40, 40), dtype="f8"
    )
    lock: Any = redisq.Lock("target", queue)
    da.store(grid(), target, lock=lock, scheduler=queue.get, chunk_size=1)
    assert np.array_equal(target[:], expected())


@pytest.mark.parametrize("kind", ["DataArray", "Variable", "opened"])
def test_storing_into_an_array_of_xarray_is_refused(
    queue: Queue, tmp_path: Path, kind: str
) -> None:
    """It is in memory; what is assigned to one that was read from a file never reaches the file."""
    target = xr.DataArray(np.zeros((40, 40)), dims=("y", "x"))
    if kind == "Variable":
        target = target.variable
    elif kind == "opened":
        target.to_dataset(name="t").to_zarr(tmp_path / "x.zarr", zarr_format=2)
        target = xr.open_zarr(tmp_path / "x.zarr", chunks=None).t
    with pytest.raises(redisq.RedisqError, match=f"xarray's {type(target).__name__}, which is in"):
        da.store(grid(), target, scheduler=queue.get)
    assert not np.asarray(target).any()


class Tensor:
    """Has an address, as arrays of other libraries have."""

    shape, __dlpack__ = (40, 40), None

    def __setitem__(self, where: Any, part: Any) -> None:
        raise AssertionError("nobody may write here")


def test_storing_into_what_has_an_address_is_refused(queue: Queue) -> None:
    """CuPy's arrays, PyTorch's."""
    target: Any = Tensor()
    with pytest.raises(redisq.RedisqError, match="an array in memory, which is in"):
        da.store(grid(), target, scheduler=queue.get)


# Files that are open here.


def hdf5(path: Path) -> Any:
    """Return an open dataset of h5py in a group, of 10 numbers."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file["a/x"] = np.arange(10)
    return h5py.File(path, "r")["a/x"]


def netcdf(path: Path) -> Any:
    """Return an open variable of netCDF4 in a group, of 10 numbers."""
    netcdf4 = pytest.importorskip("netCDF4")
    with netcdf4.Dataset(path, "w") as file:
        file.createDimension("n", 10)
        file.createVariable("a/x", "i8", ("n",), fill_value=3)[:] = np.arange(10)
    variable = netcdf4.Dataset(path, "r")["a/x"]
    variable.set_auto_mask(False)  # or the 3 is missing in the sum
    return variable


@pytest.mark.parametrize("make", [hdf5, netcdf])
@pytest.mark.parametrize("lock", [True, False])
def test_an_array_of_an_open_file_is_read_by_workers(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, make: Any, *, lock: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Each opens the file for itself, whose name need not be absolute."""
    monkeypatch.chdir(tmp_path)
    x = da.from_array(make(Path("x.file")), chunks=5, lock=lock)
    assert (x + 1).sum().compute(scheduler=queue.get) == 55
    assert x.persist(scheduler=queue.get).sum().compute(scheduler=queue.get) == 45


def contents(thing: Any) -> list[str]:
    """Return the names in a file or group, and what kind that is."""
    names = list(thing) if hasattr(thing, "keys") else list(thing.variables) + list(thing.groups)
    return [type(thing).__name__, *names]


@pytest.mark.parametrize("make", [hdf5, netcdf])
def test_open_files_and_groups_are_given_to_tasks(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, make: Any
) -> None:
    """As what they are here."""
    leaf = make(tmp_path / "x.file")
    group = leaf.parent if make is hdf5 else leaf.group()
    for thing in (group, group.file if make is hdf5 else group.parent):
        assert queue.get({"x": (contents, thing)}, "x") == contents(thing)


@pytest.mark.parametrize("make", [hdf5, netcdf])
def test_a_file_can_be_written_again_after_workers_read_it(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, make: Any
) -> None:
    """A slot closes what it has nothing to do with, and the next job reads what is there then."""
    path = tmp_path / "x.file"
    leaf = make(path)
    root = leaf.file if make is hdf5 else leaf.group().parent
    assert da.from_array(leaf, chunks=5).sum().compute(scheduler=queue.get) == 45
    root.close()

    def write() -> bool:
        try:
            file = type(root)(path, "a")
        except OSError:  # a slot has it
            return False
        file["a/x"][:] = np.arange(100, 110)
        file.close()
        return True

    wait_until(write, 20)
    with type(root)(path, "r") as file:
        x = da.from_array(file["a/x"], chunks=5, name=False)
        assert x.sum().compute(scheduler=queue.get) == 1045
        # What stays of a loop, for its next calls, is let go for this.
        with_leaf = partial(read_at, leaf=file["a/x"])
        assert queue.foreach(with_leaf, [1, 2], worker_init=gc.collect) == [101, 102]
    wait_until(write, 20)


def read_at(i: int, leaf: Any) -> int:
    """Read an element of a dataset."""
    return int(leaf[i])


@pytest.mark.parametrize("make", [hdf5, netcdf])
def test_a_file_that_is_open_for_writing_is_refused_with_what_to_do(
    queue: Queue, tmp_path: Path, make: Any
) -> None:
    """What was written last need not be on the disk; a closed one is refused as well."""
    leaf = make(tmp_path / "x.file")
    root = leaf.file if make is hdf5 else leaf.group().parent
    root.close()
    with pytest.raises(redisq.TaskNotSerializable, match="is closed: compute before"):
        queue.get({"x": (len, leaf)}, "x")
    with (
        type(root)(tmp_path / "x.file", "a") as file,
        pytest.raises(redisq.TaskNotSerializable, match=r"open for writing.* mode \"r\""),
    ):
        da.from_array(file["a/x"], chunks=5).sum().compute(scheduler=queue.get)


def test_an_open_file_that_is_in_memory_is_refused(queue: Queue, tmp_path: Path) -> None:
    """No worker could open it."""
    h5py = pytest.importorskip("h5py")
    hdf5(tmp_path / "x.h5").file.close()
    with (
        (tmp_path / "x.h5").open("rb") as file,
        h5py.File(file) as opened,
        pytest.raises(redisq.TaskNotSerializable, match="no file on a disk"),
    ):
        da.from_array(opened["a/x"], chunks=5).sum().compute(scheduler=queue.get)


# Locks of Dask, which hold within one process.


@pytest.mark.parametrize("make", [threading.Lock, threading.RLock])
def test_a_lock_of_threads_is_refused_with_the_one_to_take(
    queue: Queue, tmp_path: Path, make: Any
) -> None:
    """It cannot hold for workers."""
    target = zarr.create_array(store=str(tmp_path / "x"), shape=(40, 40), chunks=(9, 9), dtype="f8")
    with pytest.raises(redisq.TaskNotSerializable, match=r"redisq\.Lock\(name\) instead"):
        da.store(grid(), target, lock=make(), scheduler=queue.get)


class Pages:
    """Takes slices as a file does that is written in pages, and takes its time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, where: Any) -> Any:
        return np.load(self.path)[where]

    def __setitem__(self, where: Any, part: Any) -> None:
        whole = np.load(self.path)
        time.sleep(0.01)
        whole[where] = part
        part = self.path.with_name(f"{os.getpid()}.npy")
        np.save(part, whole)
        part.replace(self.path)


def meet(path: Path, me: int) -> None:
    """Wait until the other one runs as well."""
    import dask.array  # noqa: F401 - a slot that still imports would come too late

    (path / f"met-{me}").touch()
    wait_until((path / f"met-{1 - me}").exists, 60)


def both_slots_at_work(queue: Queue, path: Path) -> None:
    """Return when two slots are there that have imported what stores."""
    queue.get({("m", me): (meet, path, me) for me in (0, 1)}, [("m", 0), ("m", 1)], chunk_size=1)


@pytest.mark.parametrize("way", ["scheduler", "enabled", "region", "fused", "persisted"])
def test_a_store_under_the_lock_that_dask_makes_loses_nothing(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, way: str
) -> None:
    """Each slot has its own, unless it becomes one of the queue: 20 tasks write into one page."""
    target: Any = Pages(tmp_path / "x.npy")
    np.save(target.path, np.zeros(2000))
    x = da.arange(2000, chunks=100)
    both_slots_at_work(queue, tmp_path)
    if way == "enabled":
        with redisq.enable(queue.name, queue.url):
            da.store(x, target)
    elif way == "persisted":
        stored: Any = da.store(x, target, return_stored=True, scheduler=queue.get)
        assert np.array_equal(stored.compute(scheduler=queue.get), np.arange(2000))
    elif way == "fused":
        later: Any = da.store(x, target, compute=False, return_stored=True)
        assert (later + 1).sum().compute(scheduler=queue.get, chunk_size=1) == 2001000
    else:
        regions = (slice(0, 2000),) if way == "region" else None
        da.store(x, target, regions=regions, scheduler=queue.get, chunk_size=1)
    assert np.array_equal(np.load(target.path), np.arange(2000))


def test_a_store_into_one_chunk_of_a_file_loses_nothing(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """As users have it: zarr, and the lock that is Dask's default."""
    target = zarr.create_array(
        store=str(tmp_path / "x.zarr"), shape=(2000,), chunks=(2000,), dtype="i8"
    )
    both_slots_at_work(queue, tmp_path)
    da.store(da.arange(2000, chunks=100), target, scheduler=queue.get, chunk_size=1)
    assert np.array_equal(target[:], np.arange(2000))


def planned(collection: Any) -> tuple[Plan, dict[Any, Any]]:
    """Return the plan of a collection, with its locks shared, and the graph that it is of."""
    expr = collections_to_expr([collection]).optimize()
    graph, keys, _ = plain_graph(expr, list(flatten(expr.__dask_keys__())))
    plan = plan_graph(graph, keys)
    share_or_refuse(plan)
    return plan, dict(graph)


def test_the_graph_of_the_user_keeps_its_locks(tmp_path: Path) -> None:
    """Only the plan has others: the same graph may run on Dask's threads next."""
    target: Any = Pages(tmp_path / "x.npy")
    lock: Any = SerializableLock("mine")
    made = da.store(da.arange(2000, chunks=100), target, lock=lock, compute=False)
    plan, graph = planned(made)
    assert len(plan) == 20
    for key, node in zip(plan.keys, plan.nodes, strict=True):
        assert node is not graph[key]
        assert b"dask:mine" in pickle.dumps(node)
        assert b"SerializableLock" not in pickle.dumps(node)
        assert b"SerializableLock" in pickle.dumps(graph[key])


def test_a_block_of_stores_is_as_small_as_before(tmp_path: Path) -> None:
    """What the tasks of a layer have in common they have in common afterwards."""
    target: Any = Pages(tmp_path / "x.npy")
    for lock in (SerializableLock("mine"), False):
        words: Any = {"lock": lock, "compute": False}
        plan, _ = planned(da.store(da.arange(2000, chunks=20) + 1, target, **words))
        size = len(pickle.dumps(plan.block(0)))
        if lock:
            locked = size
    assert locked < size * 1.1 + 500


def test_what_reads_under_a_lock_takes_that_of_the_queue(tmp_path: Path) -> None:
    """`from_array` with a lock, fused or not."""
    source: Any = zarr.create_array(
        store=str(tmp_path / "x.zarr"), shape=(40,), chunks=(40,), dtype="f8"
    )
    x = da.from_array(source, chunks=20, lock=True)
    for collection in (x, x + 1):
        plan, _ = planned(collection)
        assert all(b"dask:" in pickle.dumps(node) for node in plan.nodes)


def test_a_lock_that_a_function_of_the_user_takes_is_left_alone() -> None:
    """It asks for one within each process, and may look into it."""
    lock = SerializableLock("mine")
    plan, graph = planned(da.ones(4, chunks=2).map_blocks(lambda x, lock: x, lock=lock))
    assert [plan.nodes[t] is graph[key] for t, key in enumerate(plan.keys)] == [True, True]


@pytest.mark.parametrize("group", ["/data*", "/data"])
def test_to_hdf_without_a_lock_writes_all(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, group: str
) -> None:
    """Of two that write into one file one failed, or lost what it wrote."""
    pytest.importorskip("tables")
    frame = pd.DataFrame({"a": range(100), "b": np.arange(100) * 0.5})
    path = str(tmp_path / "x.h5")
    parts = dd.from_pandas(frame, npartitions=10)
    both_slots_at_work(queue, tmp_path)
    with dask.config.set({"redisq.chunk-size": 1}):
        parts.to_hdf(path, group, scheduler=queue.get)
    back: Any = dd.read_hdf(path, group).compute(scheduler=queue.get)
    assert back.sort_index().equals(frame)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_to_parquet_and_back(queue: Queue, workers: WorkerProcess, tmp_path: Path) -> None:
    """One file a partition, and the metadata in the end."""
    frame = pd.DataFrame({"a": range(100), "b": np.arange(100) * 0.5})
    with dask.config.set(scheduler=queue.get):
        dd.from_pandas(frame, npartitions=5).to_parquet(str(tmp_path / "p"))
        back = dd.read_parquet(str(tmp_path / "p")).compute()
    assert back.reset_index(drop=True).equals(frame)


def test_to_hdf_takes_the_lock_of_the_queue(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """All partitions go into one file, and HDF5 lets one process write."""
    pytest.importorskip("tables")
    frame = pd.DataFrame({"a": range(100), "b": np.arange(100) * 0.5})
    parts = dd.from_pandas(frame, npartitions=5)
    path = str(tmp_path / "x.h5")
    parts.to_hdf(path, "/data", lock=redisq.Lock("hdf", queue), scheduler=queue.get)
    back: Any = pd.read_hdf(path, "/data")
    assert back.equals(frame)


def test_a_shuffle_between_workers_of_distributed_is_refused(queue: Queue) -> None:
    """It needs distributed's scheduler. What to do helps also under `enable`."""
    pytest.importorskip("distributed.shuffle._core")
    frame: Any = dd.from_pandas(pd.DataFrame({"a": range(8)}), npartitions=2)
    with (
        redisq.enable(queue),
        pytest.raises(redisq.RedisqError, match=r'distributed .* Pass shuffle_method="tasks"'),
    ):
        frame.shuffle("a", shuffle_method="p2p").compute()


def test_a_bag_grouped_on_disk_is_refused_unless_there_is_one_disk() -> None:
    """Each host has its own; see `Bag.groupby`."""
    import dask.bag as db

    grouped = db.range(10, npartitions=2).groupby(lambda x: x % 2, shuffle="disk")
    graph, keys, _ = plain_graph(dict(grouped.__dask_graph__()), grouped.__dask_keys__())
    plan = plan_graph(graph, keys)
    with pytest.raises(redisq.RedisqError, match="local disk"):
        share_or_refuse(plan)
    share_or_refuse(plan, one_disk=True)


# xarray.


def dataset() -> Any:
    """Return a dataset of 16 chunks."""
    return xr.Dataset({"t": (("y", "x"), grid())}, coords={"x": np.arange(40)})


def test_xarray_computes(queue: Queue, workers: WorkerProcess) -> None:
    """Reductions, groups, persist: with the scheduler set globally."""
    with redisq.enable(queue.name, queue.url):
        data = dataset()
        assert float(data.t.mean()) == expected().mean()
        groups = data.t.groupby(data.x % 4).sum("y").compute()
        assert float(groups.sum()) == expected().sum()
        kept = data.persist()
        assert float(kept.t.max()) == expected().max()


def test_xarray_writes_zarr_and_opens_it(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """The chunks of the file are those of the tasks."""
    with redisq.enable(queue.name, queue.url):
        dataset().to_zarr(tmp_path / "x.zarr", zarr_format=2)
        with xr.open_zarr(tmp_path / "x.zarr") as back:
            assert np.array_equal(back.t.compute(), expected())


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf"])
def test_xarray_writes_netcdf_and_opens_it(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, engine: str
) -> None:
    """One file, which tasks open in turn under a lock of the queue."""
    pytest.importorskip({"netcdf4": "netCDF4"}.get(engine, engine))
    pytest.importorskip("h5py")
    path = tmp_path / "x.nc"
    with redisq.enable(queue.name, queue.url):
        dataset().to_netcdf(path, engine=engine)
        with xr.open_dataset(path, engine=engine, chunks={"x": 10}) as back:
            assert np.array_equal(back.t.compute(), expected())
            assert float(back.t.sum()) == expected().sum()


def test_xarray_is_as_it_was_when_dask_redisq_is_not_the_scheduler(queue: Queue) -> None:
    """What was replaced answers for others as before."""
    names = ("locks", "netCDF4_", "writers")
    backends: list[Any] = [importlib.import_module(f"xarray.backends.{name}") for name in names]
    locks, netCDF4_, writers = backends  # noqa: N806
    before = (locks.get_write_lock, writers.get_dask_scheduler, netCDF4_.get_write_lock)
    with redisq.enable(queue.name, queue.url):
        assert isinstance(netCDF4_.get_write_lock("x"), redisq.Lock)
        assert writers.get_dask_scheduler() == "multiprocessing"
        with dask.config.set(scheduler="threads"):
            assert writers.get_dask_scheduler() == "threaded"
            assert not isinstance(netCDF4_.get_write_lock("x"), redisq.Lock)
    assert writers.get_dask_scheduler() == "threaded"
    assert not isinstance(netCDF4_.get_write_lock("x"), redisq.Lock)
    after = (locks.get_write_lock, writers.get_dask_scheduler, netCDF4_.get_write_lock)
    assert after == before


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf"])
@pytest.mark.parametrize("scheduler", ["queue", "get", "name"])
def test_xarray_writes_netcdf_with_the_scheduler_set_globally(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, engine: str, scheduler: str
) -> None:
    """Whatever of ours Dask was told to take."""
    pytest.importorskip({"netcdf4": "netCDF4"}.get(engine, engine))
    pytest.importorskip("h5py")
    get = {"queue": queue.get, "get": redisq.get, "name": "redisq"}[scheduler]
    settings = {"scheduler": get, "redisq.url": queue.url, "redisq.queue": queue.name}
    with dask.config.set(settings):
        dataset().to_netcdf(tmp_path / "x.nc", engine=engine)
        xr.save_mfdataset([dataset()], [tmp_path / "y.nc"], engine=engine)
    for name in ("x.nc", "y.nc"):
        with xr.open_dataset(tmp_path / name, engine=engine) as back:
            assert np.array_equal(back.t, expected())


def test_xarray_is_imported_where_another_finder_asks_all_the_others() -> None:
    """As ours does: each asked the other for ever."""
    script = """
import sys
import dask_redisq

class Asks:
    def find_spec(self, *args):
        found = (finder.find_spec(*args) for finder in sys.meta_path if finder is not self)
        return next(filter(None, found), None)

sys.meta_path.insert(0, Asks())
from xarray.backends import locks
print(locks.get_write_lock.__wrapped__.__name__)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout.strip() == "get_write_lock", done.stderr


def test_netcdf_that_was_begun_for_threads_is_refused_with_what_to_do(
    queue: Queue, tmp_path: Path
) -> None:
    """Xarray keeps the file open in this process, and who computes then comes too late."""
    pytest.importorskip("h5netcdf")
    late = dataset().to_netcdf(tmp_path / "x.nc", engine="h5netcdf", compute=False)
    with pytest.raises(redisq.TaskNotSerializable, match=r"with redisq\.enable\(\).*zarr"):
        late.compute(scheduler=queue.get)
    with pytest.raises(redisq.TaskNotSerializable) as other:
        queue.get({"x": (id, threading.Lock())}, "x")
    assert "xarray" not in str(other.value)


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf"])
def test_netcdf_in_memory_is_refused_with_what_to_do(queue: Queue, engine: str) -> None:
    """No worker could write into it; what is here is written as ever."""
    pytest.importorskip({"netcdf4": "netCDF4"}.get(engine, engine))
    with dask.config.set(scheduler=queue.get):
        for target in (None, io.BytesIO()) if engine == "h5netcdf" else (None,):
            with pytest.raises(redisq.RedisqError, match=r"in memory.* or compute the dataset"):
                dataset().to_netcdf(target, engine=engine)
        here = xr.Dataset({"t": (("y", "x"), expected())})
        with xr.open_dataset(here.to_netcdf(engine=engine), engine=engine) as back:
            assert np.array_equal(back.t, expected())


def xarray_modules() -> list[Any]:
    """Return those whose functions are replaced."""
    return [importlib.import_module(f"xarray.backends.{name}") for name in ("locks", "writers")]


def settings_and_locks() -> tuple[Any, ...]:
    """Return what `enable` changes."""
    locks, writers = xarray_modules()
    words = ("scheduler", "dataframe.shuffle.method")
    return (
        *(dask.config.get(word, None) for word in words),
        locks.get_write_lock,
        writers.get_dask_scheduler,
    )


def test_two_that_were_enabled_may_end_in_any_order(queue: Queue) -> None:
    """In two threads the first to begin may be the first to end."""
    before = settings_and_locks()
    other = Queue("other", queue.url)
    first = redisq.enable(queue.name, queue.url)
    second = redisq.enable("other", queue.url)
    locks, writers = xarray_modules()
    first.__exit__(None, None, None)
    assert dask.config.get("scheduler").__self__.name == "other"
    assert dask.config.get("dataframe.shuffle.method") == "tasks"
    assert writers.get_dask_scheduler() == "multiprocessing"
    assert isinstance(locks.get_write_lock("x"), redisq.Lock)
    first.__exit__(None, None, None)  # again: it is none of its business
    assert writers.get_dask_scheduler() == "multiprocessing"
    second.__exit__(None, None, None)
    assert settings_and_locks() == before
    with redisq.enable(queue.name, queue.url), redisq.enable("other", queue.url):
        pass
    assert settings_and_locks() == before
    other.close()


def test_threads_that_enable_at_the_same_time_leave_nothing_behind(queue: Queue) -> None:
    """Whichever way they overlap."""
    before = settings_and_locks()

    def use() -> None:
        for _ in range(50):
            with redisq.enable(queue.name, queue.url):
                pass

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert settings_and_locks() == before


def test_xarray_may_be_imported_later(queue: Queue) -> None:
    """Nothing of it is imported before; and it answers for others as ever."""
    code = (
        "import dask_redisq as redisq, sys\n"
        "assert 'xarray' not in sys.modules\n"
        f"with redisq.enable('test', {queue.url!r}):\n"
        "    from xarray.backends import netCDF4_, writers\n"
        "    assert writers.get_dask_scheduler() == 'multiprocessing'\n"
        "    assert isinstance(netCDF4_.get_write_lock('x'), redisq.Lock)\n"
        "assert writers.get_dask_scheduler() == 'threaded'\n"
        "assert not isinstance(netCDF4_.get_write_lock('x'), redisq.Lock)\n"
        "assert writers.get_dask_scheduler.__module__ == 'xarray.backends.locks'\n"
        "assert netCDF4_.get_write_lock.__module__ == 'xarray.backends.locks'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
