"""Whether slots are kept busy: tasks that sleep 10 ms, against no overhead at all."""

import statistics
from collections.abc import Mapping

from benchmarks import SLOTS
from benchmarks.graph import Graph
from benchmarks.peers import Get
from benchmarks.report import Figure
from benchmarks.run import timed
from benchmarks.tasks import nap

BAR_SHARE = 0.95


def sleep(gets: Mapping[str, Get], tasks: int, seconds: float, repeat: int) -> list[Figure]:
    """Measure the share of the ideal, which is ``tasks * seconds / slots``.

    A sleep takes a little more than was asked for, and so the best share that can be had is
    told too: that of slots which do nothing but these sleeps.
    """
    ideal = tasks * seconds / SLOTS
    times: dict[str, list[float]] = {peer: [] for peer in gets}
    naps: list[float] = []
    for _ in range(repeat):
        for peer, get in gets.items():
            graph = Graph()
            graph.ask([graph.add(("nap", i), nap, seconds) for i in range(tasks)])
            taken, slept = timed(get, graph)
            times[peer].append(taken)
            naps += slept
    what = f"share of the ideal, {tasks} tasks of {seconds * 1e3:g} ms"
    return [
        Figure(
            f"{peer}: {what}",
            ideal / statistics.median(times[peer]),
            "",
            BAR_SHARE if peer == "redisq" else None,
            at_least=True,
        )
        for peer in gets
    ] + [Figure("the best that sleep itself allows", seconds / statistics.fmean(naps), "")]
