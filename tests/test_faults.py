"""What dies, and what follows: slots, workers, supervisors, clients; tasks that raise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import dask
import psutil
import pytest
from conftest import PATH, WorkerProcess, all_idle, is_gone, wait_until
from dask.utils_test import inc
from proxy import LossyProxy

import dask_redisq as redisq
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.queue import Queue


class Background:
    """A `get` in a thread of its own."""

    def __init__(self, get: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.value: Any = None
        self.error: BaseException | None = None

        def run() -> None:
            try:
                self.value = get(*args, **kwargs)
            except BaseException as error:
                self.error = error

        self._thread = Thread(target=run)
        self._thread.start()

    def result(self, timeout: float = 30.0) -> Any:
        """Return what `get` returned, or raise what it raised."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "get did not return"
        if self.error is not None:
            raise self.error
        return self.value


def log_and_wait(log: Path, gate: Path) -> int:
    """Note who runs; wait until the gate is there; return the process id."""
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    while not gate.exists():
        time.sleep(0.005)
    return os.getpid()


def pids(log: Path) -> list[int]:
    """Return who ran so far."""
    return [int(x) for x in log.read_text().split()] if log.exists() else []


@pytest.mark.alone
def test_a_killed_slots_task_runs_again_within_a_second(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """SIGKILL of the slot in its task: another takes it over; fault row 4."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    job = Background(queue.get, {"x": (log_and_wait, log, gate), "y": (inc, "x")}, "y")
    wait_until(lambda: len(pids(log)) == 1)
    os.kill(pids(log)[0], signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: len(pids(log)) == 2, timeout=1.0)
    assert time.monotonic() - killed < 1.0
    gate.touch()
    assert job.result() == pids(log)[1] + 1


def test_the_nth_death_of_its_process_fails_the_job(queue: Queue, workers: WorkerProcess) -> None:
    """A task that kills its slot runs ``allowed_failures`` times, then it is named."""
    dsk: dict[Any, Any] = {("ok", i): (inc, i) for i in range(50)}
    dsk["boom"] = (os._exit, 7)
    with pytest.raises(redisq.WorkerDied, match=r"'boom'.*2 deaths.*exit code 7.*exit code 7"):
        queue.get(dsk, list(dsk), allowed_failures=2)
    assert queue.get({"x": (inc, 1)}, "x") == 2


def test_a_poison_that_follows_another_task_is_named_itself(
    queue: Queue, workers: WorkerProcess
) -> None:
    """A (fine) -> B (kills its slot), run in one lease: B is charged, not A; hole H11."""
    for i in range(3):  # until `inc` is known to be short, so that B follows in the lease
        queue.get({("x", j): (inc, j) for j in range(100)}, [("x", i)])
    with pytest.raises(redisq.WorkerDied, match=r"task 'b' was in hand at 3 deaths"):
        queue.get({"a": (inc, 6), "b": (os._exit, "a")}, "b")


@pytest.mark.alone
def test_a_vanished_workers_tasks_run_again(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Supervisor and slots stop at once, as a host does: expiry + interval; fault row 13."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    lost = start_worker("test", "--nworkers", "1", "--alive-expiry", "1")
    queue.wait_for_workers(1, timeout=90)
    settings = {"ft_interval": 1, "alive_expiry": 1}
    job = Background(queue.get, {"x": (log_and_wait, log, gate)}, "x", **settings)
    wait_until(lambda: len(pids(log)) == 1)
    time.sleep(1.2)  # the client must have been connected for one expiry before it may judge
    slots = lost.slots()
    for process in [psutil.Process(lost.pid), *slots]:
        process.suspend()
    stopped = time.monotonic()
    start_worker("test", "--nworkers", "1", "--alive-expiry", "1")
    wait_until(lambda: len(pids(log)) == 2, timeout=6)
    assert time.monotonic() - stopped < 1 + 1 + 1.5
    gate.touch()
    assert job.result() == pids(log)[1]
    for process in [*slots, psutil.Process(lost.pid)]:
        process.resume()


def test_a_value_that_is_lost_with_its_worker_is_made_again(
    queue: Queue,
    start_worker: Callable[..., WorkerProcess],
    link: Link,
    keys: Keys,
    tmp_path: Path,
) -> None:
    """A worker is killed in a task, and what the task had been given is deleted: both run again."""
    made, log, gate = tmp_path / "made", tmp_path / "log", tmp_path / "gate"

    def use(value: int, log: Path, gate: Path) -> tuple[int, int]:
        return value, log_and_wait(log, gate)

    lost = start_worker("test", "--nworkers", "1", "--alive-expiry", "1")
    dsk = {"a": (log_and_wait, made, tmp_path), "b": (use, "a", log, gate)}  # a waits for nothing
    settings = {"ft_interval": 1, "alive_expiry": 1, "chunk_size": 1}
    job = Background(queue.get, dsk, "b", **settings)
    wait_until(lambda: len(pids(log)) == 1)
    (slot,), (row,) = lost.slots(), queue.jobs()
    os.kill(lost.pid, signal.SIGKILL)
    wait_until(lambda: is_gone(slot))
    assert link.command("DEL", keys("values", row["id"])) == 1
    start_worker("test", "--nworkers", "1", "--alive-expiry", "1")
    wait_until(lambda: len(pids(log)) == 2)
    gate.touch()
    assert job.result() == (pids(made)[1], pids(log)[1])
    assert set(pids(made)[1:]) == set(pids(log)[1:]) != {slot.pid}


def test_a_late_second_result_is_dropped(
    queue: Queue, workers: WorkerProcess, link: Link, keys: Keys, tmp_path: Path
) -> None:
    """A slot that was presumed dead comes back with a result: the first counts; row 7."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    job = Background(queue.get, {"x": (log_and_wait, log, gate)}, "x")
    wait_until(lambda: len(pids(log)) == 1)
    first = psutil.Process(pids(log)[0])
    first.suspend()
    (row,) = queue.workers()
    at = next(i for i, p in enumerate(workers.slots()) if p.pid == first.pid)
    slot = next(x for i, x in enumerate(_slot_ids(workers)) if i == at)
    assert slot in row["slots"]
    args = {"worker": row["id"], "slot": slot, "seq": -1, "begun": -1, "position": -1}
    args |= {"kind": "", "record": b"", "retries": -1}
    link.call("unregister", keys, **args)
    wait_until(lambda: len(pids(log)) == 2)
    gate.touch()
    assert job.result() == pids(log)[1]
    before = queue.stats()["finished"]
    first.resume()
    wait_until(lambda: _status(first) == "sleeping")
    assert queue.get({"y": (inc, 1)}, "y") == 2
    assert queue.stats()["finished"] == before + 1


def _status(process: psutil.Process) -> str:
    return str(process.status())


def _slot_ids(worker: WorkerProcess) -> list[str]:
    lines = [p.cmdline() for p in worker.slots()]
    return [line[line.index("--slot") + 1] for line in lines]


def test_slots_end_with_their_supervisor(queue: Queue, workers: WorkerProcess) -> None:
    """SIGKILL of the supervisor alone: its slots are gone within a second; fault row 5."""
    slots = workers.slots()
    running: set[int] = set()
    while len(running) < 2:  # both have started
        running.add(queue.get({"pid": (os.getpid,)}, "pid"))
    os.kill(workers.pid, signal.SIGKILL)
    wait_until(lambda: all(is_gone(slot) for slot in slots), timeout=1.0)


def test_a_slot_in_c_code_ends_with_its_supervisor(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Also while the task holds the GIL."""

    def hold(log: Path) -> int:
        log.write_text(str(os.getpid()))
        return int(pow(3, 12_000_000) % 7)

    log = tmp_path / "log"
    job = Background(queue.get, {"x": (hold, log)}, "x", no_workers_timeout=2)
    wait_until(lambda: log.exists() and log.read_text())
    slots = workers.slots()
    os.kill(workers.pid, signal.SIGKILL)
    wait_until(lambda: all(is_gone(slot) for slot in slots), timeout=1.0)
    queue.remove(timeout=0)
    with pytest.raises(redisq.RedisqError):
        job.result()


def test_sigterm_drains(queue: Queue, workers: WorkerProcess, tmp_path: Path) -> None:
    """The task in hand is finished and counted; the worker leaves with exit code 0; fault row 6."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    job = Background(queue.get, {"x": (log_and_wait, log, gate)}, "x")
    wait_until(lambda: len(pids(log)) == 1)
    os.kill(workers.pid, signal.SIGTERM)
    wait_until(lambda: len(workers.slots()) == 1)  # the idle one is gone at once
    gate.touch()
    assert job.result() == pids(log)[0]
    assert workers.wait() == 0
    assert queue.workers() == []


class Custom(Exception):
    """An exception with arguments of its own."""

    def __init__(self, a: int, b: str) -> None:
        super().__init__(a, b)
        self.a, self.b = a, b


def raise_custom(x: int) -> None:
    """Raise, at the end of a call chain."""
    raise Custom(x, "why")


def test_a_task_that_raises_gives_its_own_type_and_traceback(
    queue: Queue, workers: WorkerProcess
) -> None:
    """Type, attributes, and the line that raised, as if it had been here."""
    with pytest.raises(Exception, match="why") as info:
        queue.get({"a": (inc, 1), "x": (raise_custom, "a")}, "x")
    assert type(info.value).__name__ == "Custom"
    assert (info.value.a, info.value.b) == (2, "why")  # type: ignore[attr-defined]
    assert info.traceback[-1].name == "raise_custom"
    assert any("'x'" in note for note in info.value.__notes__)


def test_the_siblings_of_a_failed_task_stop(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Waiting ones never start, and a running one is ended a moment later."""
    log, gate = tmp_path / "log", tmp_path / "gate"

    def fail(log: Path) -> None:
        while len(pids(log)) < 1:
            time.sleep(0.005)
        raise ValueError("first")

    dsk: dict[Any, Any] = {"long": (log_and_wait, log, gate), "bad": (fail, log)}
    dsk |= {("later", i): (log_and_wait, log, gate) for i in range(20)}
    with pytest.raises(ValueError, match="first"):
        queue.get(dsk, list(dsk), chunk_size=1)
    time.sleep(0.2)
    started = len(pids(log))
    assert started <= 2
    wait_until(lambda: queue.get({"y": (os.getpid,)}, "y") and not _busy(pids(log)), timeout=5)
    assert len(pids(log)) == started


def _busy(running: list[int]) -> bool:
    return any(psutil.pid_exists(p) for p in running)


#: It sends itself the signal, and tells the time from then to the exception: by its own clock,
#: so that neither its start nor its end is part of it.
INTERRUPTED = """
import os, pathlib, signal, sys, threading, time
from conftest import wait_until
from test_faults import log_and_wait, pids
import dask_redisq as redisq
queue = redisq.Queue("test", sys.argv[1])
log, gate = map(pathlib.Path, sys.argv[2:])
sent = []
def interrupt():
    wait_until(lambda: pids(log))
    sent.append(time.monotonic())
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    queue.get({"x": (log_and_wait, log, gate)}, "x")
except KeyboardInterrupt:
    print(time.monotonic() - sent[0])
    raise
"""


def test_ctrl_c_cancels_the_job_and_cleans_its_keys(
    queue: Queue, workers: WorkerProcess, link: Link, tmp_path: Path
) -> None:
    """In a waiting client: KeyboardInterrupt within 1 s, and no key of the job; fault row 34."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, queue.url, log, gate],
        env={**os.environ, "PYTHONPATH": PATH},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stderr.rstrip().endswith(b"KeyboardInterrupt")
    assert float(done.stdout) < 1.0
    assert not [name for name in link.command("KEYS", "*") if b":job:" in name]
    wait_until(lambda: not _busy(pids(log)), timeout=5)


def test_removal_is_told(
    queue: Queue, start_worker: Callable[..., WorkerProcess], link: Link
) -> None:
    """An idle worker of a removed queue is gone, exit 0, within 2 s, and all keys with it."""
    worker = start_worker("test", "--nworkers", "2")
    queue.wait_for_workers(2, timeout=90)
    started = time.monotonic()
    queue.remove()
    assert worker.wait(2.0) == 0
    assert time.monotonic() - started < 2.0
    assert link.command("KEYS", "redisq:{test}:*") == []


def test_a_slot_that_leaves_a_removed_queue_makes_no_key(
    queue: Queue, workers: WorkerProcess, link: Link, keys: Keys
) -> None:
    """The remover is faster than the signal: an idle slot, told to end, finds no queue."""
    slots = workers.slots()
    wait_until(lambda: all_idle(link, queue))
    supervisor = psutil.Process(workers.pid)
    supervisor.suspend()
    wait_until(lambda: supervisor.status() == psutil.STATUS_STOPPED)
    link.command("PING")  # a beat that it had sent is heard
    link.command("FLUSHALL")
    for slot in slots:
        slot.terminate()
    wait_until(lambda: all(map(is_gone, slots)))
    left = link.command("KEYS", "*")
    supervisor.kill()
    assert left == []


def test_a_word_of_removal_whose_reply_was_lost_is_heard(
    queue: Queue, start_worker: Callable[..., WorkerProcess], link: Link, tmp_socket: Path
) -> None:
    """The connection breaks between the server's answer and the worker: it leaves all the same."""
    with LossyProxy(tmp_socket, queue.url, lost=[b":control:", b"stop"]) as proxy:
        worker = start_worker("test", "--nworkers", "1", url=proxy.url)
        queue.wait_for_workers(1, timeout=90)
        queue.remove()
        assert worker.wait(2.0) == 0
        assert proxy.losses == 1
    assert link.command("KEYS", "redisq:{test}:*") == []


def test_a_word_of_cancellation_whose_reply_was_lost_is_heard(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path, tmp_socket: Path
) -> None:
    """A running task of a job that failed is ended, though the word for it was lost on the way."""
    log, gate = tmp_path / "log", tmp_path / "gate"

    def fail(log: Path) -> None:
        while len(pids(log)) < 1:
            time.sleep(0.005)
        raise ValueError("first")

    with LossyProxy(tmp_socket, queue.url, lost=[b":control:", b"cancel"]) as proxy:
        start_worker("test", "--nworkers", "2", url=proxy.url)
        queue.wait_for_workers(2, timeout=90)
        with pytest.raises(ValueError, match="first"):
            queue.get({"long": (log_and_wait, log, gate), "bad": (fail, log)}, ["long", "bad"])
        wait_until(lambda: not _busy(pids(log)), timeout=5)
        assert proxy.losses == 1


def test_a_word_of_removal_that_comes_twice_is_obeyed_once(
    queue: Queue, start_worker: Callable[..., WorkerProcess], link: Link, keys: Keys
) -> None:
    """Two clients remove one queue at the same time; its worker leaves in good order."""
    worker = start_worker("test", "--nworkers", "1")
    queue.wait_for_workers(1, timeout=90)
    psutil.Process(worker.pid).suspend()
    for _ in range(2):
        assert link.call("stop_workers", keys, reason="it was removed", life=1000) == 1
    psutil.Process(worker.pid).resume()
    assert worker.wait(2.0) == 0
    assert worker.output().count("was removed") == 1


def test_the_removal_of_a_queue_spares_others(queue: Queue, link: Link) -> None:
    """A name that reads as a pattern removes only its own keys."""
    link.command("SET", Keys("tests")("queue"), "1")
    link.command("HSET", Keys("te*")("queue"), "schema", "1")
    Queue("te*", queue.url).remove()
    assert link.command("KEYS", "*") == [Keys("tests")("queue").encode()]


def test_a_worker_of_two_queues_leaves_only_the_removed_one(
    queue: Queue, start_worker: Callable[..., WorkerProcess], link: Link
) -> None:
    """It ends when none is left, as doRedis's does."""
    other = Queue("other", queue.url)
    worker = start_worker("test", "other", "--nworkers", "2")
    queue.wait_for_workers(2, timeout=90)
    other.wait_for_workers(2, timeout=90)
    dsk = {("x", i): (inc, i) for i in range(300)}
    assert queue.get(dsk, ("x", 3)) == other.get(dsk, ("x", 3)) == 4
    queue.remove()
    assert other.get(dsk, ("x", 5)) == 6
    other.remove()
    assert worker.wait(3.0) == 0


def test_a_forgotten_worker_registers_again(
    queue: Queue, start_worker: Callable[..., WorkerProcess], link: Link
) -> None:
    """FLUSHALL is no word of removal: the worker comes back by itself."""
    start_worker("test", "--nworkers", "1", "--alive-expiry", "1")
    queue.wait_for_workers(1, timeout=90)
    link.command("FLUSHALL")
    wait_until(lambda: len(queue.workers()) == 1 and queue.workers()[0]["slots"], timeout=5)
    assert queue.get({"x": (inc, 1)}, "x") == 2


def test_scripts_that_the_server_forgot_are_loaded_again(
    queue: Queue, workers: WorkerProcess, link: Link
) -> None:
    """SCRIPT FLUSH in the middle of things is invisible; fault row 24."""
    for i in range(5):
        link.command("SCRIPT", "FLUSH")
        dsk = {("x", j): (inc, j) for j in range(500)}
        assert queue.get(dsk, ("x", i)) == i + 1


def test_a_nested_compute_runs_in_its_slot(queue: Queue, workers: WorkerProcess) -> None:
    """A task that computes does not wait for other slots."""

    def nested(n: int) -> int:
        return int(dask.delayed(sum)([dask.delayed(inc)(i) for i in range(n)]).compute())

    dsk = {("n", i): (nested, i) for i in range(6)}
    assert queue.get(dsk, list(dsk)) == tuple(sum(range(1, i + 1)) for i in range(6))
