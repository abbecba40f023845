"""Tasks that misbehave: that hang, kill their process, fail at times, or leave something behind."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from conftest import WorkerProcess, wait_until
from dask.utils_test import inc
from test_faults import Background, log_and_wait, pids

import dask_redisq as redisq
from dask_redisq.link import Link
from dask_redisq.queue import Queue


def hang_at_first(log: Path, times: int) -> int:
    """Note when it runs; hang the first `times` times; return how often it ran."""
    runs = note(log)
    if runs <= times:
        time.sleep(600)
    return runs


def fail_at_first(log: Path, times: int) -> int:
    """Note when it runs; raise the first `times` times; return how often it ran."""
    runs = note(log)
    if runs <= times:
        raise ValueError(f"run {runs}")
    return runs


def note(log: Path) -> int:
    """Note the time in a log; return how many times are in it."""
    with log.open("a") as file:
        file.write(f"{time.time()}\n")
    return len(log.read_text().split())


def times_in(log: Path) -> list[float]:
    """Return the times that were noted."""
    return [float(x) for x in log.read_text().split()] if log.exists() else []


# timeout=


def say_and_sleep(seconds: float) -> None:
    """Say something before that."""
    sys.stdout.write("good night\n")
    sys.stdout.flush()
    time.sleep(seconds)


def test_a_task_that_takes_too_long_is_ended_and_named(
    queue: Queue, workers: WorkerProcess
) -> None:
    """Its slot is killed, the error tells what it exceeded, the worker goes on; row 9."""
    slots = workers.slots()
    with pytest.raises(redisq.TaskTimeout, match=r"'hang'.*0\.3 s on worker one") as info:
        queue.get({"hang": (say_and_sleep, 600), "ok": (inc, 1)}, ["hang", "ok"], timeout=0.3)
    assert isinstance(info.value, TimeoutError)
    assert re.search(r"by signal SIGKILL, after a peak of [\d.]+ MiB\.", str(info.value))
    assert re.search(r"printed on one:\n .* good night", str(info.value))
    wait_until(lambda: sum(slot.is_running() for slot in slots) == 1)
    queue.wait_for_workers(2, timeout=90)
    assert queue.get({"x": (inc, 1)}, "x", timeout=5) == 2


def test_an_annotated_timeout_is_for_its_task_only(queue: Queue, workers: WorkerProcess) -> None:
    """The others may take longer, in the same lease too."""
    nap = dask.delayed(time.sleep)
    with dask.annotate(timeout=0.2):
        short = nap(600, dask_key_name="short")
    longer = nap(0.6, dask_key_name="longer")
    assert dask.compute(longer, scheduler=queue.get) == (None,)
    with pytest.raises(redisq.TaskTimeout, match=r"'short'.*0\.2 s"):
        dask.compute(longer, short, scheduler=queue.get, optimize_graph=False)


def test_a_timeout_with_retries_runs_again(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Two hung runs, then a good one; it is counted as a failure, not as a death."""
    dsk = {"x": (hang_at_first, tmp_path / "log", 2)}
    assert queue.get(dsk, "x", timeout=0.3, retries=2, allowed_failures=1) == 3


@pytest.mark.parametrize(
    "timeout", [0, -1, 1e-9, 1e300, 10**400, "soon", "5", True, float("inf"), float("nan")]
)
def test_a_timeout_that_is_none_is_refused(queue: Queue, link: Link, timeout: Any) -> None:
    """Before anything is sent; one that a slot's page cannot hold would kill each slot, too."""
    words = "a number of seconds, at least 0.001 and at most 1,000,000,000, not "
    with pytest.raises(ValueError, match=f"the timeout is {words}"):
        queue.get({"x": (inc, 1)}, "x", timeout=timeout)
    with dask.annotate(timeout=timeout):
        x = dask.delayed(inc)(1)
    with pytest.raises(ValueError, match=f"the timeout of task .* is {words}"):
        x.compute(scheduler=queue.get)
    assert link.command("DBSIZE") == 0


# retries=


def test_a_task_that_fails_at_times_succeeds_with_retries(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """As many runs as it takes, and its siblings do not stop meanwhile."""
    dsk: dict[Any, Any] = {("y", i): (inc, i) for i in range(100)}
    dsk["x"] = (fail_at_first, tmp_path / "log", 2)
    dsk["z"] = (inc, "x")
    assert queue.get(dsk, ["z", ("y", 99)], retries=2) == (4, 100)


def test_without_retries_left_the_last_error_is_raised(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """And it tells how often the task was tried."""
    with pytest.raises(ValueError, match="run 3") as info:
        queue.get({"x": (fail_at_first, tmp_path / "log", 9)}, "x", retries=2)
    assert any("failed 3 times" in note for note in info.value.__notes__)
    assert len(times_in(tmp_path / "log")) == 3


def test_annotated_retries_go_before_the_jobs(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """By key, as Dask's annotations are."""
    with dask.annotate(retries=2):
        x = dask.delayed(fail_at_first)(tmp_path / "x", 2)
    assert x.compute(scheduler=queue.get) == 3
    with dask.annotate(retries=0):
        y = dask.delayed(fail_at_first)(tmp_path / "y", 1)
    with pytest.raises(ValueError, match="run 1"):
        y.compute(scheduler=queue.get, retries=5)


def test_a_retry_comes_after_its_delay(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """By the server's clock; long before the slow re-check of an idle slot."""
    dsk = {"x": (fail_at_first, tmp_path / "log", 2)}
    started = time.monotonic()
    assert queue.get(dsk, "x", retries=2, retry_delay=0.5) == 3
    assert time.monotonic() - started < 4
    first, second, third = times_in(tmp_path / "log")
    assert min(second - first, third - second) >= 0.5


def test_retries_that_are_no_number_are_refused(queue: Queue) -> None:
    """Before anything is sent."""
    with pytest.raises(ValueError, match="retries"):
        queue.get({"x": (inc, 1)}, "x", retries=-1)
    with dask.annotate(retries=1.5):
        x = dask.delayed(inc)(1, dask_key_name="x")
    with pytest.raises(ValueError, match="'x'"):
        x.compute(scheduler=queue.get)


# Deaths


def speak_and_die() -> None:
    """Print something, and be killed."""
    sys.stdout.write("reading the file\n")
    sys.stderr.write("something is odd\n")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_death_is_told_with_all_that_is_known(queue: Queue, workers: WorkerProcess) -> None:
    """Task, workers, signal, memory, the last lines; and they went where it prints; row 11."""
    with pytest.raises(redisq.WorkerDied) as info:
        queue.get({"boom": (speak_and_die,)}, "boom", allowed_failures=2)
    told = str(info.value)
    assert "task 'boom' was in hand at 2 deaths" in told
    assert told.count("on one by signal SIGKILL while it ran, after a peak of") == 2
    assert "MiB" in told
    assert "out-of-memory killer" in told
    assert re.search(r"    \[job \w+ task \d+\] reading the file", told)
    assert re.search(r"    \[job \w+ task \d+\] something is odd", told)
    workers.process.terminate()
    workers.wait()
    assert workers.output().count("something is odd") == 2


def test_a_segfault_is_told_by_its_name(queue: Queue, workers: WorkerProcess) -> None:
    """Nothing of the out-of-memory killer is said then; fault row 10."""
    with pytest.raises(redisq.WorkerDied, match=r"'boom'.*SIGSEGV") as info:
        queue.get({"boom": (ctypes.string_at, 0)}, "boom", allowed_failures=1)
    assert "out-of-memory" not in str(info.value)


def test_only_the_last_of_a_long_output_is_told(queue: Queue, workers: WorkerProcess) -> None:
    """Twenty lines."""

    def chat() -> None:
        for i in range(1_000):
            sys.stdout.write(f"line {i}\n")
        sys.stdout.flush()
        os._exit(3)

    with pytest.raises(redisq.WorkerDied, match="exit code 3") as info:
        queue.get({"x": (chat,)}, "x", allowed_failures=1)
    lines = str(info.value).splitlines()
    assert re.fullmatch(r"    \[job \w+ task 0\] line 999", lines[-1])
    assert sum("] line" in line for line in lines) == 20


@pytest.mark.alone
def test_the_task_of_a_killed_slot_runs_again_with_another_slot_idle(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Within half a second."""
    assert _time_to_run_again(queue, tmp_path) < 0.5


@pytest.mark.alone
def test_the_task_of_a_killed_slot_runs_again_without_another_slot(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Within two seconds: a new process has to start."""
    start_worker("test", "--nworkers", "1")
    queue.wait_for_workers(1, timeout=90)
    assert _time_to_run_again(queue, tmp_path) < 2.0


def _time_to_run_again(queue: Queue, folder: Path) -> float:
    log, gate = folder / "log", folder / "gate"
    job = Background(queue.get, {"x": (log_and_wait, log, gate)}, "x")
    wait_until(lambda: len(pids(log)) == 1)
    os.kill(pids(log)[0], signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: len(pids(log)) == 2)
    seconds = time.monotonic() - killed
    gate.touch()
    assert job.result() == pids(log)[1]
    return seconds


# Hostages


def test_tasks_behind_a_long_one_run_elsewhere(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """60 tasks, 30 a slot; the first to begin waits for all others, its lease's too; hole H13."""

    def run(log: Path, i: int, n: int) -> int:
        note(log)
        try:
            (log.parent / "first").touch(exist_ok=False)
            first = True
        except FileExistsError:
            first = False
        while first and len(times_in(log)) < n:
            time.sleep(0.005)
        return -os.getpid() if first else os.getpid()

    n, log = 60, tmp_path / "log"
    dsk: dict[Any, Any] = {("x", i): (run, log, i, n) for i in range(n)}
    ran_by = queue.get(dsk, list(dsk), chunk_size=n // 2)
    assert len(times_in(log)) == n, "a task ran twice"
    (holder,) = [-pid for pid in ran_by if pid < 0]
    assert holder not in ran_by


# What is left behind


def leave_a_child(log: Path, then: str) -> None:
    """Start a process that would run for ten minutes, and maybe die."""
    child = subprocess.Popen(["sleep", "600"])
    log.write_text(str(child.pid))
    if then == "exit":
        os._exit(1)
    if then == "hang":
        time.sleep(600)


@pytest.mark.parametrize("then", ["exit", "hang", "return"])
def test_processes_that_a_task_left_end_with_its_slot(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, then: str
) -> None:
    """Whether it dies, is killed, or ends in good order; fault row 45."""
    log = tmp_path / "log"
    try:
        queue.get({"x": (leave_a_child, log, then)}, "x", allowed_failures=1, timeout=1)
    except redisq.RedisqError:
        assert then != "return"
    (child,) = pids(log)
    if then == "return":
        assert psutil.pid_exists(child)
        workers.process.terminate()
        assert workers.wait() == 0
    wait_until(lambda: not psutil.pid_exists(child) or _is_zombie(child))


def test_processes_that_a_task_left_end_with_the_supervisor(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """SIGKILL of the supervisor alone: its slots end, and what their tasks left; rows 5, 45."""
    log = tmp_path / "log"
    assert queue.get({"x": (leave_a_child, log, "return")}, "x") is None
    (child,) = pids(log)
    guards = psutil.Process(workers.pid).children()
    os.kill(workers.pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(child) or _is_zombie(child))
    wait_until(lambda: not any(p.is_running() and not _is_zombie(p.pid) for p in guards))


def _is_zombie(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


# The GIL


def test_a_task_that_holds_the_gil_is_no_false_alarm(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """For ten times the alive expiry, while two others judge; it runs once; fault row 8."""

    def hold(log: Path) -> int:
        runs = note(log)
        ctypes.PyDLL(None).usleep(5_000_000)  # a call that does not release the GIL
        return runs

    for _ in range(2):
        start_worker("test", "--nworkers", "1", "--alive-expiry", "0.5")
    queue.wait_for_workers(2, timeout=90)
    before = {row["id"] for row in queue.workers()}
    dsk = {"x": (hold, tmp_path / "log")}
    assert queue.get(dsk, "x", alive_expiry=0.5, ft_interval=1) == 1
    assert len(times_in(tmp_path / "log")) == 1
    assert {row["id"] for row in queue.workers()} == before


# Values above the server's limit


@pytest.fixture
def small_server(link: Link) -> Any:
    """The server holds at most 1 MB in one value."""
    link.command("CONFIG", "SET", "proto-max-bulk-len", "1048576")
    yield
    link.command("CONFIG", "SET", "proto-max-bulk-len", "536870912")


def test_a_result_above_the_servers_limit_is_an_error_with_its_task(
    queue: Queue, workers: WorkerProcess, small_server: None, tmp_path: Path
) -> None:
    """It runs once, retries or not, and the worker lives; fault row 31."""

    def make(log: Path) -> bytes:
        note(log)
        return bytes(2_000_000)

    slots = workers.slots()
    with pytest.raises(redisq.ValueTooLarge, match=r"2,000,0\d\d bytes.*at most 1,047,552") as info:
        queue.get({"big": (make, tmp_path / "log")}, "big", retries=3)
    assert any("'big'" in note for note in info.value.__notes__)
    assert len(times_in(tmp_path / "log")) == 1
    assert queue.get({"x": (bytes, 1_000_000)}, "x") == bytes(1_000_000)
    assert workers.slots() == slots


def test_an_argument_above_the_servers_limit_is_an_error_with_its_task(
    queue: Queue, workers: WorkerProcess, small_server: None
) -> None:
    """At once, and not after the patience for a server that is away."""
    dsk: dict[Any, Any] = {("x", i): (inc, i) for i in range(5)}
    dsk["big"] = (len, bytes(2_000_000))
    started = time.monotonic()
    with pytest.raises(redisq.ValueTooLarge, match=r"'big'.*2,000,0\d\d bytes.*at most 1,047,552"):
        queue.get(dsk, list(dsk))
    assert time.monotonic() - started < 5
    assert queue.get({"x": (inc, 1)}, "x") == 2


def test_an_exception_above_the_servers_limit_is_told_by_its_name(
    queue: Queue, workers: WorkerProcess, small_server: None
) -> None:
    """Its type arrives, and what it carries in short."""

    def fail() -> None:
        raise ValueError("too much", bytes(2_000_000))

    with pytest.raises(ValueError, match="too much") as caught:
        queue.get({"x": (fail,)}, "x")
    assert len(repr(caught.value)) < 100_000


def test_a_result_that_does_not_pickle_is_not_tried_again(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """It would be the same the next time; fault row 30."""

    def make(log: Path) -> Any:
        note(log)
        return threading.Lock()

    with pytest.raises(redisq.TaskNotSerializable, match="'x'"):
        queue.get({"x": (make, tmp_path / "log")}, "x", retries=3)
    assert len(times_in(tmp_path / "log")) == 1


def test_a_task_that_its_worker_killed_in_a_hurry_is_not_charged(
    queue: Queue, workers: WorkerProcess, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Ctrl-C twice: its slot is killed, and that is nobody's fault."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    job = Background(queue.get, {"x": (log_and_wait, log, gate)}, "x", allowed_failures=1)
    wait_until(lambda: len(pids(log)) == 1)
    os.kill(workers.pid, signal.SIGINT)
    wait_until(lambda: len(workers.slots()) == 1)
    os.kill(workers.pid, signal.SIGINT)
    assert workers.wait() == 0
    start_worker("test", "--nworkers", "1")
    wait_until(lambda: len(pids(log)) == 2)
    gate.touch()
    assert job.result() == pids(log)[1]
