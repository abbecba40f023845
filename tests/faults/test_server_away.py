"""The server dies under load, and comes back with its log, older, or empty. Fault rows 20 to 24."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from conftest import WorkerProcess, wait_until
from mortal import MortalServer

from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.queue import Queue


@pytest.fixture
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MortalServer]:
    """A server that may die."""
    with MortalServer(tmp_path_factory.mktemp("m")) as server:
        yield server


@pytest.fixture
def far(mortal: MortalServer, start_worker: Callable[..., WorkerProcess]) -> Iterator[Queue]:
    """A queue on it, with two slots whose alive keys live for two seconds."""
    start_worker("test", "--nworkers", "2", "--alive-expiry", "2", url=mortal.url)
    with Queue("test", mortal.url) as queue:
        queue.wait_for_workers(2, timeout=20)
        yield queue


class Computing:
    """A graph of six layers that computes in a thread, and leaves a line for each run of a task."""

    def __init__(self, queue: Queue, folder: Path, width: int = 40, pause: float = 0.01) -> None:
        self.runs = folder / "runs"
        self.runs.touch()
        dsk: dict[Any, Any] = {}
        for layer in range(6):
            for i in range(width):
                inputs = [("x", layer - 1, (i + k) % width) for k in range(3)] if layer else [1]
                dsk["x", layer, i] = (add, self.runs, pause, inputs)
        self.keys = [("x", 5, i) for i in range(width)]
        self.tasks = len(dsk)
        self.answer: Any = None
        self.error: BaseException | None = None

        def run() -> None:
            try:
                self.answer = queue.get(dsk, self.keys, alive_expiry=2, ft_interval=1)
            except BaseException as error:
                self.error = error

        self.thread = Thread(target=run)
        self.thread.start()

    def done(self) -> int:
        """Return how many runs of tasks there were."""
        return self.runs.read_text().count("\n")

    def check(self, timeout: float = 40) -> None:
        """Wait for the answer; it must be right."""
        self.thread.join(timeout)
        assert not self.thread.is_alive(), "get did not return"
        if self.error is not None:
            raise self.error
        assert list(self.answer) == [3**5] * len(self.keys)


def add(runs: Path, pause: float, inputs: list[int]) -> int:
    """Note that it ran, and add its inputs."""
    with runs.open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(pause)
    return sum(inputs)


def nothing_left(url: str) -> None:
    """Wait until no key of a job is left."""
    link = Link(url)
    pattern = Keys("test").prefix.replace("{", "\\{") + "*job:*"
    wait_until(lambda: link.command("KEYS", pattern) == [])
    link.close()


def test_a_restart_with_the_log_loses_nothing(
    mortal: MortalServer, far: Queue, tmp_path: Path
) -> None:
    """Rows 20, 21: two alive expiries away. Its workers lived, so few tasks run twice."""
    job = Computing(far, tmp_path)
    wait_until(lambda: job.done() > job.tasks // 4)
    mortal.kill()
    time.sleep(4.5)
    before = job.done()
    mortal.start()
    back = time.monotonic()
    wait_until(lambda: job.done() > before + 2, timeout=10)
    assert time.monotonic() - back < 3, "work went on too late"
    job.check()
    assert job.done() - job.tasks <= 2 * 10, f"{job.done()} runs of {job.tasks} tasks"
    nothing_left(mortal.url)


def test_a_server_that_comes_back_older_gives_the_right_answer(
    mortal: MortalServer, far: Queue, tmp_path: Path
) -> None:
    """Row 23: results that were accepted and delivered are forgotten."""
    job = Computing(far, tmp_path)
    wait_until(lambda: job.done() > job.tasks // 4)
    mortal.save(tmp_path / "older")
    wait_until(lambda: job.done() > job.tasks // 2)
    mortal.kill()
    mortal.replace(tmp_path / "older")
    mortal.start()
    job.check()
    nothing_left(mortal.url)


def test_a_server_that_forgot_part_of_the_upload_is_given_it_again(
    mortal: MortalServer, far: Queue, tmp_path: Path
) -> None:
    """Row 23: it comes back from before the job was sealed, and knows some of its blocks."""
    job = Computing(far, tmp_path, width=200, pause=0.002)
    link = Link(mortal.url)
    blocks = Keys("test").prefix.replace("{", "\\{") + "job:*:blocks"
    wait_until(lambda: link.command("KEYS", blocks))
    mortal.save(tmp_path / "older")
    wait_until(lambda: job.done() > job.tasks // 4)
    mortal.kill()
    mortal.replace(tmp_path / "older")
    mortal.start()
    link.close()
    job.check()
    nothing_left(mortal.url)


def test_a_server_that_comes_back_empty_is_given_what_is_missing(
    mortal: MortalServer, far: Queue, tmp_path: Path
) -> None:
    """Row 22: the graph is still with its client; the workers register again by themselves."""
    job = Computing(far, tmp_path)
    wait_until(lambda: job.done() > job.tasks // 2)
    mortal.kill()
    mortal.replace(None)
    mortal.start()
    job.check()
    nothing_left(mortal.url)


@pytest.mark.parametrize("words", [["SCRIPT", "FLUSH"], ["CLIENT", "KILL", "TYPE", "normal"]])
def test_flushed_scripts_and_killed_connections_are_not_seen(
    mortal: MortalServer, far: Queue, tmp_path: Path, words: list[str]
) -> None:
    """Rows 17 and 24: again and again, under load."""
    job = Computing(far, tmp_path)
    link = Link(mortal.url)
    while job.thread.is_alive():
        link.command(*words, *(["SKIPME", "yes"] if words[0] == "CLIENT" else []))
        time.sleep(0.05)
    link.close()
    job.check()
    nothing_left(mortal.url)


def test_a_lost_value_is_made_again(mortal: MortalServer, far: Queue, tmp_path: Path) -> None:
    """Row 39: values are deleted behind the scheduler's back, while others need them."""
    job = Computing(far, tmp_path, pause=0.02)
    link = Link(mortal.url)
    wait_until(lambda: job.done() > job.tasks // 4)
    (values,) = link.command("KEYS", Keys("test").prefix.replace("{", "\\{") + "job:*:values")
    tasks = link.command("HKEYS", values)
    assert tasks
    link.command("HDEL", values, *tasks[: len(tasks) // 2])
    link.close()
    job.check()
    nothing_left(mortal.url)
