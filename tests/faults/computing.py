"""A graph that computes while things go wrong, and counts how often its tasks ran."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from threading import Thread
from typing import Any

from conftest import wait_until

from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.queue import Queue

__all__ = ["Computing", "nothing_left"]


class Computing:
    """A graph of six layers that computes in a thread, and leaves a line for each run of a task."""

    def __init__(
        self, queue: Queue, folder: Path, width: int = 40, pause: float = 0.01, **options: Any
    ) -> None:
        self.runs = folder / "runs"
        folder.mkdir(exist_ok=True)
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

        options = {"alive_expiry": 2, "ft_interval": 1, **options}

        def run() -> None:
            try:
                self.answer = queue.get(dsk, self.keys, **options)
            except BaseException as error:
                self.error = error

        self.thread = Thread(target=run)
        self.thread.start()

    def done(self) -> int:
        """Return how many runs of tasks there were."""
        return self.runs.read_text().count("\n")

    def got_to(self, runs: int) -> bool:
        """Tell whether there were so many runs, or there will be no more."""
        return self.done() >= runs or not self.thread.is_alive()

    def half_way(self) -> None:
        """Wait until a good part is done, and a good part is not."""
        wait_until(lambda: self.done() > self.tasks // 4)

    def slots(self) -> dict[int, int]:
        """Return process id -> runs, of the slots that ran something."""
        return Counter(int(line) for line in self.runs.read_text().split())

    def check(self, timeout: float = 40, *, extra: int | None = None) -> None:
        """Wait for the answer; it must be right, after at most `extra` runs more than tasks."""
        self.thread.join(timeout)
        assert not self.thread.is_alive(), "get did not return"
        if self.error is not None:
            raise self.error
        assert list(self.answer) == [3**5] * len(self.keys)
        more = self.done() - self.tasks
        assert extra is None or more <= extra, f"{more} runs too many of {self.tasks}"


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
    deadline = time.monotonic() + 60
    while (left := link.command("KEYS", pattern)) and time.monotonic() < deadline:
        time.sleep(0.01)
    link.close()
    assert left == []
