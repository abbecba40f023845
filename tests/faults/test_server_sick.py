"""The server is there, and does not do what it is asked: rows 17 to 19, 23, 26, 27.

In each the job ends with the right answer, the workers go on by themselves, and nothing is left.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
from computing import Computing, nothing_left
from conftest import WorkerProcess, wait_until
from mortal import MortalServer
from proxy import Relay
from redis.exceptions import ResponseError

from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.queue import Queue

#: Seconds that a sickness takes: more than two alive expiries of the workers here.
LONG = 4.5
SLOW = pytest.mark.slow_fault
#: Tasks that a slot leases here. After a restart those of two slots run again, in a new epoch: that
#: the log holds all, nobody can see (rule 13).
CHUNK = 5


def paused(mortal: MortalServer, link: Link) -> None:
    """CLIENT PAUSE: connections stand still, and so does the expiry of keys."""
    link.command("CLIENT", "PAUSE", int(LONG * 1000), "ALL")
    time.sleep(LONG)


def stopped(mortal: MortalServer, link: Link) -> None:
    """SIGSTOP: swapped out, or a fork of gigabytes. The clock goes on, and keys expire."""
    mortal.freeze()
    time.sleep(LONG)
    mortal.thaw()


def busy(mortal: MortalServer, link: Link) -> None:
    """A script of somebody else runs for long; all others are told BUSY."""
    link.command("CONFIG", "SET", "lua-time-limit", 50)
    other = Link(mortal.url)

    def loop() -> None:
        with contextlib.suppress(ResponseError):
            other.command("EVAL", "while true do end", 0)

    thread = Thread(target=loop)
    thread.start()
    time.sleep(LONG)
    killer = Link(mortal.url)
    killer._connection.connect()
    killer._ask("SCRIPT", "KILL")
    thread.join()
    other.close()
    killer.close()


def misconfigured(mortal: MortalServer, link: Link) -> None:
    """MISCONF: the disk is full, say, and whoever set the server up wants no writes then."""
    (mortal.folder / "dump.rdb").mkdir()
    link.command("CONFIG", "SET", "save", "3600 1")
    link.command("BGSAVE")
    wait_until(lambda: b"rdb_last_bgsave_status:err" in link.command("INFO", "persistence"))
    probe = Link(mortal.url)
    probe._connection.connect()
    with pytest.raises(ResponseError, match="MISCONF"):
        probe._ask("SET", "x", "1")
    probe.close()
    time.sleep(LONG)
    (mortal.folder / "dump.rdb").rmdir()
    link.command("CONFIG", "SET", "save", "")


def without_replicas(mortal: MortalServer, link: Link) -> None:
    """NOREPLICAS: it takes no writes without a replica, and has none."""
    link.command("CONFIG", "SET", "min-replicas-to-write", 1)
    time.sleep(LONG)
    link.command("CONFIG", "SET", "min-replicas-to-write", 0)


def read_only(mortal: MortalServer, link: Link) -> None:
    """READONLY: it is a replica now, of nobody who answers; and then it is not."""
    link.command("CONFIG", "SET", "replica-serve-stale-data", "yes")
    link.command("REPLICAOF", "127.0.0.1", 1)
    time.sleep(LONG)
    link.command("REPLICAOF", "NO", "ONE")


@pytest.mark.parametrize(
    "sickness",
    [
        stopped,
        read_only,
        *(pytest.param(x, marks=SLOW) for x in (paused, busy, misconfigured, without_replicas)),
    ],
)
def test_a_server_that_is_sick_for_a_while(
    mortal: MortalServer, far: Queue, tmp_path: Path, sickness: Callable[[MortalServer, Link], None]
) -> None:
    """Rows 18, 19, 27: nobody dies of it, and no task runs twice, though all beats were missed."""
    link = Link(mortal.url)
    job = Computing(far, tmp_path, pause=0.02)
    job.half_way()
    before = {slot for worker in far.workers() for slot in worker["slots"]}
    sickness(mortal, link)
    job.check(extra=0)
    assert {slot for worker in far.workers() for slot in worker["slots"]} == before
    nothing_left(mortal.url)
    link.close()


@SLOW
def test_a_server_that_loads_for_long(mortal: MortalServer, far: Queue, tmp_path: Path) -> None:
    """Row 27: killed and started again, it answers LOADING for longer than an alive expiry."""
    link = Link(mortal.url)
    job = Computing(far, tmp_path, pause=0.02, chunk_size=CHUNK)
    job.half_way()
    for i in range(1000):
        link.send("SET", f"ballast:{i}", bytes(2000), "EX", 600)
    link.receive_all()
    link.command("BGREWRITEAOF")
    wait_until(lambda: b"aof_rewrite_in_progress:0" in link.command("INFO", "persistence"))
    mortal.kill()
    mortal.settings |= {"key-load-delay": "4000", "loading-process-events-interval-bytes": "1024"}
    started = time.monotonic()
    thread = Thread(target=mortal.start)
    thread.start()
    wait_until(lambda: _ping(mortal).startswith(b"-LOADING"))
    wait_until(lambda: _ping(mortal).startswith(b"+PONG"))
    thread.join()
    assert time.monotonic() - started > 2, "it was loaded too fast"
    job.check(extra=2 * CHUNK)
    nothing_left(mortal.url)
    link.close()


def _ping(server: MortalServer) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
        connection.connect(f"{server.folder}/s")
        connection.sendall(b"PING\r\n")
        return connection.recv(100)
    return b""


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MortalServer, MortalServer]]:
    """A server, and a replica of it."""
    port = _free_port()
    with (
        MortalServer(tmp_path_factory.mktemp("m"), port=port, bind="127.0.0.1") as first,
        MortalServer(tmp_path_factory.mktemp("r"), replicaof=f"127.0.0.1 {port}") as second,
    ):
        link = Link(second.url)
        wait_until(lambda: b"master_link_status:up" in link.command("INFO", "replication"))
        link.close()
        yield first, second


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("behind", [pytest.param(False, marks=SLOW), True])
def test_a_replica_takes_over(
    pair: tuple[MortalServer, MortalServer],
    start_worker: Callable[..., WorkerProcess],
    tmp_path: Path,
    tmp_socket: Path,
    *,
    behind: bool,
) -> None:
    """Rows 23, 27: the way leads to a replica, which is read only at first, and may lack the last results."""
    first, second = pair
    with Relay(tmp_socket, first.url) as way, Queue("test", way.url) as queue:
        start_worker("test", "--nworkers", "2", "--alive-expiry", "2", url=way.url)
        queue.wait_for_workers(2, timeout=90)
        job = Computing(queue, tmp_path, pause=0.02)
        job.half_way()
        promote = Link(second.url)
        if behind:  # it hears no more from here on
            promote.command("REPLICAOF", "NO", "ONE")
            before = job.done()
            wait_until(lambda: job.done() > before + 20)
            promote.command("REPLICAOF", "127.0.0.1", 1)
        first.kill()
        way.point_at(second.url)
        time.sleep(1)
        promote.command("REPLICAOF", "NO", "ONE")
        promote.close()
        job.check()
        nothing_left(second.url)


#: Those of the queue, and of a job; those that are worth a look each time.
QUEUES = ("queue", "jobs", "active", "workers", "slots", "monitor")
PER_JOB = (
    "job", "blocks", "edges", "finished", "values", "log", "wait", "consumers", "ready", "leases",
    "client", "alone", "news",
)  # fmt: skip
PER_SLOT = ("slot", "idle", "wake", "alive", "worker_slots", "control")
ALWAYS = ("slots", "job", "values", "wait", "leases", "slot")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=() if k in ALWAYS else SLOW) for k in (*QUEUES, *PER_JOB, *PER_SLOT)],
)
def test_a_key_that_was_evicted(
    mortal: MortalServer, far: Queue, tmp_path: Path, kind: str
) -> None:
    """Row 26: a key of a running job, or one of all slots, is gone: the answer is right; nobody hangs."""
    link = Link(mortal.url)
    job = Computing(far, tmp_path, width=20, pause=0.02)
    job.half_way()
    (running,) = [row["id"] for row in far.jobs()]
    if kind in PER_SLOT:
        names = link.command("KEYS", Keys("test")(kind, "*"))
    else:
        names = [Keys("test")(kind, *([running] if kind in PER_JOB else []))]
    for name in names:
        link.command("DEL", name)
    link.close()
    job.check()
    nothing_left(mortal.url)
