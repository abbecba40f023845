"""Jobs that failed: why, and how they go on from where they failed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from conftest import WorkerProcess, looked, wait_until
from dask.utils_test import inc
from test_detach import job_keys
from test_faults import Background, pids

import dask_redisq as redisq
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.queue import Queue
from dask_redisq.rebuild import rebuild


def note(log: Path, name: str, *_: Any) -> str:
    """Write down what runs."""
    with log.open("a") as file:
        file.write(f"{name}\n")
    return name


def need(log: Path, gate: Path, name: str, *_: Any) -> str:
    """Run, if a file is there."""
    note(log, name)
    if not gate.exists():
        raise FileNotFoundError(f"{gate} is not there")
    return name


def runs(log: Path) -> list[str]:
    """Return what ran so far."""
    return log.read_text().split() if log.exists() else []


def chain(tmp_path: Path) -> tuple[Any, Path, Path]:
    """Return a -> b -> c, where b needs a file; the log of what ran; and the file."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    a = dask.delayed(note)(log, "a", dask_key_name="a")
    b = dask.delayed(need)(log, gate, "b", a, dask_key_name="b")
    return dask.delayed(note)(log, "c", b, dask_key_name="c"), log, gate


def test_a_failed_job_is_listed_with_its_traceback(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """The exception as its client has it, its text, and the task by number and key."""
    x, _, gate = chain(tmp_path)
    assert queue.failed() == []
    future = queue.compute(x, detach=True)
    assert isinstance(future.exception(20), FileNotFoundError)
    queue.compute(dask.delayed(inc)(1), detach=True).result(60)
    (row,) = queue.failed()
    assert (row["id"], row["key"], row["detached"], row["pid"]) == (
        future.id, "b", True, os.getpid(),
    )  # fmt: skip
    assert row["task"] == 1
    assert isinstance(row["error"], FileNotFoundError)
    assert f"FileNotFoundError: {gate} is not there" in row["traceback"]
    assert "in need\n    raise FileNotFoundError" in row["traceback"]
    assert abs(row["ended"] - time.time()) < 60
    assert [job["id"] for job in queue.jobs() if job["state"] == "failed"] == [future.id]


def test_a_job_whose_future_is_held_is_listed_too(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Until that is let go; who has another secret is told that it does not fit."""
    x, _, _ = chain(tmp_path)
    future = queue.compute(x)
    assert isinstance(future.exception(20), FileNotFoundError)
    (row,) = queue.failed()
    assert (row["key"], row["detached"], row["ended"]) == ("b", False, None)
    with pytest.raises(redisq.RedisqError, match="is not detached"):
        queue.rerun(future.id)
    future.forget()
    assert queue.failed() == []


def test_a_failure_that_others_signed_is_told_as_such(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is unpickled."""
    x, _, _ = chain(tmp_path)
    assert queue.compute(x, detach=True).exception(20) is not None
    monkeypatch.setenv("DASK_REDISQ__SECRET", "a secret of this process alone")
    (row,) = queue.failed()
    assert isinstance(row["error"], redisq.BadSignature)
    assert row["key"] is None


def test_a_failed_job_goes_on_from_where_it_failed(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, link: Link
) -> None:
    """What is finished does not run again; the answer is for who waits, and who attaches."""
    x, log, gate = chain(tmp_path)
    future = queue.compute(x, detach=True)
    assert isinstance(future.exception(20), FileNotFoundError)
    assert runs(log) == ["a", "b"]
    again = queue.rerun(future.id)
    assert isinstance(again.exception(20), FileNotFoundError)  # as before: nothing has changed
    assert runs(log) == ["a", "b", "b"]
    gate.touch()
    waiting = Background(queue.rerun(future.id).result)
    assert waiting.result() == queue.attach(future.id).result(60) == "c"
    assert runs(log) == ["a", "b", "b", "b", "c"]
    assert queue.failed() == []
    with pytest.raises(FileNotFoundError):
        future.result()
    with pytest.raises(ValueError, match="did not fail: it is done"):
        queue.rerun(future.id)
    queue.attach(future.id).forget()
    assert job_keys(link) == []


def dies(log: Path, gate: Path) -> str:
    """End its process, unless a file is there."""
    note(log, "d")
    if not gate.exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return "d"


def test_deaths_and_tries_are_counted_anew(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """As many as the job was allowed."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    future = queue.compute(dask.delayed(dies)(log, gate), detach=True, allowed_failures=2)
    assert isinstance(future.exception(30), redisq.WorkerDied)
    assert len(runs(log)) == 2
    (row,) = queue.failed()
    assert "allowed_failures" in row["traceback"]
    assert isinstance(queue.rerun(future.id).exception(30), redisq.WorkerDied)
    assert len(runs(log)) == 4
    gate.touch()
    assert queue.rerun(future.id).result(60) == "d"
    log.unlink()
    x, _, gate = chain(tmp_path)
    gate.unlink()
    future = queue.compute(x, detach=True, retries=2)
    for _ in range(2):
        assert future.exception(30) is not None
        assert runs(log).count("b") == 3
        log.unlink()  # before it runs again, which takes no longer than to ask for it
        future = queue.rerun(future.id)
    assert future.exception(30) is not None


def busy_then_told(log: Path, gate: Path) -> int:
    """Write its process id down, and stay until there is a gate, whatever happens."""
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    while not gate.exists():
        time.sleep(0.005)
    return os.getpid()


def test_a_slot_that_was_told_to_stop_works_for_the_job_again(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """One slot fails the job while the other runs a task of it: the word is of that lease alone."""
    start_worker("test", "--nworkers", "2")
    queue.wait_for_workers(2, timeout=90)
    log, other, gate = tmp_path / "log", tmp_path / "other", tmp_path / "gate"
    long, fails = tmp_path / "long", tmp_path / "fails"
    beside = dask.delayed(busy_then_told)(other, long)
    after = [dask.delayed(note)(log, f"t{i}", beside) for i in range(20)]
    x = dask.delayed(need_later)(log, other, fails, gate)
    future = queue.compute([x, *after], detach=True)
    wait_until(lambda: len(pids(other)) == 1)
    fails.touch()
    assert isinstance(future.exception(20), FileNotFoundError)
    gate.touch()
    again = queue.rerun(future.id)
    long.touch()
    assert again.result(60) == ["x", *(f"t{i}" for i in range(20))]
    assert sorted(runs(log)) == sorted(["x", "x", *(f"t{i}" for i in range(20))])


def need_later(log: Path, other: Path, fails: Path, gate: Path) -> str:
    """As `need`, once the other task runs and the test says so."""
    while not (other.exists() and fails.exists()):
        time.sleep(0.005)
    return need(log, gate, "x")


def test_a_task_that_still_runs_from_before_does_not_end_the_new_run(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """It raises after the job began again: that failure is of the old epoch."""
    log, first, second, gate = (tmp_path / name for name in ("log", "first", "second", "gate"))
    x = dask.delayed(fail_when)(log, "x", first, gate)
    y = dask.delayed(fail_when)(log, "y", second, gate)
    future = queue.compute([x, y], detach=True)
    wait_until(lambda: len(runs(log)) == 2)
    first.touch()
    assert isinstance(future.exception(20), FileNotFoundError)
    again = queue.rerun(future.id)
    second.touch()
    wait_until(lambda: len(runs(log)) == 4)
    gate.touch()
    assert again.result(60) == ["x", "y"]


def fail_when(log: Path, name: str, when: Path, gate: Path) -> str:
    """Raise as soon as it is told to, for the first time; then wait for the gate."""
    first = name not in runs(log)
    note(log, name)
    while not (when.exists() if first else gate.exists()):
        time.sleep(0.005)
    if first:
        raise FileNotFoundError(name)
    return name


def test_large_constants_and_values_are_there_when_a_job_goes_on(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, link: Link, keys: Keys
) -> None:
    """They are renewed at once, not at the next look of a monitor."""
    gate = tmp_path / "gate"
    big = dask.delayed(np.full(100_000, 2.0), pure=False)
    twice = dask.delayed(np.multiply)(big, 2)
    future = queue.compute(dask.delayed(total_if)(twice, big, gate), detach=True, result_ttl=1000)
    assert future.exception(20) is not None
    apart = [name for name in job_keys(link, future.id) if b":const:" in name or b":value:" in name]
    assert len(apart) == 2
    for name in apart:
        link.command("PEXPIRE", name, 30_000)
    gate.touch()
    again = queue.rerun(future.id)
    # Nobody need read it, nor a monitor look after it.
    wait_until(lambda: not link.command("HEXISTS", keys("job", future.id), "frozen"), timeout=1)
    assert all(
        link.command("PTTL", name) > 1_000_000 or not link.command("EXISTS", name) for name in apart
    )
    assert again.result(60) == 600_000.0


def total_if(one: Any, other: Any, gate: Path) -> float:
    """Return a sum if there is a gate."""
    if not gate.exists():
        raise FileNotFoundError(str(gate))
    return float(one.sum() + other.sum())


def test_what_is_no_failed_job_is_refused(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, link: Link, keys: Keys
) -> None:
    """One that runs, that was cancelled, that was forgotten, that never was."""
    gate = tmp_path / "gate"
    running = queue.compute(dask.delayed(busy_then_told)(tmp_path / "log", gate), detach=True)
    with pytest.raises(ValueError, match="did not fail: it is running"):
        queue.rerun(running.id)
    queue.cancel(running.id, "for good")
    with pytest.raises(redisq.JobCancelled, match="for good"):
        queue.rerun(running.id)
    x, _, _ = chain(tmp_path)
    future = queue.compute(x, detach=True)
    assert future.exception(20) is not None
    future.forget()
    with pytest.raises(redisq.JobLost, match=r"forget\(\)"):
        queue.rerun(future.id)
    with pytest.raises(redisq.JobLost, match="is gone"):
        queue.rerun("f" * 32)


@pytest.mark.parametrize("what", ["a block", "its time", "half of it"])
def test_a_job_that_is_not_whole_is_refused(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, link: Link, keys: Keys, what: str
) -> None:
    """A block is gone, its results are too old, its removal has begun: it stays as it is."""
    x, _, _ = chain(tmp_path)
    future = queue.compute(x, detach=True, result_ttl=100)
    assert future.exception(20) is not None
    if what == "a block":
        link.command("DEL", keys("blocks", future.id))
    elif what == "its time":
        link.command("HSET", keys("job", future.id), "ended", 1)
    else:
        link.command("SADD", keys("consts", future.id), "d" * 32)
        assert link.call("sweep", keys, job=future.id) == 0
    with pytest.raises(redisq.JobLost, match="submit it again"):
        queue.rerun(future.id)
    assert link.command("HGET", keys("job", future.id), "state") == b"failed"


def test_who_dies_over_a_rerun_leaves_it_to_the_next(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, link: Link, keys: Keys
) -> None:
    """The script was called, and the rebuild was not: a monitor does it."""
    x, _, gate = chain(tmp_path)
    future = queue.compute(x, detach=True)
    assert future.exception(20) is not None
    gate.touch()
    epoch = link.command("HGET", keys("job", future.id), "epoch")
    assert link.call("rerun", keys, job=future.id, epoch=epoch, fresh="f" * 16) == b"rerun"
    link.command("DEL", keys("monitor"))
    wait_until(lambda: looked(link, keys))
    wait_until(lambda: not link.command("HEXISTS", keys("job", future.id), "frozen"))
    assert queue.attach(future.id).result(60) == "c"
    assert not rebuild(link, keys, future.id)
