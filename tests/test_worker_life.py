"""How long a worker stays, as its user says it: real workers, and `run_worker`."""

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
from conftest import PATH, WorkerProcess, all_idle, wait_until
from test_faults import Background, log_and_wait, pids

import dask_redisq as redisq
from dask_redisq import Queue
from dask_redisq.errors import NoServerError, ServerUnavailable
from dask_redisq.link import Link
from dask_redisq.registry import has_work
from dask_redisq.server import PrivateServer

StartWorker = Callable[..., WorkerProcess]


def note(log: Path, *_: Any) -> int:
    """Note that a task began."""
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return os.getpid()


def die_once(log: Path, *_: Any) -> int:
    """End the process, the first time."""
    first = not pids(log)
    note(log)
    if first:
        os._exit(9)
    return 0


# ------------------------------------------------------------------------------------- max-tasks


def test_a_worker_ends_after_its_tasks_and_another_does_the_rest(
    queue: Queue, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Three of ten in two slots, not one more; exit code 0; nothing is lost."""
    log = tmp_path / "log"
    running = Background(queue.get, {str(i): (note, log, i) for i in range(10)}, list("0123456789"))
    worker = start_worker("test", "--nworkers", "2", "--max-tasks", "3")
    assert worker.wait(60) == 0
    assert len(pids(log)) == 3
    assert "ends: it has begun its 3 tasks" in worker.output()
    assert start_worker("test", "--nworkers", "1", "--burst").wait(60) == 0
    assert len(running.result()) == 10
    assert len(pids(log)) == 10


def test_what_follows_a_task_in_its_slot_is_counted_too(
    queue: Queue, start_worker: StartWorker, tmp_path: Path
) -> None:
    """A chain of ten would run in one lease: four of them do, and the next worker has the rest."""
    log = tmp_path / "log"
    graph = {0: (note, log), **{i: (note, log, i - 1) for i in range(1, 10)}}
    chain = Background(queue.get, graph, 9)
    assert start_worker("test", "--nworkers", "1", "--max-tasks", "4").wait(60) == 0
    assert len(pids(log)) == 4
    assert start_worker("test", "--nworkers", "1", "--max-tasks", "6").wait(60) == 0
    chain.result()
    assert len(pids(log)) == 10


def test_a_task_that_kills_its_slot_is_counted_and_the_slot_comes_back(
    queue: Queue, start_worker: StartWorker, tmp_path: Path
) -> None:
    """The tokens that it did not use are not lost with it."""
    log = tmp_path / "log"
    running = Background(queue.get, dict.fromkeys("abcd", (die_once, log)), list("abcd"))
    assert start_worker("test", "--nworkers", "1", "--max-tasks", "3").wait(60) == 0
    assert len(pids(log)) == 3
    assert len(set(pids(log))) == 2
    assert start_worker("test", "--nworkers", "1", "--burst").wait(60) == 0
    assert list(running.result()) == [0, 0, 0, 0]


def test_the_last_task_of_a_worker_may_wait_for_others(
    queue: Queue, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Nobody else is there: what it waits for is run all the same, and the worker ends."""
    from test_nested import steps_within  # here: the other tests' slots import this module

    (tmp_path / "gate").touch()
    future = queue.compute(dask.delayed(steps_within)(tmp_path))
    worker = start_worker("test", "--nworkers", "1", "--max-tasks", "1")
    assert future.result(60) == 3
    assert worker.wait(60) == 0


# ------------------------------------------------------------------------ max-idle, burst, lifetime


def test_a_worker_ends_when_it_had_nothing_to_do_for_long(
    queue: Queue, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Short tasks now and then keep it, and none is there when the supervisor looks."""
    worker = start_worker("test", "--nworkers", "1", "--max-idle", "1.5")
    for _ in range(8):
        queue.get({"x": (note, tmp_path / "log")}, "x")
        time.sleep(0.25)
    assert worker.process.poll() is None
    assert worker.wait(60) == 0
    assert queue.workers() == []
    assert "ends: it had no task for 1.5 s" in worker.output()


def test_a_burst_with_nothing_to_do_ends_at_once(queue: Queue, start_worker: StartWorker) -> None:
    """No slot is started for it; a second queue counts as well."""
    worker = start_worker("test", "other", "--nworkers", "1", "--burst", "--name", "me")
    assert worker.wait(60) == 0
    assert "worker me ends: its queues are empty" in worker.output()
    assert queue.workers() == []


def test_a_queue_has_work_until_its_last_job_has_ended(
    queue: Queue, workers: WorkerProcess, link: Link, tmp_path: Path
) -> None:
    """A task that runs is work, though none is ready; values that are only kept are none."""
    assert not has_work(link, queue.keys)
    (kept,) = dask.persist(dask.delayed(sum)([1, 2]), scheduler=queue.get)
    assert kept.compute(scheduler=queue.get) == 3
    wait_until(lambda: all_idle(link, queue))
    assert queue.jobs()
    assert not has_work(link, queue.keys)
    future = queue.compute(dask.delayed(log_and_wait)(tmp_path / "log", tmp_path / "gate"))
    wait_until(lambda: pids(tmp_path / "log"))
    assert not link.command("EXISTS", queue.keys("active"))
    assert has_work(link, queue.keys)
    (tmp_path / "gate").touch()
    future.result(60)
    assert not has_work(link, queue.keys)


def test_a_worker_whose_lifetime_is_over_finishes_its_task(
    queue: Queue, start_worker: StartWorker, tmp_path: Path
) -> None:
    """It begins no other one, ends with exit code 0, and nothing ran twice."""
    log = tmp_path / "log"
    words = ("--lifetime", "6", "--lifetime-stagger", "0.5", "--log-file", str(log))
    worker = start_worker("test", "--nworkers", "1", *words)
    task = (log_and_wait, tmp_path / "begun", tmp_path / "gate")
    running = Background(queue.get, {"x": task, "y": task}, ["x", "y"], chunk_size=1)
    wait_until(log.exists)
    wait_until(lambda: "ends: its lifetime of 6 s is over" in log.read_text())
    (tmp_path / "gate").touch()
    assert worker.wait() == 0
    assert len(pids(tmp_path / "begun")) == 1
    assert start_worker("test", "--nworkers", "1", "--burst").wait(60) == 0
    running.result()
    assert len(pids(tmp_path / "begun")) == 2


# --------------------------------------------------------------------------------------- linger


def test_workers_end_at_once_with_their_queue(queue: Queue, start_worker: StartWorker) -> None:
    """Within two seconds, exit code 0, and no key is left: scenario 1 of doRedis."""
    started = [start_worker("test", "--nworkers", "1") for _ in range(2)]
    queue.wait_for_workers(2, timeout=90)
    queue.remove()
    assert [worker.wait(2) for worker in started] == [0, 0]
    with queue.pool.lend() as link:
        assert link.command("KEYS", queue.keys.pattern()) == []


@pytest.mark.alone
def test_a_worker_lingers_after_its_queue_and_holds_nobody_up(
    queue: Queue, start_worker: StartWorker
) -> None:
    """It has left when `remove` returns; its process stays for so long, and no longer."""
    worker = start_worker("test", "--nworkers", "1", "--linger", "1.5")
    queue.wait_for_workers(1, timeout=90)
    removed = time.monotonic()
    queue.remove()
    assert time.monotonic() - removed < 1.2
    wait_until(lambda: not worker.slots())
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(removed + 1.3 - time.monotonic())
    assert worker.wait(2) == 0
    assert queue.workers() == []


def test_a_lingering_worker_ends_by_sigterm(queue: Queue, start_worker: StartWorker) -> None:
    """Nothing is left to wait for."""
    worker = start_worker("test", "--nworkers", "1", "--linger", "60")
    queue.wait_for_workers(1, timeout=90)
    queue.remove()
    wait_until(lambda: not worker.slots())
    worker.process.terminate()
    assert worker.wait(3) == 0


# ------------------------------------------------------------------------------------- run_worker


def test_a_thread_may_be_a_worker(
    queue: Queue, server: PrivateServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slots have our settings and modules; it ends with its queue, and leaves nothing."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "only_there.py").write_text("import os\ndef parent():\n    return os.getppid()\n")
    import only_there  # type: ignore[import-not-found]

    assert queue.workers() == []  # has its connection from now on
    before = {thread.name for thread in _threads()}, len(_descriptors())
    with dask.config.set({"redisq.url": server.url}):
        thread = Thread(target=redisq.run_worker, args=("test",), kwargs={"nworkers": 1})
        thread.start()
        queue.wait_for_workers(1, timeout=90)
    (row,) = queue.workers()
    assert row["pid"] == os.getpid()
    assert queue.get({"x": (only_there.parent,)}, "x") == os.getpid()
    queue.remove()
    thread.join(60)
    assert not thread.is_alive()
    assert ({thread.name for thread in _threads()}, len(_descriptors())) == before


def _threads() -> list[Any]:
    import threading

    return threading.enumerate()


def _descriptors() -> list[str]:
    return os.listdir("/proc/self/fd") if sys.platform == "linux" else []  # noqa: PTH208


SCRIPT = """\
import signal, sys
import dask_redisq as redisq
marks = {n: (lambda *_: None) for n in (signal.SIGTERM, signal.SIGCHLD)}
for number, mark in marks.items():
    signal.signal(number, mark)
redisq.run_worker("test", url=sys.argv[1], nworkers=1, name="script", tags=["a tag"])
assert all(signal.getsignal(n) is mark for n, mark in marks.items())
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert signal.set_wakeup_fd(-1) == -1
print("and on")
"""


def test_ctrl_c_ends_the_worker_in_a_script_and_the_script_goes_on(
    queue: Queue, server: PrivateServer, tmp_path: Path
) -> None:
    """The task in hand is finished, and the signals are the script's again."""
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, server.url],
        env={**os.environ, "PYTHONPATH": PATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        queue.wait_for_workers(1, timeout=90)
        (row,) = queue.workers()
        assert row["name"] == "script"
        assert "a tag" in row["tags"]
        future = queue.compute(dask.delayed(log_and_wait)(tmp_path / "log", tmp_path / "gate"))
        wait_until(lambda: pids(tmp_path / "log"))
        script.send_signal(signal.SIGINT)
        (tmp_path / "gate").touch()
        assert psutil.Process(script.pid).wait(10) == 0
        assert future.result(60) == pids(tmp_path / "log")[0]
    finally:
        script.kill()
        output, errors = script.communicate()
    assert output == "and on\n", errors


def test_a_worker_in_python_takes_the_options_of_the_command(
    queue: Queue, server: PrivateServer, tmp_path: Path
) -> None:
    """A burst comes back when the job is done, and at once if there is none."""
    log = tmp_path / "log"
    running = Background(queue.get, {"x": (note, log)}, "x")
    wait_until(lambda: [row["sealed"] for row in queue.jobs()] == [True])
    redisq.run_worker("test", url=server.url, nworkers=1, burst=True)
    assert running.result(60) == pids(log)[0]
    redisq.run_worker("test", url=server.url, burst=True)


def test_a_worker_in_python_takes_a_queue(queue: Queue, tmp_path: Path) -> None:
    """As an executor does: it is on that one's server, on which all of them are."""
    log = tmp_path / "log"
    running = Background(queue.get, {"x": (note, log)}, "x")
    wait_until(lambda: [row["sealed"] for row in queue.jobs()] == [True])
    redisq.run_worker(queue, "other", nworkers=1, burst=True)
    assert running.result(60) == pids(log)[0]
    with pytest.raises(ValueError, match="a worker serves queues of one server"):
        redisq.run_worker(queue, Queue("other", "unix:///nowhere"))
    with pytest.raises(ValueError, match="a worker serves queues of one server"):
        redisq.run_worker(queue, url="unix:///nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nworkers": 0}, "nworkers is a whole number, at least 1, not 0"),
        ({"max_tasks": 0}, "max_tasks is a whole number, at least 1, not 0"),
        ({"max_idle": -1}, "max_idle is a number of seconds, at least 0 .* not -1"),
        ({"linger": "long"}, "linger is a number of seconds.* not 'long'"),
        ({"linger": 1e300}, "linger .* at most 1,000,000,000, not 1e"),
        ({"lifetime": True}, "lifetime is a number of seconds.* not True"),
        ({"max_idle": float("nan")}, "max_idle is a number of seconds.* not nan"),
        ({"death_timeout": -1}, "death_timeout is a number of seconds.* not -1"),
        ({"lifetime_stagger": 3}, "lifetime_stagger is for a lifetime"),
        ({"resources": {"GPU": -1}}, "GPU"),
        ({"url": "http://host"}, "is not the URL of a server"),
    ],
)
def test_what_cannot_be_is_said_at_once(options: dict[str, Any], message: str) -> None:
    """Before any server is asked."""
    with pytest.raises(ValueError, match=message):
        redisq.run_worker("test", **{"url": "unix:///nowhere", **options})


def test_a_worker_in_python_needs_a_server(tmp_path: Path) -> None:
    """One that is named, and one that answers."""
    with dask.config.set({"redisq.url": None}), pytest.raises(NoServerError, match="pass url="):
        redisq.run_worker("test")
    allowed = dask.config.set({"redisq.allow-unsigned": True})
    with allowed, pytest.raises(ServerUnavailable):
        redisq.run_worker("test", url=f"unix://{tmp_path}/none", death_timeout=0)
