"""A loop that tells what happens to it: one line each in the log, only if it was asked to."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import WorkerProcess, wait_until
from test_faults import Background

from dask_redisq.link import Link
from dask_redisq.queue import Queue


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """A function that gives the lines of loops, without the ids of jobs and slots."""
    caplog.set_level(logging.INFO, "dask_redisq.foreach")

    def lines() -> list[str]:
        found = [r.getMessage() for r in caplog.records if r.name == "dask_redisq.foreach"]
        return [re.sub("[0-9a-f]{32}", "ID", re.sub("/[0-9a-f]{4}", "", line)) for line in found]

    return lines


def test_a_loop_tells_of_what_it_sends_and_who_takes_it(
    queue: Queue, workers: WorkerProcess, told: Callable[[], list[str]]
) -> None:
    """One line a window, one a lease; without `verbose` none, and no event on the server."""
    assert queue.foreach(abs, range(4)) == [0, 1, 2, 3]
    assert told() == []
    assert queue.foreach(abs, range(4), chunk_size=2, verbose=True) == [0, 1, 2, 3]
    assert told()[0] == "submit: iterations 0-3, as job ID"
    assert sorted(told()[1:]) == [
        "lease: iterations 0-1, to slot one", "lease: iterations 2-3, to slot one",
    ]  # fmt: skip
    assert queue.times(1, list, verbose=True) == [[]]
    assert "submit: iterations 0, as job ID" in told()


def test_a_loop_without_it_leaves_no_events(
    queue: Queue, workers: WorkerProcess, link: Link, tmp_path: Path
) -> None:
    """It costs those who do not look nothing."""
    gate = tmp_path / "gate"
    for verbose in (False, True):
        gate.unlink(missing_ok=True)
        loop = Background(queue.foreach, wait_for, [gate], verbose=verbose)
        wait_until(lambda: queue.stats()["running"] == 1)
        events = [name for name in link.command("KEYS", "*") if name.endswith(b":events")]
        assert len(events) == verbose
        gate.touch()
        loop.result()


def wait_for(gate: Path) -> None:
    """Wait for a file."""
    while not gate.exists():
        time.sleep(0.005)


def die_once(mark: Path, i: int) -> int:
    """End the process of the first one who comes to 1."""
    if i == 1 and not mark.exists():
        mark.touch()
        os._exit(3)
    return i


def test_a_death_and_what_runs_again_is_told(
    queue: Queue, workers: WorkerProcess, told: Callable[[], list[str]], tmp_path: Path
) -> None:
    """Who did it, and with whom."""
    marks = [tmp_path / "mark"] * 3
    assert queue.foreach(die_once, marks, range(3), chunk_size=3, verbose=True) == [0, 1, 2]
    lines = told()
    assert lines[:4] == [
        "submit: iterations 0-2, as job ID",
        "lease: iterations 0-2, to slot one",
        "fault: iteration 1 ended its process, slot one",
        "resubmission: iterations 0-2, since slot one is gone",
    ]
    assert "lease: iterations 1, to slot one" in lines[4:]  # alone


def test_an_iteration_that_raises_is_told(
    queue: Queue, workers: WorkerProcess, told: Callable[[], list[str]], tmp_path: Path
) -> None:
    """Whether it is left out, or tried again; and one that takes too long."""
    numbers = ["1", "x"]
    assert queue.foreach(int, numbers, errorhandling="remove", verbose=True) == [1]
    fault = "fault: iteration 1 raised ValueError(\"invalid literal for int() with base 10: 'x'\")"
    assert fault in told()
    mark = tmp_path / "mark"
    assert queue.foreach(raise_once, [mark], retries=1, verbose=True) == [1]
    assert "fault: iteration 0 raised in slot one, and has retries left" in told()
    mark.unlink()
    assert queue.foreach(hang_once, [mark], retries=1, timeout=0.3, verbose=True) == [1]
    assert "fault: iteration 0 took longer than its timeout in slot one" in told()


def raise_odd(i: int) -> int:
    """Raise for odd numbers."""
    if i % 2:
        raise ValueError(i)
    return i


def test_a_reduced_loop_tells_of_its_chunks_and_of_who_is_left_out(
    queue: Queue, workers: WorkerProcess, told: Callable[[], list[str]]
) -> None:
    """What is sent are chunks; what raises is an iteration, whose chunk has the rest."""
    words: dict[str, Any] = {"reduce": list, "chunk_size": 4, "verbose": True}
    assert queue.foreach(raise_odd, 6, errorhandling="remove", **words) == [[0, 2], [4]]
    lines = told()
    assert lines[0] == "submit: chunks 0-1, as job ID"
    # Two slots have a chunk each: whose faults come first is theirs to settle.
    assert sorted(line for line in lines if line.startswith("fault")) == [
        "fault: iteration 1 raised ValueError(1)", "fault: iteration 3 raised ValueError(3)",
        "fault: iteration 5 raised ValueError(5)",
    ]  # fmt: skip
    assert all("iteration" not in line for line in lines if line.startswith("lease"))


def test_lines_go_to_stderr_where_the_log_would_drop_them(
    queue: Queue, workers: WorkerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a plain script; for the time of the loop, and each line once."""
    logger = logging.getLogger("dask_redisq.foreach")
    before = logger.level, logger.propagate, list(logger.handlers)
    assert queue.foreach(abs, 2, verbose=True) == [0, 1]
    told = capsys.readouterr().err
    assert told.startswith("submit: iterations 0-1, as job ")
    assert told.count("submit") == 1
    assert (logger.level, logger.propagate, logger.handlers) == before
    logging.disable(logging.CRITICAL)
    try:
        queue.foreach(abs, 2, verbose=True)
    finally:
        logging.disable(logging.NOTSET)
    assert capsys.readouterr().err == ""  # whoever asked for silence has it
    queue.foreach(abs, 2)
    assert capsys.readouterr().err == ""


def raise_once(mark: Path) -> int:
    """Raise for the first time."""
    if not mark.exists():
        mark.touch()
        raise ValueError
    return 1


def hang_once(mark: Path) -> int:
    """Take long for the first time."""
    if not mark.exists():
        mark.touch()
        time.sleep(60)
    return 1


def test_a_second_result_is_told(
    queue: Queue,
    start_worker: Callable[..., WorkerProcess],
    told: Callable[[], list[str]],
    link: Link,
    tmp_path: Path,
) -> None:
    """A slot is taken for dead while it works; another one is faster, and the loop goes on."""
    first = start_worker("test", "--nworkers", "1", "--name", "slow")
    queue.wait_for_workers(1, timeout=90)
    slow, gate, end = tmp_path / "slow", tmp_path / "gate", tmp_path / "end"
    loop = Background(
        queue.foreach, first_waits, [slow, None], [gate, end], chunk_size=1, verbose=True
    )
    wait_until(slow.exists)
    (row,) = queue.workers()
    (slot,) = row["slots"]
    link.call(
        "unregister", queue.keys, worker=row["id"], slot=slot, seq=1, begun=-1, position=-1,
        kind="", record=b"", retries=-1,
    )  # fmt: skip
    start_worker("test", "--nworkers", "1", "--name", "fast")
    wait_until(lambda: queue.stats()["finished"] == 1)  # the other run of the first one
    gate.touch()
    wait_until(lambda: any(line.startswith("drop") for line in told()))
    end.touch()
    assert loop.result() == ["gate", "end"]
    assert "drop: another result of iterations 0, from slot slow" in told()
    assert "resubmission: iterations 0, since slot slow is gone" in told()
    assert first.process.poll() is None


def first_waits(mark: Path | None, gate: Path) -> str:
    """Wait for a gate; the second one who comes with that mark does not."""
    if mark is None or not mark.exists():
        if mark is not None:
            mark.touch()
        wait_for(gate)
    return gate.name
