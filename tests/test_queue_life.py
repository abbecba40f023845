"""Whoever looks after a queue: who submitted what, what runs, a pause, a word to every slot."""

from __future__ import annotations

import getpass
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from conftest import WorkerProcess, all_idle, looked, wait_until
from dask.utils_test import inc
from test_faults import Background, log_and_wait, pids

import dask_redisq as redisq
from dask_redisq import follow, lookout
from dask_redisq.codec import pack, unpack
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.monitor import server_ms
from dask_redisq.queue import Queue
from dask_redisq.versions import about_worker, python_tag


def gated(tmp_path: Path, name: str = "gate") -> tuple[Any, Path, Path]:
    """Return a collection whose task waits for a gate, the log of who ran it, and the gate."""
    log, gate = tmp_path / f"{name}-log", tmp_path / name
    return dask.delayed(log_and_wait)(log, gate, dask_key_name=name), log, gate


# jobs and tasks.


def test_a_job_tells_who_submitted_it(queue: Queue) -> None:
    """User, host and process, as doRedis's jobs() does; no environment, no URL."""
    future = queue.compute(dask.delayed(inc)(1), detach=True)
    (row,) = queue.jobs()
    assert (row["user"], row["host"], row["pid"]) == (
        getpass.getuser(), socket.gethostname(), os.getpid(),
    )  # fmt: skip
    assert set(row) == {
        "id", "state", "sealed", "detached", "n", "finished", "created", "user", "host", "pid",
    }  # fmt: skip
    assert queue.remove_job(future.id, reason="by doRedis's name")
    with pytest.raises(redisq.JobCancelled, match="by doRedis's name"):
        queue.attach(future.id)


def test_running_tasks_are_listed_with_who_runs_them(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Of each job, or of one; by its key where the server knows it; what waits is not listed."""
    (one, log, gate), (two, other_log, other_gate) = gated(tmp_path, "a"), gated(tmp_path, "b")
    assert queue.tasks() == []
    kept, detached = queue.compute(one), queue.compute([two, inc_of(two)], detach=True)
    wait_until(lambda: len(pids(log)) == len(pids(other_log)) == 1)
    rows = {row["key"]: row for row in queue.tasks()}
    assert set(rows) == {"a", "b"}
    assert rows["a"]["job"] == kept.id
    assert {row["worker"] for row in rows.values()} == {"one"}
    assert {row["host"] for row in rows.values()} == {socket.gethostname()}
    assert sorted(row["slot"] for row in rows.values()) == queue.workers()[0]["slots"]
    assert [row["key"] for row in queue.tasks(detached.id)] == ["b"]
    gate.touch()
    other_gate.touch()
    assert kept.result(60) == pids(log)[0]
    detached.result(60)
    assert queue.tasks() == []


def test_a_task_tells_since_when_its_slot_has_it(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """By the server's clock, as `created` of its job; with the worker's process and the user."""
    x, log, gate = gated(tmp_path)
    before = queue.compute(dask.delayed(inc)(1), detach=True)
    before.result(60)
    time.sleep(0.2)
    future = queue.compute(x, detach=True)
    wait_until(lambda: pids(log))
    (row,) = queue.tasks(future)
    created = {job["id"]: job["created"] for job in queue.jobs()}
    assert created[before.id] + 0.2 < created[future.id] <= row["since"] <= time.time() + 1
    assert (row["pid"], row["user"]) == (workers.pid, getpass.getuser())
    assert queue.tasks(row) == [row]
    gate.touch()
    future.result(60)


def test_a_job_is_named_by_its_id_a_row_or_its_future(queue: Queue) -> None:
    """R's removeJob takes a row of jobs(); what names none is refused, with what does."""
    waiting = [queue.compute(dask.delayed(inc)(i), detach=True) for i in range(3)]
    rows = {row["id"]: row for row in queue.jobs()}
    assert queue.attach(rows[waiting[0].id]).id == waiting[0].id
    assert queue.remove_job(rows[waiting[0].id])
    assert queue.cancel(waiting[1])
    assert queue.cancel(waiting[2].id)
    assert queue.jobs() == []
    for wrong in None, 7, [waiting[0].id], {"n": 1}:
        with pytest.raises(TypeError, match=r"its id, by a row of Queue\.jobs"):
            queue.cancel(wrong)  # type: ignore[arg-type]


def inc_of(x: Any) -> Any:
    """Return what comes after a collection."""
    return dask.delayed(inc)(x)


def test_a_task_whose_key_only_its_client_knows_is_listed_by_number(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Of `get` and of loops the server has no names."""
    _, log, gate = gated(tmp_path)
    loop = Background(queue.foreach, log_and_wait, [log], [gate])
    wait_until(lambda: len(pids(log)) == 1)
    (row,) = queue.tasks()
    assert (row["task"], row["key"]) == (0, None)
    gate.touch()
    loop.result()


def test_keys_that_others_signed_are_not_read(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has another secret sees numbers, and no error."""
    x, log, gate = gated(tmp_path)
    future = queue.compute(x, detach=True)
    wait_until(lambda: len(pids(log)) == 1)
    monkeypatch.setenv("DASK_REDISQ__SECRET", "a secret of this process alone")
    assert [row["key"] for row in queue.tasks()] == [None]
    monkeypatch.delenv("DASK_REDISQ__SECRET")
    assert [row["key"] for row in queue.tasks()] == ["gate"]
    gate.touch()
    future.result(60)


# A pause.


def test_a_suspended_queue_gives_nothing_to_do(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, link: Link
) -> None:
    """What runs goes on, with its result; what waits and what is new waits; resume wakes slots."""
    x, log, gate = gated(tmp_path)
    running = queue.compute(inc_of(dask.delayed(len)([x])), detach=True)
    wait_until(lambda: len(pids(log)) == 1)
    queue.suspend()
    queue.suspend()
    assert queue.stats()["suspended"] == 1
    later = queue.compute(dask.delayed(inc)(1), detach=True)
    gate.touch()
    wait_until(lambda: all_idle(link, queue))
    assert queue.tasks() == []
    assert queue.stats()["finished"] >= 1  # and what followed in the same slot
    assert not later.done()
    started = time.monotonic()
    queue.resume()
    queue.resume()
    assert later.result(60) == 2
    assert running.result(60) == 2
    assert time.monotonic() - started < 3  # the re-check of an idle slot is at 5 s
    assert queue.stats()["suspended"] == 0


def test_a_pause_outlives_workers_and_jobs(
    queue: Queue, start_worker: Callable[..., WorkerProcess], link: Link
) -> None:
    """Slots that start meanwhile get nothing; a job that ends ends no pause."""
    queue.suspend()
    first, second = (queue.compute(dask.delayed(inc)(i), detach=True) for i in (1, 2))
    worker = start_worker("test", "--nworkers", "1")
    queue.wait_for_workers(1, timeout=90)
    wait_until(lambda: all_idle(link, queue))
    assert queue.cancel(first.id)
    queue.restart_workers()
    wait_until(lambda: all_idle(link, queue))
    worker.process.terminate()
    assert worker.wait() == 0
    start_worker("test", "--nworkers", "1")
    queue.wait_for_workers(1, timeout=90)
    wait_until(lambda: all_idle(link, queue))
    assert (queue.stats()["ready"], queue.stats()["suspended"]) == (1, 1)
    queue.resume()
    assert second.result(60) == 3


def test_a_task_that_waits_out_its_pause_is_begun_at_once_by_resume(
    queue: Queue, workers: WorkerProcess, link: Link, keys: Keys, tmp_path: Path
) -> None:
    """Its retry was due while the queue was suspended: no slot was told when to look again."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    future = queue.compute(
        dask.delayed(fail_until)(log, gate), detach=True, retries=1, retry_delay=0.5
    )
    wait_until(lambda: log.exists() and link.command("ZCARD", keys("delayed", future.id)) == 1)
    queue.suspend()
    gate.touch()
    link.command("ZADD", keys("delayed", future.id), 0, 0)
    wait_until(lambda: all_idle(link, queue))
    started = time.monotonic()
    queue.resume()
    assert future.result(60) == "passed"
    assert time.monotonic() - started < 3


def fail_until(log: Path, gate: Path) -> str:
    """Raise as long as there is no gate."""
    log.touch()
    if not gate.exists():
        raise ValueError("closed")
    return "passed"


def test_who_waits_is_told_of_the_pause(
    queue: Queue,
    workers: WorkerProcess,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not that nobody carries a tag; a limit for workers that are missing holds for it, too."""
    monkeypatch.setattr(lookout, "QUIET", 0.1)
    queue.suspend()
    x = dask.delayed(inc)(1)
    waiting = Background(queue.get, dict(x.dask), x.key)
    wait_until(lambda: "is suspended, until Queue.resume()" in caplog.text)
    with pytest.raises(redisq.NoWorkersError, match=r"after 0\.3 s: queue 'test' is suspended"):
        x.compute(scheduler=queue.get, workers="nobody", no_workers_timeout=0.3)
    queue.resume()
    assert waiting.result() == 2


def test_a_pause_is_no_reason_to_give_up_what_runs(
    queue: Queue,
    workers: WorkerProcess,
    tmp_path: Path,
    link: Link,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A task is in hand: nothing is missing."""
    monkeypatch.setattr(follow, "WAIT", 0.05)
    wait_until(lambda: all_idle(link, queue))
    x, log, gate = gated(tmp_path)
    waiting = Background(queue.get, dict(x.dask), x.key, no_workers_timeout=0.2)
    wait_until(lambda: len(pids(log)) == 1)
    queue.suspend()
    time.sleep(0.5)
    gate.touch()
    assert waiting.result() == pids(log)[0]
    queue.resume()


# A word to every slot.


def test_a_function_runs_once_in_every_slot(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Of every worker, by the names that `workers` has; with arguments; nothing is left of it."""
    for name, slots in (("one", "2"), ("two", "1")):
        start_worker("test", "--nworkers", slots, "--name", name)
    queue.wait_for_workers(3, timeout=90)
    log = tmp_path / "log"
    found = queue.run_on_workers(note_pid, log, more=1)
    assert sorted(found) == sorted(slot for row in queue.workers() for slot in row["slots"])
    assert len(set(found.values())) == 3
    assert sorted(pids(log)) == sorted(pid for pid, _ in found.values())
    assert queue.jobs() == []
    assert queue.run_on_workers(note_pid, log).keys() == found.keys()


def note_pid(log: Path, more: int = 0) -> tuple[int, int]:
    """Write the process id down."""
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return os.getpid(), more


def test_without_a_slot_there_is_nothing_to_run(queue: Queue) -> None:
    """As in distributed."""
    assert queue.run_on_workers(os.getpid) == {}
    with pytest.raises(ValueError, match="on_error is 'raise' or 'return', not 'pass'"):
        queue.run_on_workers(os.getpid, on_error="pass")


def test_a_busy_slot_runs_it_behind_its_task_and_before_others(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Tasks wait for both slots: the function comes first."""
    x, log, gate = gated(tmp_path)
    order = tmp_path / "order"
    running = queue.compute(x, detach=True)
    wait_until(lambda: len(pids(log)) == 1)
    asking = Background(queue.run_on_workers, note_pid, order)
    wait_until(lambda: len(pids(order)) == 1)
    later = [queue.compute(dask.delayed(note_pid)(order, i), detach=True) for i in range(5)]
    with pytest.raises(TimeoutError, match="1 of 2 slots have not run it yet"):
        queue.run_on_workers(os.getpid, timeout=0.3)
    assert asking.value is None
    gate.touch()
    busy = running.result(60)
    assert busy in {pid for pid, _ in asking.result().values()}
    for future in later:
        future.result(60)
    assert len(queue.jobs()) == 6


def test_it_comes_before_what_waits(
    queue: Queue, start_worker: Callable[..., WorkerProcess], link: Link, tmp_path: Path
) -> None:
    """One slot, and two tasks that were submitted before."""
    start_worker("test", "--nworkers", "1")
    queue.wait_for_workers(1, timeout=90)
    wait_until(lambda: all_idle(link, queue))
    queue.suspend()
    order = tmp_path / "order"
    before = [queue.compute(dask.delayed(note_pid)(order), detach=True) for _ in range(2)]
    asking = Background(queue.run_on_workers, order.exists)
    wait_until(lambda: queue.stats()["ready"] == 3)
    queue.resume()
    assert list(asking.result().values()) == [False]
    for future in before:
        future.result(60)


def test_an_exception_is_raised_when_all_have_run_or_stands_for_its_value(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """With a note of its slot; a slot that raised goes on."""
    log = tmp_path / "log"
    with pytest.raises(ValueError, match="closed"):
        queue.run_on_workers(fail_until, log, tmp_path / "gate")
    found = queue.run_on_workers(first_raises, tmp_path / "mark", on_error="return")
    assert sorted(type(value).__name__ for value in found.values()) == ["FileExistsError", "int"]
    assert len(queue.run_on_workers(os.getpid)) == 2


def first_raises(mark: Path) -> int:
    """Raise in all slots but the first one."""
    mark.touch(exist_ok=False)
    return 1


def test_a_slot_that_vanishes_is_left_out(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, link: Link, keys: Keys
) -> None:
    """By what the function does, or since it died in the task before it."""
    before = queue.workers()[0]["slots"]
    found = queue.run_on_workers(first_dies, tmp_path / "mark")
    assert len(found) == 1
    assert set(found) < set(before)
    queue.wait_for_workers(2, timeout=90)
    x, log, _ = gated(tmp_path)
    running = queue.compute(x, detach=True, allowed_failures=1)
    wait_until(lambda: len(pids(log)) == 1)
    asking = Background(queue.run_on_workers, os.getpid)
    wait_until(lambda: any(row["state"] == "running" and row["n"] == 2 for row in queue.jobs()))
    os.kill(pids(log)[0], signal.SIGKILL)
    assert len(asking.result()) == 1
    with pytest.raises(redisq.WorkerDied):
        running.result(60)
    assert link.command("KEYS", keys("idle", "*")) != []


def first_dies(mark: Path) -> int:
    """End the process of the first slot."""
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return os.getpid()
    os._exit(1)


def test_a_worker_that_vanished_whole_is_left_out(
    queue: Queue, workers: WorkerProcess, link: Link, keys: Keys
) -> None:
    """Its slots are registered until somebody finds it dead: then nobody waits for them."""
    link.call(
        "register", keys, worker="dead", expiry=60_000, slot="f" * 16, seq=0, tags=pack([]),
        info=pack(about_worker("dead", (python_tag(),), 1, 0.0, {})),
    )  # fmt: skip
    asking = Background(queue.run_on_workers, os.getpid)
    wait_until(lambda: queue.stats()["ready"] == 1 and queue.stats()["running"] == 0)
    link.command("DEL", keys("alive", "dead"), keys("monitor"))
    wait_until(lambda: looked(link, keys))
    assert len(asking.result()) == 2


# The removal.


def test_what_is_submitted_while_a_queue_is_removed_is_cancelled(
    queue: Queue, start_worker: Callable[..., WorkerProcess], link: Link
) -> None:
    """A worker takes its time to leave; graphs, loops and calls come meanwhile, and once it left.

    Some of their keys went with the others, so they were submitted again, and waited for workers.
    """
    worker = start_worker("test", "--nworkers", "1")
    queue.wait_for_workers(1, timeout=90)
    with redisq.Executor(queue) as executor:
        psutil.Process(worker.pid).suspend()
        removing = Background(queue.remove)
        wait_until(lambda: link.command("KEYS", queue.keys("control", "*")))
        asked = [
            Background(queue.get, {"x": (inc, 1)}, "x"),
            Background(queue.foreach, inc, range(3)),
            Background(executor.submit(inc, 1).result),
        ]
        for some in asked:
            with pytest.raises(redisq.JobCancelled, match="its queue was removed"):
                some.result(5)
        psutil.Process(worker.pid).resume()
        removing.result()
    assert worker.wait(10) == 0
    assert left_of(queue, link) == []
    start_worker("test", "--nworkers", "1")
    assert queue.get({"x": (inc, 1)}, "x") == 2


def test_a_loop_ends_with_its_queue_also_between_two_jobs(
    queue: Queue, workers: WorkerProcess, link: Link
) -> None:
    """When its generator gives the next item all keys are gone: it waited for other workers."""

    def numbers() -> Iterator[int]:
        yield from range(3)
        wait_until(lambda: queue.stats()["finished"] == 3 and queue.jobs() == [])
        queue.remove()
        yield 3

    loop = Background(queue.foreach, inc, numbers())
    with pytest.raises(redisq.JobCancelled, match="its queue was removed"):
        loop.result()
    assert left_of(queue, link) == []


def test_a_removal_is_over_before_a_loop_can_begin_in_its_millisecond(
    queue: Queue, link: Link
) -> None:
    """Such a loop was taken for one from before, and cancelled."""
    for _ in range(30):
        link.command("HSET", queue.keys("queue"), "loops", 1)
        queue.remove()
        now = server_ms(link)
        assert now > unpack(link.command("GET", queue.keys("removed")))[0]


def left_of(queue: Queue, link: Link) -> list[bytes]:
    """Return the keys that are left of a queue, but for what tells who comes late."""
    return [k for k in link.command("KEYS", queue.keys.pattern()) if b":tomb:" not in k]


def test_a_task_may_not_ask_its_own_workers(queue: Queue, workers: WorkerProcess) -> None:
    """Its slot would wait for itself."""
    ask = dask.delayed(ask_from_a_task)(queue.url)
    with pytest.raises(redisq.RedisqError, match="its slot is one of them"):
        ask.compute(scheduler=queue.get)


def ask_from_a_task(url: str) -> Any:
    """Run something on all workers."""
    return Queue("test", url).run_on_workers(os.getpid)


def test_the_name_of_a_slot_is_no_tag_that_people_see(queue: Queue, workers: WorkerProcess) -> None:
    """Though it is one for `workers=`."""
    (row,) = queue.workers()
    assert not set(row["slots"]) & set(row["tags"])
    slot = row["slots"][1]
    pid = dask.delayed(os.getpid)()
    there = {pid.compute(scheduler=queue.get, workers=slot) for _ in range(3)}
    assert there == {queue.run_on_workers(os.getpid)[slot]}
