"""``dask-redisq demo``: pi by Monte Carlo, an array and a data frame, each result checked.

The first stage is the example that doRedis opens its vignette with.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from dask_redisq.errors import RedisqError
from dask_redisq.local import LocalCluster
from dask_redisq.queue import Queue

__all__ = ["run_demo"]

#: Seconds between two looks at how far a stage is.
LOOK = 0.1
_BAR = 30

Get = Callable[..., Any]


class CheckFailed(Exception):
    """A result is not what it ought to be."""


# ---------------------------------------------------------------------------------- the stages


def estimate_pi(get: Get) -> str:
    """Estimate pi by 10 tasks that draw 1,000,000 points each."""
    import dask

    tasks = [dask.delayed(_quarter_circle)(seed, 1_000_000) for seed in range(10)]
    estimates = dask.compute(*tasks, scheduler=get)
    estimate = sum(estimates) / len(estimates)
    check_pi(estimate)
    return f"pi is about {estimate:.5f}, off by {abs(estimate - math.pi):.5f}"


def _quarter_circle(seed: int, draws: int) -> float:
    import numpy as np

    x, y = np.random.default_rng(seed).random((2, draws))
    return 4 * float(np.mean(x**2 + y**2 < 1))


def check_pi(estimate: float) -> None:
    """Check that an estimate is near pi: 10,000,000 draws are off by 0.0005, mostly."""
    if not abs(estimate - math.pi) < 0.01:
        raise CheckFailed(f"pi is not {estimate:.5f}")


def reduce_array(get: Get) -> str:
    """Reduce a random array of 4,000 x 4,000 to how its columns are spread."""
    import dask.array as da
    import numpy as np

    x = da.random.default_rng(7).normal(10, 2, size=(4000, 4000), chunks=(500, 500))
    spread = (x + x.T).std(axis=0)
    found = spread.compute(scheduler=get)
    check_same(np.allclose, found, spread.compute(scheduler="threads"))
    return f"the standard deviations of 4,000 columns, {found.mean():.4f} in the mean"


def group_frame(get: Get) -> str:
    """Group a data frame of 2,592,000 rows by name."""
    import dask.datasets
    import numpy as np

    frame = dask.datasets.timeseries(seed=7)  # a row a second, a partition a day, for 30 days
    means = frame.groupby("name")[["x", "y"]].mean()
    found = means.compute(scheduler=get).sort_index()
    expected = means.compute(scheduler="threads").sort_index()
    check_same(lambda a, b: a.index.equals(b.index) and np.allclose(a, b), found, expected)
    return f"the means of {len(found)} groups, {found.x.abs().max():.4f} at most"


def check_same(same: Callable[[Any, Any], bool], found: object, expected: object) -> None:
    """Check that a result is what Dask's scheduler in this process found."""
    if not same(found, expected):
        raise CheckFailed(f"found\n{found}\nbut Dask's own scheduler found\n{expected}")


STAGES: tuple[tuple[str, Callable[[Get], str]], ...] = (
    ("Monte Carlo pi", estimate_pi),
    ("array reduction", reduce_array),
    ("frame groupby", group_frame),
)


# -------------------------------------------------------------------------------- running them


def run_demo(n_workers: int | None = None, out: TextIO | None = None) -> int:
    """Run all stages on workers and a server that are started for them.

    Parameters
    ----------
    n_workers
        How many slots; by default one per core.
    out
        Where to write; stdout by default.

    Returns
    -------
    int
        0, or 1 when a check failed: the exit code.

    Raises
    ------
    RedisqError
        There is no server program, a package that the demo needs is missing, or the workers did
        not start.
    """
    out = out or sys.stdout
    _require("numpy", "pandas", "pyarrow")
    started = time.monotonic()
    with LocalCluster(n_workers) as cluster:
        _say(out, f"a private Redis server and {cluster.n_workers} slots, {_since(started)}")
        failed = [name for name, stage in STAGES if not _run_stage(name, stage, cluster, out)]
    if failed:
        _say(out, f"FAILED: {', '.join(failed)}")
        return 1
    _say(out, f"all {len(STAGES)} results are right, {_since(started)}; server and workers ended")
    return 0


def _require(*modules: str) -> None:
    import importlib.util

    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise RedisqError(
            f'the demo needs {" and ".join(missing)}: pip install "dask-redisq[local]"'
        )


def _run_stage(name: str, stage: Callable[[Get], str], cluster: LocalCluster, out: TextIO) -> bool:
    """Run one stage with its progress; whether its result is right."""
    with _progress(name, Queue(cluster.queue, url=cluster.url), out) as progress:
        try:
            result, right = stage(progress.watched(cluster.get)), True
        except CheckFailed as failure:
            result, right = f"WRONG: {failure}", False
    _say(out, f"{progress.line()}\n    {result}")
    return right


class _Progress:
    """How far a stage is, by what the queue says of itself."""

    def __init__(self, name: str, queue: Queue) -> None:
        self._name = name
        self._queue = queue
        self._finished_before: int = queue.stats()["finished"]
        self._seconds = 0.0
        self._finished = 0
        self._all = 0

    def watched(self, get: Get) -> Get:
        """Give a `get` whose time counts: that in which the workers work."""

        def watched_get(*args: Any, **kwargs: Any) -> Any:
            started = time.monotonic()
            try:
                return get(*args, **kwargs)
            finally:
                self._seconds += time.monotonic() - started
                self.look()

        return watched_get

    def look(self) -> None:
        """Ask the queue."""
        stats = self._queue.stats()
        self._finished = stats["finished"] - self._finished_before
        left = stats["waiting"] + stats["ready"] + stats["running"]
        self._all = max(self._all, self._finished + left)

    def line(self) -> str:
        """Say it in one line, with the rate once the workers are done."""
        filled = _BAR * self._finished // (self._all or 1)
        bar = f"[{'#' * filled}{'.' * (_BAR - filled)}]"
        text = f"{self._name:16} {bar} {self._finished:5} tasks"
        if self._seconds:
            text += f" in {self._seconds:.2f} s, {self._finished / self._seconds:,.0f} tasks/s"
        return text


@contextmanager
def _progress(name: str, queue: Queue, out: TextIO) -> Iterator[_Progress]:
    """Watch a stage from a thread, and draw its bar where somebody sees it move."""
    progress = _Progress(name, queue)
    over = threading.Event()

    def draw() -> None:
        while not over.wait(LOOK):
            progress.look()
            out.write(f"\r{progress.line()}")
            out.flush()

    thread = threading.Thread(target=draw, name="redisq-demo-progress", daemon=True)
    moving = out.isatty()  # elsewhere, carriage returns are rubbish: one line at the end
    if moving:
        thread.start()
    try:
        yield progress
    finally:
        over.set()
        if moving:
            thread.join()
            out.write("\r\x1b[K")


def _say(out: TextIO, line: str) -> None:
    out.write(f"{line}\n")
    out.flush()  # a pipe too shows each stage when it ends


def _since(started: float) -> str:
    return f"{time.monotonic() - started:.1f} s"
