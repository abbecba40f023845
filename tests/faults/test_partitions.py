"""The way between a worker and its server: shut for a while, shut for long, or half open. Rows 12 to 14."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from computing import Computing, nothing_left
from conftest import PATH, SECRET, WorkerProcess, wait_until
from proxy import Relay

from dask_redisq.queue import Queue
from dask_redisq.server import find_server


@pytest.fixture
def way(queue: Queue, tmp_socket: Path) -> Iterator[Relay]:
    """The way of a worker to the server."""
    with Relay(tmp_socket, queue.url) as relay:
        yield relay


def start_behind(
    start: Callable[..., WorkerProcess], queue: Queue, way: Relay, expiry: int
) -> None:
    """Start a worker of two slots behind the relay."""
    words = ["--nworkers", "2", "--name", "behind", "--alive-expiry", str(expiry)]
    start("test", *words, url=way.url)
    queue.wait_for_workers(2, timeout=90)


def registered(queue: Queue) -> set[str]:
    """Return all slots."""
    return {slot for worker in queue.workers() for slot in worker["slots"]}


def test_a_short_partition_is_not_noticed(
    queue: Queue, start_worker: Callable[..., WorkerProcess], way: Relay, tmp_path: Path
) -> None:
    """Row 12: half an alive expiry: the worker goes on where it was, and nothing runs twice."""
    start_behind(start_worker, queue, way, expiry=5)
    slots = registered(queue)
    job = Computing(queue, tmp_path, pause=0.02, alive_expiry=5)
    job.half_way()
    way.hold()
    time.sleep(2.5)
    way.release()
    job.check(extra=0)
    assert registered(queue) == slots
    nothing_left(queue.url)


def test_a_long_partition_loses_only_what_was_leased(
    queue: Queue, start_worker: Callable[..., WorkerProcess], way: Relay, tmp_path: Path
) -> None:
    """Row 13: three expiries: others take over; when it heals, what is late counts once, and it works on."""
    start_behind(start_worker, queue, way, expiry=2)
    (behind,) = queue.workers()
    job = Computing(queue, tmp_path, width=80, pause=0.02, chunk_size=5)
    job.half_way()
    way.hold()
    held = job.done()
    start_worker("test", "--nworkers", "1", "--name", "direct", "--alive-expiry", "2")
    wait_until(lambda: job.done() > held + 20)
    wait_until(lambda: behind["id"] not in [w["id"] for w in queue.workers()])
    way.release()
    job.check(extra=2 * 5)
    wait_until(lambda: len(registered(queue)) == 3)
    again = Computing(queue, tmp_path / "again", pause=0.02)
    again.check(extra=0)
    assert len(again.slots()) == 3, "a worker registered again, and does not work"
    nothing_left(queue.url)


@pytest.mark.slow_fault
@pytest.mark.parametrize("who", ["worker", "client"])
def test_a_half_open_connection_is_given_up(
    queue: Queue,
    start_worker: Callable[..., WorkerProcess],
    way: Relay,
    tmp_path: Path,
    who: str,
) -> None:
    """Row 14: a firewall forgot all connections, and breaks none: after the reply timeout all goes on."""
    start_worker("test", "--nworkers", "2", url=way.url if who == "worker" else queue.url)
    queue.wait_for_workers(2, timeout=90)
    with Queue("test", way.url if who == "client" else queue.url) as mine:
        job = Computing(mine, tmp_path, pause=0.02)
        job.half_way()
        way.forget()
        job.check(timeout=60)
        nothing_left(queue.url)
        again = Computing(mine, tmp_path / "again")
        again.check(extra=0)


# -- with real networks, where we may make some --------------------------------------------------


def _why_no_networks() -> str:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need Linux, and root"
    if shutil.which("ip") is None:
        return "network namespaces need the program ip (iproute2)"
    name = f"rq{os.getpid()}p"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode:
        return f"no network namespace can be made here: {made.stderr.decode().strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


class Cable:
    """Two network namespaces with a cable between them: a server's, and a worker's."""

    server, worker = f"rq{os.getpid()}s", f"rq{os.getpid()}w"

    def __enter__(self) -> Self:
        for name in (self.server, self.worker):
            self._ip("netns", "add", name)
        self._ip(
            "-n", self.server, "link", "add", "cable", "type", "veth", "peer", "name", "cable",
            "netns", self.worker,
        )  # fmt: skip
        for name, address in ((self.server, "10.9.8.1/24"), (self.worker, "10.9.8.2/24")):
            self._ip("-n", name, "addr", "add", address, "dev", "cable")
            self._ip("-n", name, "link", "set", "cable", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in (self.server, self.worker):
            self._ip("netns", "del", name)

    def pull(self) -> None:
        """Pull it: packets go nowhere, and nobody is told."""
        self._ip("-n", self.server, "link", "set", "cable", "down")

    def plug(self) -> None:
        """Put it back."""
        self._ip("-n", self.server, "link", "set", "cable", "up")

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def cable() -> Iterator[Cable]:
    """A cable; the test is skipped where none can be made."""
    if why := _why_no_networks():
        pytest.skip(why)
    with Cable() as made:
        yield made


@contextlib.contextmanager
def process(*words: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that ends with the block."""
    started = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(5)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@pytest.mark.slow_fault
@pytest.mark.parametrize("seconds", [1.0, 7.0])
def test_a_pulled_cable(
    cable: Cable, secret: str, tmp_socket: Path, tmp_path: Path, seconds: float
) -> None:
    """Rows 12, 13: TCP itself is cut; for less than an expiry nothing runs twice."""
    server = [
        "ip", "netns", "exec", cable.server, find_server(), "--bind", "10.9.8.1", "--port", "7000",
        "--unixsocket", str(tmp_socket), "--save", "", "--protected-mode", "no", "--dir", str(tmp_path),
    ]  # fmt: skip
    worker = [
        "ip", "netns", "exec", cable.worker, sys.executable, "-m", "dask_redisq.cli", "worker", "test",
        "--nworkers", "2", "--alive-expiry", "3",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": PATH, "DASK_REDISQ__URL": "redis://10.9.8.1:7000/0"}
    assert env["DASK_REDISQ__SECRET"] == SECRET
    url = f"unix://{tmp_socket}"
    with process(*server), process(*worker, env=env), Queue("test", url) as queue:
        wait_until(tmp_socket.exists)
        queue.wait_for_workers(2, timeout=90)
        slots = registered(queue)
        job = Computing(queue, tmp_path, pause=0.02, chunk_size=5, alive_expiry=3)
        job.half_way()
        cable.pull()
        time.sleep(seconds)
        cable.plug()
        job.check(timeout=60, extra=0 if seconds < 2 else 2 * 5)
        wait_until(lambda: len(registered(queue)) == 2)
        assert (registered(queue) == slots) or seconds > 2
        nothing_left(url)
