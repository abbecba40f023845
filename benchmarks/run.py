"""The overhead per task of each peer on each shape: rounds, checks, medians."""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil
from dask.local import get_sync

from benchmarks.graph import Graph
from benchmarks.peers import Get
from benchmarks.shapes import SHAPES, Shape

#: What redisq may cost, as a multiple of a peer's time on the same graph.
OVERHEAD_BARS = {"sync": 1.3, "processes": 0.6, "distributed": 1 / 40}

#: Seconds of quiet before a call is timed.
QUIET = 0.2


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Parameters
    ----------
    quick
        Small graphs: to see that everything runs, not to compare.
    repeat
        Rounds; each runs every peer once.
    budget
        Seconds after which a peer sits out the rest of the rounds on a shape. A slow one is
        measured fewer times, but never on a smaller graph, and at least once.
    """

    quick: bool = False
    repeat: int = 5
    budget: float = 20.0


@dataclass
class Row:
    """What was measured on one shape."""

    shape: Shape
    label: str
    tasks: int
    edges: int
    barred: bool
    seconds: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def median(self, peer: str) -> float | None:
        """Return the peer's median time of a call, in seconds."""
        times = self.seconds.get(peer)
        return statistics.median(times) if times else None

    def per_task(self, peer: str) -> float | None:
        """Return the peer's median time per task, in microseconds."""
        median = self.median(peer)
        return None if median is None else median / self.tasks * 1e6

    def ratio(self, peer: str, other: str) -> float | None:
        """Return the peer's median time as a multiple of another's."""
        mine, theirs = self.median(peer), self.median(other)
        return None if mine is None or theirs is None else mine / theirs

    def as_json(self) -> dict[str, Any]:
        """Return the row in plain types."""
        return {
            "tasks": self.tasks,
            "edges": self.edges,
            "barred": self.barred,
            "seconds": self.seconds,
            "us_per_task": {peer: self.per_task(peer) for peer in self.seconds},
            "redisq_ratio": {peer: self.ratio("redisq", peer) for peer in self.seconds},
            "failures": self.failures,
        }


def overhead(
    gets: Mapping[str, Get],
    shapes: Iterable[str],
    settings: Settings,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Measure open peers on shapes.

    Parameters
    ----------
    gets
        Each peer's `get`.
    shapes
        Keys of `SHAPES`.
    settings
        How often, and how large.
    tell
        Is called with a line about what is going on.
    """
    # What one peer imported must not lengthen every garbage collection in another's time.
    gc.collect()
    gc.freeze()
    try:
        return [_measure(SHAPES[name], gets, settings, tell) for name in shapes]
    finally:
        gc.unfreeze()


def _measure(
    shape: Shape, gets: Mapping[str, Get], settings: Settings, tell: Callable[[str], None]
) -> Row:
    graph = shape.graph(quick=settings.quick)
    tasks, edges = graph.size()
    barred = shape.barred and not settings.quick  # the bars are for the full sizes
    row = Row(shape, shape.label(quick=settings.quick), tasks, edges, barred)
    expected = get_sync(graph.dsk, graph.keys)
    for peer, get in gets.items():
        _warm_up(row, peer, get)
    for number in range(settings.repeat):
        # Another peer begins each round, so that a slow change of the machine favours none.
        order = list(gets)[number % len(gets) :] + list(gets)[: number % len(gets)]
        for peer in order:
            if peer not in row.failures and _affords(row.seconds.get(peer, []), settings.budget):
                tell(f"{row.label}: round {number + 1} of {settings.repeat}, {peer}")
                _call(row, peer, gets[peer], expected, settings)
    return row


def _affords(times: list[float], budget: float) -> bool:
    return not times or sum(times) + max(times) <= budget


def _warm_up(row: Row, peer: str, get: Get) -> None:
    """Have the peer import, connect and compile what it does only once."""
    small = row.shape.graph(quick=True)
    try:
        get(small.dsk, small.keys)
    except Exception as error:
        row.failures[peer] = f"warm-up: {error!r}"


def _call(row: Row, peer: str, get: Get, expected: Any, settings: Settings) -> None:
    graph = row.shape.graph(quick=settings.quick)
    try:
        seconds, result = timed(get, graph)
    except Exception as error:
        row.failures[peer] = repr(error)
        return
    if list(result) != list(expected):
        row.failures[peer] = "its result differs from that of dask.get"
        return
    row.seconds.setdefault(peer, []).append(seconds)


def timed(get: Get, graph: Graph, **kwargs: Any) -> tuple[float, Any]:
    """Run the graph, and return the seconds from submit to the last output, and the outputs."""
    gc.collect()  # the last call's garbage is not this one's cost
    _rest()
    start = time.perf_counter()
    result = get(graph.dsk, graph.keys, **kwargs)
    return time.perf_counter() - start, result


def _rest() -> None:
    """Wait until the processes of all peers are quiet, at most 10 s.

    distributed goes on for up to a second after it has answered, forgetting the tasks; on two
    cores that took a third off the speed of whoever came next.
    """
    everyone = [psutil.Process(), *psutil.Process().children(recursive=True)]
    deadline, busy = time.monotonic() + 10, True
    while busy and time.monotonic() < deadline:
        before = _cpu_seconds(everyone)
        time.sleep(QUIET)
        busy = _cpu_seconds(everyone) - before > 0.1 * QUIET


def _cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total
