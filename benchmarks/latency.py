"""How long one small computation takes on a warm queue, and how soon its task starts."""

import statistics
import time
from collections.abc import Mapping

from dask.delayed import delayed

from benchmarks.graph import Graph
from benchmarks.peers import Get
from benchmarks.report import Figure
from benchmarks.tasks import inc, now

BAR_OVER_SYNC_MS = 2.0
BAR_START_MS = 5.0


def latency(gets: Mapping[str, Get], repeat: int) -> list[Figure]:
    """Measure ``delayed(inc)(1)`` against sync, and the way from submit to the task's first line.

    Parameters
    ----------
    gets
        The peers; ``sync`` has to be among them.
    repeat
        How often; the peers take turns.
    """
    calls: dict[str, list[float]] = {peer: [] for peer in gets}
    starts: dict[str, list[float]] = {peer: [] for peer in gets}
    for get in gets.values():
        _compute_ms(get)  # the first one imports
    for _ in range(repeat):
        for peer, get in gets.items():
            calls[peer].append(_compute_ms(get))
            starts[peer].append(_start_ms(get))
    figures = []
    for peer in gets:
        over = statistics.median(calls[peer]) - statistics.median(calls["sync"])
        bar = BAR_OVER_SYNC_MS if peer == "redisq" else None
        figures.append(Figure(f"{peer}: delayed(inc)(1), over sync", over, "ms", bar))
        bar = BAR_START_MS if peer == "redisq" else None
        figures.append(
            Figure(f"{peer}: submit to first line", statistics.median(starts[peer]), "ms", bar)
        )
        worst = statistics.quantiles(starts[peer], n=100)[-1]
        figures.append(Figure(f"{peer}: submit to first line, 99th percentile", worst, "ms"))
    return figures


def _compute_ms(get: Get) -> float:
    value = delayed(inc)(1)
    start = time.perf_counter()
    result = value.compute(scheduler=get)
    seconds = time.perf_counter() - start
    if result != 2:
        msg = f"inc(1) came back as {result}"
        raise ValueError(msg)
    return seconds * 1e3


def _start_ms(get: Get) -> float:
    graph = Graph()
    graph.ask([graph.add("now", now, 0)])
    # The wall clock, since it is the one clock that two processes surely share.
    submitted = time.time()
    (started,) = get(graph.dsk, graph.keys)
    return float(started - submitted) * 1e3
