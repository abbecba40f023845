"""Where tasks write: files that all workers see, under shared locks; no memory of the client."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from conftest import WorkerProcess

import dask_redisq as redisq
from dask_redisq.dask_input import plain_graph
from dask_redisq.graph import plan_graph
from dask_redisq.queue import Queue
from dask_redisq.unshared import refuse_unshared

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


def test_a_shuffle_between_workers_of_distributed_is_refused() -> None:
    """It needs distributed's scheduler; a graph that was built for one says so."""
    shuffle = pytest.importorskip("distributed.shuffle._core")
    barrier = shuffle.P2PBarrierTask.__new__(shuffle.P2PBarrierTask)
    plan = plan_graph({"x": (sum, [1, 2])}, ["x"])
    plan.nodes[0] = barrier
    with pytest.raises(redisq.RedisqError, match="between workers of distributed"):
        refuse_unshared(plan)


def test_a_bag_grouped_on_disk_is_refused_unless_there_is_one_disk() -> None:
    """Each host has its own; see `Bag.groupby`."""
    import dask.bag as db

    grouped = db.range(10, npartitions=2).groupby(lambda x: x % 2, shuffle="disk")
    graph, keys, _ = plain_graph(dict(grouped.__dask_graph__()), grouped.__dask_keys__())
    plan = plan_graph(graph, keys)
    with pytest.raises(redisq.RedisqError, match="local disk"):
        refuse_unshared(plan)
    refuse_unshared(plan, one_disk=True)


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
    """What was replaced is put back; and while it is, it answers for others as before."""
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
    after = (locks.get_write_lock, writers.get_dask_scheduler, netCDF4_.get_write_lock)
    assert after == before


def test_xarray_may_be_imported_later(queue: Queue) -> None:
    """And what it imports then is put back as well."""
    code = (
        "import dask_redisq as redisq, sys\n"
        f"with redisq.enable('test', {queue.url!r}):\n"
        "    assert 'xarray' not in sys.modules\n"
        "    from xarray.backends import netCDF4_, writers\n"
        "    assert writers.get_dask_scheduler() == 'multiprocessing'\n"
        "    assert isinstance(netCDF4_.get_write_lock('x'), redisq.Lock)\n"
        "assert writers.get_dask_scheduler.__module__ == 'xarray.backends.locks'\n"
        "assert netCDF4_.get_write_lock.__module__ == 'xarray.backends.locks'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
