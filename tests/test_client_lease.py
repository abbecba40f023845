"""A client that is interrupted, killed, stopped, or too busy to call: what becomes of its job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
import pytest
from conftest import PATH, WorkerProcess, all_idle, is_gone, looked, wait_until
from dask.utils_test import inc
from test_detach import job_keys
from test_faults import Background, log_and_wait, pids
from worker_process import command_of

import dask_redisq as redisq
from dask_redisq import client_lease
from dask_redisq.codec import unpack
from dask_redisq.follow import Follower
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.monitor import sweep
from dask_redisq.queue import Queue


class Client:
    """A client in a process of its own, that computes what a script says."""

    def __init__(self, url: str, code: str, **env: str) -> None:
        head = f"""
import os, time
from pathlib import Path
from test_client_lease import *
queue = redisq.Queue("test", {url!r})
"""
        self.process = subprocess.Popen(
            [sys.executable, "-c", head + code],
            env={**os.environ, "PYTHONPATH": PATH, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def helpers(self) -> list[psutil.Process]:
        """Return its helper processes."""
        children = psutil.Process(self.process.pid).children()
        return [p for p in children if "dask_redisq.renewer" in command_of(p)]

    def output(self) -> str:
        """Return what it printed, once it ended well."""
        out, errors = self.process.communicate(timeout=90)
        assert self.process.returncode == 0, errors
        return out.strip()

    def close(self) -> None:
        """Kill it, if it is still there."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start_client(queue: Queue) -> Iterator[Callable[..., Client]]:
    """A function that starts clients which end with the test."""
    started: list[Client] = []

    def start(code: str, **env: str) -> Client:
        started.append(Client(queue.url, code, **env))
        return started[-1]

    yield start
    for client in started:
        client.close()


def note_run(log: Path) -> int:
    """Note that it ran; return how often that was."""
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return len(pids(log))


def miss_client(link: Link, keys: Keys, job: str) -> None:
    """Let the lease of a job's client run out, and a monitor find that."""
    link.command("DEL", keys("client", job), keys("monitor"))
    _, _, ended, *_ = unpack(link.call("recover", keys, who="test", interval=1000, deadline=10**15))
    assert ended == [job.encode()]
    assert sweep(link, keys, job)


def sleep_past_lease(client: Client, link: Link, keys: Keys, job: str) -> None:
    """Stop a client until its job was cancelled and swept."""
    process = psutil.Process(client.process.pid)
    process.suspend()
    miss_client(link, keys, job)
    process.resume()


# Ctrl-C.


class InterruptAt:
    """Raises KeyboardInterrupt at the n-th thing that a client sends or receives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
        self.how = how
        self.left = 0
        for name in ("send", "_receive_one"):
            monkeypatch.setattr(Link, name, self._wrap(getattr(Link, name)))

    def _wrap(self, method: Any) -> Any:
        def call(link: Link, *args: Any) -> Any:
            self.left -= 1
            if self.left != 0:
                return method(link, *args)
            if self.how == "after":
                method(link, *args)
            raise KeyboardInterrupt

        return call


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("working", [True, False])
def test_ctrl_c_at_any_call_leaves_nothing(
    queue: Queue,
    link: Link,
    start_worker: Callable[..., WorkerProcess],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    working: bool,
) -> None:
    """Interrupted at each thing that it sends or receives, from submit to sweep: no key is left."""
    if working:
        start_worker("test", "--nworkers", "2")
        queue.wait_for_workers(2, timeout=90)
    monkeypatch.setattr("dask_redisq.follow.WAIT", 0.01)
    data = np.arange(20_000)
    dsk = {("x", i): (np.add, data, i) for i in range(150)}
    interrupt = InterruptAt(monkeypatch, how)
    number, ended = 0, False
    while not ended and number < 40:
        number += 1
        interrupt.left = number
        try:
            queue.get(dsk, [("x", 3), ("x", 140)])
            ended = interrupt.left > 0
        except KeyboardInterrupt:
            pass
        finally:
            interrupt.left = 0
        if not ended:
            # A slot with a result in hand deletes it when it hears that nobody takes it.
            wait_until(lambda: not working or (all_idle(link, queue) and not job_keys(link)))
            assert job_keys(link) == [], f"interrupted at {number}"
        assert [n for n in link.command("KEYS", "*") if b":tomb:" in n] == []
    assert number > 10
    assert ended == working


def test_a_command_of_which_half_was_sent_spoils_nothing(
    queue: Queue, workers: WorkerProcess, link: Link
) -> None:
    """Ctrl-C while megabytes are on their way: the next command is not read as their rest."""
    own = Link(link.url, patience=5.0)
    own.connect()
    connection = own._connection
    send = connection.send_packed_command

    def send_half(pieces: list[Any]) -> None:
        whole = b"".join(bytes(piece) for piece in pieces)
        connection._sock.sendall(whole[: len(whole) // 2])
        connection.send_packed_command = send
        raise KeyboardInterrupt

    connection.send_packed_command = send_half
    with pytest.raises(KeyboardInterrupt):
        own.send("SET", "a", b"x" * 1000)
    own.send("SET", "b", "1")
    assert own.receive_all() == [b"OK"]
    assert link.command("KEYS", "[ab]") == [b"b"]
    own.close()


# SIGKILL.

WAITING = "queue.get({'x': (log_and_wait, Path(LOG), Path(GATE)), 'y': (inc, 'x')}, 'y')"


def waiting(tmp_path: Path) -> tuple[str, Path, Path]:
    """Return a script that waits for a gate, the log of who ran, and the gate."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    return f"LOG, GATE = {str(log)!r}, {str(gate)!r}\n", log, gate


def test_the_keys_of_a_killed_client_expire_by_themselves(
    queue: Queue, link: Link, keys: Keys, start_client: Callable[..., Client], tmp_path: Path
) -> None:
    """No worker, nobody to sweep: five leases at most; the queue's own keys stay for a day."""
    code, _, _ = waiting(tmp_path)
    client = start_client(code + WAITING, DASK_REDISQ__CLIENT_LEASE="2")
    wait_until(lambda: [row["sealed"] for row in queue.jobs()] == [True])
    client.close()
    left = {name: link.command("PTTL", name) for name in job_keys(link)}
    assert len(left) > 5
    assert {name: ttl for name, ttl in left.items() if not 0 < ttl <= 10_000} == {}
    others = set(link.command("KEYS", "*")) - left.keys()
    assert others == {keys(name).encode() for name in ("queue", "jobs", "active")}


def test_the_job_of_a_killed_client_is_removed_by_workers(
    queue: Queue,
    link: Link,
    start_worker: Callable[..., WorkerProcess],
    start_client: Callable[..., Client],
    tmp_path: Path,
) -> None:
    """A lease after its death: the running task is ended, no key is left but a tomb; row 35."""
    # It may judge once it was connected for one expiry.
    env = {"DASK_REDISQ__FT_INTERVAL": "1", "DASK_REDISQ__ALIVE_EXPIRY": "1"}
    start_worker("test", "--nworkers", "1", env=env)
    queue.wait_for_workers(1, timeout=90)
    code, log, _ = waiting(tmp_path)
    client = start_client(code + WAITING, DASK_REDISQ__CLIENT_LEASE="1")
    wait_until(lambda: len(pids(log)) == 1)
    (row,) = queue.jobs()
    client.close()
    wait_until(lambda: job_keys(link) == [], timeout=8)
    wait_until(lambda: not psutil.pid_exists(pids(log)[0]), timeout=5)
    with pytest.raises(redisq.JobCancelled, match=rf"{row['id']}.*client-lease"):
        queue.attach(row["id"])


DIES_OVER_A_CONSTANT = """
from dask_redisq.job import Job
store = Job._store_constant
def store_and_die(job, digest, data):
    store(job, digest, data)
    job.link.receive_all()
    os.kill(os.getpid(), signal.SIGKILL)
Job._store_constant = store_and_die
queue.get({"x": (len, bytes(1_000_000))}, "x")
"""


def test_a_constant_goes_with_the_job_of_a_killed_client(
    queue: Queue,
    link: Link,
    start_worker: Callable[..., WorkerProcess],
    start_client: Callable[..., Client],
) -> None:
    """It was stored, and the block that needs it was not: no key is left a lease after that."""
    env = {"DASK_REDISQ__FT_INTERVAL": "1", "DASK_REDISQ__ALIVE_EXPIRY": "1"}
    start_worker("test", "--nworkers", "1", env=env)
    queue.wait_for_workers(1, timeout=90)
    # Long enough that its keys do not expire by themselves while this test looks.
    client = start_client(DIES_OVER_A_CONSTANT, DASK_REDISQ__CLIENT_LEASE="4")
    assert client.process.wait(60) == -signal.SIGKILL
    assert [name for name in job_keys(link) if b":const:" in name]
    wait_until(lambda: job_keys(link) == [], timeout=12)


def test_a_constant_that_nobody_can_sweep_expires_with_its_job(
    queue: Queue, link: Link, start_client: Callable[..., Client]
) -> None:
    """There is no worker: it is there for five leases, as all else of the job."""
    client = start_client(DIES_OVER_A_CONSTANT, DASK_REDISQ__CLIENT_LEASE="2")
    assert client.process.wait(60) == -signal.SIGKILL
    (const,) = [name for name in job_keys(link) if b":const:" in name]
    assert 0 < link.command("PTTL", const) <= 10_000


# A client that slept.


def test_a_client_that_slept_past_its_lease_goes_on(
    queue: Queue,
    workers: WorkerProcess,
    link: Link,
    keys: Keys,
    start_client: Callable[..., Client],
    tmp_path: Path,
) -> None:
    """Its job was cancelled and swept while it was stopped: it submits only what is missing."""
    code, log, gate = waiting(tmp_path)
    once = tmp_path / "once"
    code += f"""
dsk = {{"quick": (note_run, Path({str(once)!r})), "x": (log_and_wait, Path(LOG), Path(GATE)),
       "both": (max, "quick", "x")}}
print(*queue.get(dsk, ["quick", "both", "x"]))
"""
    client = start_client(code)
    wait_until(lambda: len(pids(log)) == 1)
    (row,) = queue.jobs()
    # it has `quick`, and waits for the rest
    wait_until(lambda: link.command("HGET", keys("job", row["id"]), "acked") == b"1")
    sleep_past_lease(client, link, keys, row["id"])
    wait_until(lambda: len(pids(log)) == 2)
    (again,) = queue.jobs()
    assert again["id"] != row["id"]
    assert again["n"] == 2
    gate.touch()
    assert client.output() == f"1 {pids(log)[1]} {pids(log)[1]}"
    assert len(pids(once)) == 1
    assert job_keys(link) == []


def test_a_server_that_came_back_empty_is_given_the_job_again(
    queue: Queue, start_worker: Callable[..., WorkerProcess], link: Link, tmp_path: Path
) -> None:
    """FLUSHALL under a client that waits: the answer is right; row 22."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    start_worker("test", "--nworkers", "1", "--alive-expiry", "1")
    queue.wait_for_workers(1, timeout=90)
    dsk = {"x": (log_and_wait, log, gate), "y": (inc, "x")}
    job = Background(queue.get, dsk, ["y"])
    wait_until(lambda: len(pids(log)) == 1)
    link.command("FLUSHALL")
    wait_until(lambda: [row["sealed"] for row in queue.jobs()] == [True])
    gate.touch()
    assert job.result() == (pids(log)[-1] + 1,)


def test_a_job_that_is_lost_each_time_is_given_up(
    queue: Queue, link: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Five more submissions without one output: an error, not a loop for ever."""
    send_call = Link.send_call
    created: list[str] = []

    def lose(self: Link, script: str, keys: Keys, /, **args: Any) -> None:
        if script == "create":
            created.append(args["job"])
        if script == "gather":
            link.command("FLUSHALL")
        send_call(self, script, keys, **args)

    monkeypatch.setattr(Link, "send_call", lose)
    with pytest.raises(redisq.JobLost, match=r"the server lost it.*given up after 5 more"):
        queue.get({"x": (inc, 1)}, "x")
    assert len(set(created)) == len(created) == 6
    assert sum("go again" in record.message for record in caplog.records) == 5


def test_a_cancelled_job_is_not_submitted_again(
    queue: Queue,
    workers: WorkerProcess,
    link: Link,
    keys: Keys,
    start_client: Callable[..., Client],
    tmp_path: Path,
) -> None:
    """It was cancelled and swept while its client was stopped; the tomb tells by whom."""
    code, log, _ = waiting(tmp_path)
    client = start_client(f"{code}\ntry:\n    {WAITING}\nexcept redisq.JobCancelled as e: print(e)")
    wait_until(lambda: len(pids(log)) == 1)
    (row,) = queue.jobs()
    psutil.Process(client.process.pid).suspend()
    assert queue.cancel(row["id"], "enough")
    assert sweep(link, keys, row["id"])
    psutil.Process(client.process.pid).resume()
    assert client.output().endswith("enough")
    assert len(pids(log)) == 1


# A client that is too busy to call.


def test_a_helper_keeps_the_lease_and_ends_with_its_last_job(
    queue: Queue, link: Link, keys: Keys
) -> None:
    """It renews what expires, starts with the first job, and is gone after the last."""
    future = queue.compute(dask.delayed(inc)(1), detach=True)
    job = keys("job", future.id)
    link.command("HSET", job, "ttl", 0)  # as if its client waited
    client_lease.hold(queue.url, "test", future.id, 1.0)
    client_lease.hold(queue.url, "test", "unknown", 1.0)
    (helper,) = [p for p in psutil.Process().children() if "dask_redisq.renewer" in command_of(p)]
    assert queue.url not in " ".join(helper.cmdline())
    for _ in range(2):
        link.command("DEL", keys("client", future.id))
        wait_until(lambda: link.command("EXISTS", keys("client", future.id)))
    client_lease.drop(queue.url, "unknown")
    assert not is_gone(helper)
    client_lease.drop(queue.url, future.id)
    client_lease.drop(queue.url, future.id)
    assert is_gone(helper)


def be_busy(began: Path, over: Path) -> str:
    """Compute, in the one thread of this process, until it is told that it is over."""
    began.touch()
    while not over.exists():
        pow(3, 1_000_000)
    return "heavy"


class Heavy:
    """A result of which the unpickling takes as long as a test wants."""

    def __init__(self, began: Path, over: Path) -> None:
        self.began, self.over = began, over

    def __reduce__(self) -> Any:
        return be_busy, (self.began, self.over)


def make_heavy(log: Path, gate: Path, began: Path, over: Path) -> Heavy:
    """Wait for the gate, and return what takes long to unpickle."""
    log_and_wait(log, gate)
    return Heavy(began, over)


def test_a_client_that_unpickles_for_long_keeps_its_lease(
    queue: Queue,
    start_worker: Callable[..., WorkerProcess],
    link: Link,
    keys: Keys,
    start_client: Callable[..., Client],
    tmp_path: Path,
) -> None:
    """H40: it unpickles for several leases, monitors look, and its other task goes on."""
    env = {"DASK_REDISQ__FT_INTERVAL": "1", "DASK_REDISQ__ALIVE_EXPIRY": "1"}
    start_worker("test", "--nworkers", "2", env=env)
    queue.wait_for_workers(2, timeout=90)
    code, log, gate = waiting(tmp_path)
    late, began, over, other = (tmp_path / name for name in ("late", "began", "over", "other"))
    code += f"""
heavy = (make_heavy, Path(LOG), Path(GATE), Path({str(began)!r}), Path({str(over)!r}))
late = (log_and_wait, Path({str(other)!r}), Path({str(late)!r}))
print(*queue.get({{"heavy": heavy, "late": late}}, ["heavy", "late"]))
"""
    client = start_client(code, DASK_REDISQ__CLIENT_LEASE="1")
    wait_until(lambda: len(pids(log)) == 1)
    wait_until(lambda: [p for p in client.helpers() if p.num_threads() > 1])  # it is up
    (row,) = queue.jobs()
    gate.touch()
    wait_until(began.exists)
    name = keys("client", row["id"])
    for _ in range(6):  # two leases
        wait_until(lambda: link.command("PTTL", name) < 800)
        wait_until(lambda: link.command("PTTL", name) > 900)
    over.touch()
    late.touch()
    assert client.output() == f"heavy {pids(other)[0]}"
    assert len(pids(log)) == len(pids(other)) == 1


def test_a_helper_does_not_speak_for_a_stopped_client(
    queue: Queue,
    link: Link,
    keys: Keys,
    start_client: Callable[..., Client],
    tmp_path: Path,
) -> None:
    """It may never go on, and its job would hold the workers; it is heard of again when it does."""
    code, _, _ = waiting(tmp_path)
    client = start_client(code + WAITING, DASK_REDISQ__CLIENT_LEASE="1")
    wait_until(lambda: len(queue.jobs()) == 1)
    wait_until(client.helpers)
    (row,) = queue.jobs()
    psutil.Process(client.process.pid).suspend()
    wait_until(lambda: not link.command("EXISTS", keys("client", row["id"])))
    psutil.Process(client.process.pid).resume()
    wait_until(lambda: link.command("EXISTS", keys("client", row["id"])))


def test_a_helper_ends_with_its_killed_client(
    queue: Queue, start_client: Callable[..., Client], tmp_path: Path
) -> None:
    """Though a forked child of the client holds the other end of its pipe."""
    code, _, _ = waiting(tmp_path)
    code += f"""
from dask_redisq import client_lease
client_lease.hold(queue.url, "test", "unknown", 1.0)
child = os.fork()
if child == 0:
    time.sleep(60)
print(child, flush=True)
{WAITING}
"""
    client = start_client(code)
    assert client.process.stdout is not None
    child = psutil.Process(int(client.process.stdout.readline()))
    (helper,) = client.helpers()
    client.process.kill()
    try:
        wait_until(lambda: is_gone(helper), timeout=5)
        assert not is_gone(child)
    finally:
        child.kill()


def test_a_job_without_its_helper_is_renewed_by_its_own_calls(
    queue: Queue, link: Link, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process can be started: the client asks often enough itself."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    client_lease.hold(queue.url, "test", "unknown", 1.0)
    with dask.config.set({"redisq.client-lease": 1}):
        job = Background(queue.get, {"x": (inc, 1)}, "x")
        wait_until(lambda: len(queue.jobs()) == 1)
        (row,) = queue.jobs()
        for _ in range(3):
            link.command("DEL", keys("client", row["id"]))
            wait_until(lambda: link.command("EXISTS", keys("client", row["id"])), timeout=1)
    assert queue.cancel(row["id"])
    with pytest.raises(redisq.JobCancelled):
        job.result()


def test_monitors_renew_the_large_values_of_a_detached_job(
    queue: Queue, workers: WorkerProcess, link: Link, keys: Keys, tmp_path: Path
) -> None:
    """Its value waits for a task that runs for days, and nobody else asks."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    large = dask.delayed(np.arange)(100_000)
    both = dask.delayed(lambda a, _: len(a))(large, dask.delayed(log_and_wait)(log, gate))
    future = queue.compute(both, detach=True)
    wait_until(lambda: len(pids(log)) == 1)
    wait_until(lambda: link.command("HLEN", keys("values", future.id)) == 1)  # accepted
    (name,) = [n for n in job_keys(link, future.id) if b":value:" in n]
    link.command("PEXPIRE", name, 60_000)
    link.command("DEL", keys("monitor"))
    wait_until(lambda: looked(link, keys))
    assert link.command("PTTL", name) > 86_400_000
    gate.touch()
    assert future.result(60) == 100_000


def test_a_future_whose_server_came_back_empty_is_given_its_job_again(
    queue: Queue, start_worker: Callable[..., WorkerProcess], link: Link, tmp_path: Path
) -> None:
    """All who wait for it get the answer; so does who asks whether it is done."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    start_worker("test", "--nworkers", "1", "--alive-expiry", "1")
    queue.wait_for_workers(1, timeout=90)
    future = queue.compute(dask.delayed(inc)(dask.delayed(log_and_wait)(log, gate)))
    first = future.id
    wait_until(lambda: len(pids(log)) == 1)
    link.command("FLUSHALL")
    assert not future.done()
    second = future.id
    assert second != first
    threads = [Background(future.result) for _ in range(2)]
    link.command("FLUSHALL")
    wait_until(lambda: [row["id"] not in {first, second} for row in queue.jobs()] == [True])
    gate.touch()
    assert {waits.result() for waits in threads} == {pids(log)[-1] + 1}
    assert future.done()


def test_who_sees_late_that_a_job_was_lost_gets_the_answer_of_the_next_one(
    queue: Queue,
    start_worker: Callable[..., WorkerProcess],
    link: Link,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other thread has had it made again by then, and has read its answer."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    start_worker("test", "--nworkers", "1", "--alive-expiry", "1")
    queue.wait_for_workers(1, timeout=90)
    future = queue.compute(dask.delayed(log_and_wait)(log, gate))
    waits, read, wait = threading.Event(), threading.Event(), Follower._wait

    def wait_late(self: Follower, *args: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            wait(self, *args)
        else:
            waits.set()
            assert read.wait(60)

    monkeypatch.setattr(Follower, "_wait", wait_late)
    late = Background(future.result)
    assert waits.wait(60)
    wait_until(lambda: len(pids(log)) == 1)
    link.command("FLUSHALL")
    gate.touch()
    assert future.result(60) == pids(log)[-1]
    read.set()
    assert late.result() == pids(log)[-1]


def test_a_future_of_a_client_that_slept_past_its_lease_goes_on(
    queue: Queue,
    workers: WorkerProcess,
    link: Link,
    keys: Keys,
    start_client: Callable[..., Client],
    tmp_path: Path,
) -> None:
    """Its job was cancelled and swept while it was stopped."""
    code, log, gate = waiting(tmp_path)
    code += "future = queue.compute(dask.delayed(log_and_wait)(Path(LOG), Path(GATE)))\n"
    client = start_client(code + "print(future.result())")
    wait_until(lambda: len(pids(log)) == 1)
    (row,) = queue.jobs()
    sleep_past_lease(client, link, keys, row["id"])
    wait_until(lambda: len(pids(log)) == 2)
    gate.touch()
    assert client.output() == str(pids(log)[1])


def test_a_future_that_was_cancelled_is_not_submitted_again(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Somebody wanted its end."""
    future = queue.compute(dask.delayed(log_and_wait)(tmp_path / "log", tmp_path / "gate"))
    queue.cancel(future.id)
    assert future.done()
    with pytest.raises(redisq.JobCancelled):
        future.result(30)


def test_helpers_that_ended_are_no_zombies_for_long(queue: Queue, workers: WorkerProcess) -> None:
    """Each holds one persisted value that is let go: thirty such left thirty of them."""
    mine = psutil.Process()

    def helpers() -> list[psutil.Process]:
        return [p for p in mine.children() if p.pid not in others]

    others = {p.pid for p in mine.children()}
    for _ in range(6):
        kept = dask.delayed(inc)(1).persist(scheduler=queue.get)
        del kept
        wait_until(lambda: all(p.status() == psutil.STATUS_ZOMBIE for p in helpers()))
    # A process is one already while a thread of it ends, and cannot be waited for yet.
    assert len(helpers()) <= 2
