"""The schedulers that are compared, each a context manager that gives its `get`.

All run two tasks at a time, in processes where they have processes, and stay open through
the run, so that a measured call starts nothing.
"""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import dask.multiprocessing
import dask.threaded
from dask.local import get_sync

from benchmarks import SLOTS

#: A Dask scheduler: ``get(graph, keys)``.
Get = Callable[..., Any]


@dataclass(frozen=True)
class Scheduler:
    """An open scheduler, and what a reader of its numbers should know of it."""

    get: Get
    about: str = ""


@dataclass(frozen=True)
class Peers:
    """What `open_peers` opened: each one's `get` and remark, and why others could not be."""

    gets: dict[str, Get] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


class PeerMissingError(Exception):
    """The peer cannot run here; the message says what is missing."""


@contextmanager
def sync() -> Iterator[Scheduler]:
    """`dask.get`, in this process and thread: what a graph costs with no scheduler around it."""
    yield Scheduler(get_sync)


@contextmanager
def threads() -> Iterator[Scheduler]:
    """Dask's thread pool."""
    yield Scheduler(partial(dask.threaded.get, num_workers=SLOTS))


@contextmanager
def processes() -> Iterator[Scheduler]:
    """Dask's multiprocessing on one warm pool: by default it starts a pool in each call."""
    context = dask.multiprocessing.get_context()
    setup = dask.multiprocessing.initialize_worker_process
    with ProcessPoolExecutor(SLOTS, mp_context=context, initializer=setup) as pool:
        yield Scheduler(partial(dask.multiprocessing.get, pool=pool))


@contextmanager
def distributed() -> Iterator[Scheduler]:
    """A distributed LocalCluster of one-thread processes, without its dashboard."""
    _require("distributed")
    from distributed import Client, LocalCluster

    cluster = LocalCluster(
        n_workers=SLOTS,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        silence_logs=logging.ERROR,
    )
    # It warns of graphs over 10 MB, which it then runs all the same.
    warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
    with cluster, Client(cluster) as client:
        yield Scheduler(client.get)


@contextmanager
def ray() -> Iterator[Scheduler]:
    """Dask-on-Ray with two CPUs."""
    _require("ray")
    import ray
    from ray.util.dask import ray_dask_get

    ray.init(num_cpus=SLOTS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield Scheduler(ray_dask_get)
    finally:
        ray.shutdown()


@contextmanager
def redisq() -> Iterator[Scheduler]:
    """Two slots and a private server."""
    _require("dask_redisq")
    from benchmarks.cluster import open_queue, server_version

    with open_queue() as (queue, server):
        yield Scheduler(queue.get, server_version(server))


PEERS: dict[str, Callable[[], AbstractContextManager[Scheduler]]] = {
    "sync": sync,
    "threads": threads,
    "processes": processes,
    "distributed": distributed,
    "ray": ray,
    "redisq": redisq,
}


@contextmanager
def open_peers(names: Iterable[str]) -> Iterator[Peers]:
    """Open the schedulers of these names, keys of `PEERS`, and close them in the end."""
    peers = Peers()
    with ExitStack() as stack:
        for name in dict.fromkeys(names):
            try:
                scheduler = stack.enter_context(PEERS[name]())
            except PeerMissingError as error:
                peers.missing[name] = str(error)
                continue
            peers.gets[name] = scheduler.get
            if scheduler.about:
                peers.about[name] = scheduler.about
        yield peers


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        msg = f"{package} is not installed"
        raise PeerMissingError(msg)
