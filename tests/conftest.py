"""A private server for the run, real worker processes, and leak checks."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from mortal import MortalServer
from turns import end_turns, turn
from worker_process import (
    PATH,
    SharedWorker,
    WorkerProcess,
    command_of,
    is_gone,
    slots_of,
)

from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.monitor import Monitor
from dask_redisq.queue import Queue
from dask_redisq.server import PrivateServer

if TYPE_CHECKING:
    from driver import Engine

# A shell that starts a run in the background has it ignore Ctrl-C, and all that the run starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

#: With what the tests import from here without knowing where it is.
__all__ = ["PATH", "WorkerProcess", "is_gone", "slots_of"]


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the clock of its time-out starts
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Let a test that measures time run alone."""
    with turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_sessionfinish() -> None:
    """Leave no lock behind."""
    end_turns()


@pytest.fixture(scope="session")
def only_server() -> Iterator[PrivateServer]:
    """One server for the whole run, on a unix socket in a directory of its own."""
    with PrivateServer() as running:
        yield running


@pytest.fixture(scope="session")
def shared() -> Iterator[SharedWorker]:
    """The worker of all tests that want two slots and nothing else; see `workers`."""
    with SharedWorker() as worker:
        yield worker


@pytest.fixture
def server(request: pytest.FixtureRequest) -> PrivateServer:
    """The run's server; of a test that uses `workers` the one where they are."""
    if "workers" in request.fixturenames:
        worker: SharedWorker = request.getfixturevalue("shared")
        return worker.server
    server: PrivateServer = request.getfixturevalue("only_server")
    return server


@pytest.fixture
def link(server: PrivateServer, request: pytest.FixtureRequest) -> Iterator[Link]:
    """A connection to a server on which there is nothing, or nothing but `workers`."""
    opened = Link(server.url, patience=5.0)
    if "workers" in request.fixturenames:
        request.getfixturevalue("shared").clean()
    else:
        opened.command("FLUSHALL")
    yield opened
    opened.close()


@pytest.fixture
def keys() -> Keys:
    """Key names of the test's queue."""
    return Keys("test")


@pytest.fixture
def engine(link: Link, keys: Keys) -> Engine:
    """The queue as the scripts see it, with every call checked."""
    from driver import Engine  # here: workers and clients import this module, and have no such path

    return Engine(link, keys)


@pytest.fixture
def queue(link: Link) -> Iterator[Queue]:
    """The test's queue on the empty server."""
    with Queue("test", link.url) as queue:
        yield queue


#: What the tests sign with where they sign.
SECRET = "only the tests know this one"  # noqa: S105


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    """The secret, in the environment of this process and of the workers that it starts."""
    monkeypatch.setenv("DASK_REDISQ__SECRET", SECRET)
    return SECRET


@pytest.fixture
def start_worker(server: PrivateServer) -> Iterator[Callable[..., WorkerProcess]]:
    """A function that starts workers which end with the test."""
    started: list[WorkerProcess] = []

    def start(
        *words: str, url: str | None = None, env: dict[str, str] | None = None
    ) -> WorkerProcess:
        started.append(WorkerProcess(url or server.url, *words, env=env))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


@pytest.fixture
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MortalServer]:
    """A server that may die."""
    with MortalServer(tmp_path_factory.mktemp("m")) as server:
        yield server


@pytest.fixture
def far(mortal: MortalServer, start_worker: Callable[..., WorkerProcess]) -> Iterator[Queue]:
    """A queue on it, with two slots whose alive keys live for two seconds."""
    start_worker("test", "--nworkers", "2", "--alive-expiry", "2", url=mortal.url)
    with Queue("test", mortal.url) as queue:
        queue.wait_for_workers(2, timeout=90)
        yield queue


@pytest.fixture
def workers(queue: Queue, shared: SharedWorker) -> WorkerProcess:
    """One worker named "one" with two idle slots on the test's queue, as good as new."""
    assert queue.keys.prefix == shared.queue.keys.prefix
    return shared.ready()


def wait_until(condition: Callable[[], object], timeout: float = 60.0) -> None:
    """Wait until `condition` holds; fail the test when it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def looked(link: Link, keys: Keys) -> bool:
    """Look after a queue as a monitor that was there for long; false if it was not its turn."""
    expiry = 3.0
    monitor = Monitor(link, keys, "test", interval=1.0, expiry=expiry)
    monitor.run(1e9)
    monitor.run(1e9 + expiry)
    return monitor.stats()["recovery"]["looks"] == 1


def all_idle(link: Link, queue: Queue) -> bool:
    """Whether each slot of a queue waits for work: what it had to send is sent."""
    slots = [queue.keys("slot", slot) for row in queue.workers() for slot in row["slots"]]
    return all(link.command("HGET", slot, "idle") == b"1" for slot in slots)


@pytest.fixture(autouse=True)
def no_leaks(shared: SharedWorker) -> Iterator[None]:
    """Fail a test that leaves a thread or a child process behind."""
    before = set(threading.enumerate())
    children = {p.pid for p in psutil.Process().children()}
    yield
    left = [t for t in threading.enumerate() if t not in before and not t.daemon]
    assert not left, f"threads left behind: {left}"

    def more() -> list[psutil.Process]:
        new = [p for p in psutil.Process().children() if p.pid not in children | shared.pids()]
        return [p for p in new if not is_gone(p) and "keeper" not in command_of(p)]

    if more():  # a future in a cycle, the traceback of an error say: its helper ends with it
        gc.collect()
        deadline = time.monotonic() + 15  # it may not have begun yet
        while more() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert not more(), f"processes left behind: {more()}"


@pytest.fixture
def tmp_socket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short path for a socket."""
    return tmp_path_factory.mktemp("s") / "s"
