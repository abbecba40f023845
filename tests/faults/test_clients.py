"""Two clients on one queue, graphs that come again, clocks that are wrong, and a large graph. Rows 29, 36, 37, 46; scenario 20."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import pytest
from computing import nothing_left
from conftest import PATH, WorkerProcess, wait_until
from dask.utils_test import inc
from test_faults import Background, log_and_wait, pids
from test_workers_die import lines, note, start

import dask_redisq as redisq
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.queue import Queue

PACKAGE = Path(redisq.__file__).parent

CLIENT = """
import sys
from pathlib import Path
from test_workers_die import note
import dask_redisq as redisq
url, log = sys.argv[1:]
queue = redisq.Queue("test", url)
dsk = {("x", i): (note, Path(log), f"{i}", 0.3) for i in range(6)}
try:
    queue.get(dsk, list(dsk), chunk_size=1)
except KeyboardInterrupt:
    print("interrupted", flush=True)
again = {("y", i): (note, Path(log + "-again"), f"{i}") for i in range(6)}
print(list(queue.get(again, list(again))))
"""


@pytest.mark.alone
def test_ctrl_c_of_one_client_spares_the_other(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Scenario 20: 2 clients, 6 tasks each, 1 worker: one is interrupted, and computes again at once."""
    start(start_worker, queue)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    dsk: dict[Any, Any] = {("x", i): (note, ours, f"{i}", 0.3) for i in range(6)}
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, queue.url, str(theirs)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": PATH},
    )
    assert client.stdout is not None
    wait_until(lambda: lines(theirs))
    job = Background(queue.get, dsk, list(dsk), chunk_size=1)
    wait_until(lambda: lines(ours))
    client.send_signal(signal.SIGINT)
    at = time.monotonic()
    assert client.stdout.readline() == b"interrupted\n"
    assert time.monotonic() - at < 1
    ran = len(lines(theirs))
    assert list(job.result()) == [f"{i}" for i in range(6)]
    assert sorted(lines(ours)) == [f"{i}" for i in range(6)]
    assert client.stdout.readline() == b"['0', '1', '2', '3', '4', '5']\n"
    client.stdout.close()
    assert client.wait(60) == 0
    assert len(lines(theirs)) <= ran + 1, "its waiting tasks started"
    nothing_left(queue.url)


def test_equal_graphs_of_two_clients_do_not_meet(queue: Queue, workers: WorkerProcess) -> None:
    """Row 36: the same keys, other values; that one of them fails does not touch the other."""

    def graph(start: Any) -> dict[Any, Any]:
        dsk: dict[Any, Any] = {("x", 0): (inc, start)}
        return dsk | {("x", i): (inc, ("x", i - 1)) for i in range(1, 100)}

    ten, hundred, wrong = (
        Background(Queue("test", queue.url).get, graph(value), ("x", 99), chunk_size=5)
        for value in (10, 100, "no number")
    )
    assert ten.result() == 110
    assert hundred.result() == 200
    with pytest.raises(TypeError):
        wrong.result()
    nothing_left(queue.url)


def test_a_late_result_of_a_cancelled_graph_is_not_taken_for_the_new_one(
    queue: Queue, workers: WorkerProcess, link: Link, keys: Keys, tmp_path: Path
) -> None:
    """Row 37: the same keys are submitted again while the task of the cancelled job still runs."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    first = Background(queue.get, {"x": (log_and_wait, log, gate), "y": (inc, "x")}, "y")
    wait_until(lambda: len(pids(log)) == 1)
    assert queue.cancel(queue.jobs()[0]["id"])
    second = Background(queue.get, {"x": (int, 41), "y": (inc, "x")}, "y")
    gate.touch()  # its slot has a second to end, and reports
    assert second.result() == 42
    with pytest.raises(redisq.JobCancelled):
        first.result()
    wait_until(lambda: queue.stats()["running"] == 0)
    assert queue.get({"z": (inc, 1)}, "z") == 2
    nothing_left(queue.url)


def test_no_host_is_asked_for_its_time() -> None:
    """Row 29: durations are monotonic, dates are the server's: a wrong clock of a host changes nothing."""
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = f"{node.value.id}.{node.attr}"
                if name in {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow"}:
                    wrong.append(f"{path.name}:{node.lineno} {name}")
    lua = {p.name: p.read_text() for p in PACKAGE.rglob("*.lua")}
    wrong += [name for name, text in lua.items() if "os.time" in text or "EXPIREAT" in text]
    assert wrong == []


WRONG_CLOCK = """
import time
def off(function, unit):
    return lambda: function() + {days} * 86_400 * unit
time.time, time.time_ns = off(time.time, 1), off(time.time_ns, 10**9)
"""


def what_time(log: Path) -> float:
    """Note who runs; return what time it is there."""
    note(log, f"{os.getpid()}", 0.1)
    return time.time()


def test_workers_whose_clocks_are_a_day_off_are_as_good_as_others(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Row 29: one is ahead, one behind: the answer is theirs, each task ran once, nobody is dead."""
    env = {"DASK_REDISQ__ALIVE_EXPIRY": "2", "DASK_REDISQ__FT_INTERVAL": "1"}
    for name, days in (("ahead", 1), ("behind", -1)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(WRONG_CLOCK.format(days=days))
        start_worker(
            "test", "--nworkers", "1", "--name", name,
            env={**env, "PYTHONPATH": f"{folder}{os.pathsep}{PATH}"},
        )  # fmt: skip
    queue.wait_for_workers(2, timeout=90)
    before = {row["name"]: row["slots"] for row in queue.workers()}
    log = tmp_path / "log"
    dsk: dict[Any, Any] = {("x", i): (what_time, log) for i in range(80)}
    # Long enough for some looks at who is dead, by both workers and by this client.
    told = queue.get(dsk, list(dsk), chunk_size=1, alive_expiry=2, ft_interval=1)
    now = time.time()
    assert {round((there - now) / 86_400) for there in told} == {1, -1}
    assert len(lines(log)) == len(dsk)
    assert len(set(lines(log))) == 2
    assert {row["name"]: row["slots"] for row in queue.workers()} == before
    future = queue.compute(dask.delayed(inc)(1), detach=True, result_ttl=60)
    wait_until(future.done)
    time.sleep(2.5)  # for who would find, by a clock of its own, that these results are too old
    assert future.result(60) == 2
    future.forget()
    nothing_left(queue.url)


@pytest.mark.slow_fault
def test_a_hundred_thousand_tasks_stall_nobody(
    queue: Queue, workers: WorkerProcess, link: Link
) -> None:
    """Row 46: all leased in chunks of 10,000 at most; no script takes 100 ms, and little memory is used."""
    link.command("CONFIG", "SET", "slowlog-log-slower-than", 100_000)
    link.command("SLOWLOG", "RESET")
    dsk: dict[Any, Any] = {("x", i): (inc, i) for i in range(100_000)}
    dsk["sum"] = (sum, list(dsk))
    assert queue.get(dsk, "sum", chunk_size=10_000) == 5_000_050_000
    slow = [entry for entry in link.command("SLOWLOG", "GET", 10) if entry[3][0] == b"EVALSHA"]
    assert slow == []
    memory = link.command("INFO", "memory").split(b"used_memory_peak:")[1].split(b"\r\n")[0]
    assert int(memory) < 200 * 2**20
    nothing_left(queue.url)
