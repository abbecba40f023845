"""What Dask's progress bar and profiler cost on tasks that do nothing."""

import statistics
import time
from collections.abc import Callable, Mapping
from io import StringIO
from typing import Any

import dask
from dask.delayed import delayed
from dask.diagnostics import Profiler, ProgressBar

from benchmarks.peers import Get
from benchmarks.report import Figure
from benchmarks.tasks import inc

BAR = 1.5


def callbacks(gets: Mapping[str, Get], tasks: int, repeat: int) -> list[Figure]:
    """Measure a computation under `ProgressBar` and `Profiler`, as a multiple of the bare one.

    As a user calls it, from `dask.compute` on; and the scheduler alone. The bar's own thread sleeps
    0.1 s at a time, and it waits for that at the end: the last figures are with 1 ms.

    Parameters
    ----------
    gets
        The peers.
    tasks
        How many, without dependencies.
    repeat
        Pairs; the peers take turns.
    """
    values = [delayed(inc)(i) for i in range(tasks)]
    dsk = {("inc", i): (inc, i) for i in range(tasks)}
    keys = list(dsk)
    ways: dict[str, Callable[[Get], Any]] = {
        "compute": lambda get: dask.compute(*values, scheduler=get),
        "get": lambda get: get(dsk, keys),
    }
    ratios: dict[tuple[str, str, float], list[float]] = {}
    for _ in range(repeat):
        for peer, get in gets.items():
            for way, run in ways.items():
                for dt in (0.1, 0.001):
                    ratio = _with(run, get, dt, tasks) / _seconds(run, get)
                    ratios.setdefault((peer, way, dt), []).append(ratio)
    figures = []
    for (peer, way, dt), found in ratios.items():
        barred = peer == "redisq" and way == "compute" and dt == 0.1
        label = f"{peer}: with both / without, {way}{'' if dt == 0.1 else f', dt={dt:g} s'}"
        figures.append(Figure(label, statistics.median(found), "x", BAR if barred else None))
    return figures


def _seconds(run: Callable[[Get], Any], get: Get) -> float:
    start = time.perf_counter()
    run(get)
    return time.perf_counter() - start


def _with(run: Callable[[Get], Any], get: Get, dt: float, tasks: int) -> float:
    with ProgressBar(dt=dt, out=StringIO()), Profiler() as profiler:
        seconds = _seconds(run, get)
    if len(profiler.results) != tasks:
        msg = f"the profiler saw {len(profiler.results)} of {tasks} tasks"
        raise ValueError(msg)
    return seconds
