"""The graphs that are measured: pure generators, one function per shape.

The nodes are `dask._task_spec.Task`, not legacy tuples: they are what Dask's collections
hand to a `get` since 2024.12. A tuple would be turned into such a node inside each call, so
that every peer's time would hold Dask's conversion, which is not the peer's doing.

Keys are tuples of a name and numbers, as those of collections are. Random shapes are
seeded: the same arguments make the same graph, in every process.
"""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dask._task_spec import List, TaskRef

from benchmarks.graph import Graph
from benchmarks.task_bench import RULES, Rule, task_bench
from benchmarks.tasks import clamp, inc, total

SEED = 20261


# The five that have a bar.


def bag(n: int) -> Graph:
    """N independent tasks, all of them asked for: no edge, most values to gather."""
    graph = Graph()
    return graph.ask([graph.add(("bag", i), inc, i) for i in range(n)])


def merge(n: int) -> Graph:
    """N independent tasks and one that sums them: a fan-in of N (RSDS merge-N)."""
    graph = Graph()
    parts = [graph.add(("part", i), inc, i) for i in range(n)]
    return graph.ask([graph.add("merge", sum, List(*parts))])


def tree(depth: int) -> Graph:
    """2^depth leaves, added in pairs down to one value: 2^(depth+1) - 1 tasks."""
    graph = Graph()
    level = [graph.add(("leaf", i), inc, i) for i in range(2**depth)]
    while len(level) > 1:
        depth -= 1
        pairs = zip(level[::2], level[1::2], strict=True)
        level = [graph.add(("add", depth, i), total, a, b) for i, (a, b) in enumerate(pairs)]
    return graph.ask(level)


def chain(n: int) -> Graph:
    """N tasks, each on the one before: no parallelism, latency alone."""
    graph = Graph()
    link = graph.add(("chain", 0), inc, 0)
    for i in range(1, n):
        link = graph.add(("chain", i), inc, link)
    return graph.ask([link])


def layers_random(layers: int, width: int) -> Graph:
    """S layers of N tasks, each adding 4 random tasks of the layer before; outputs the last.

    About e^-4 of each layer feeds nobody and is culled, so fewer than S x N tasks run.
    """
    rng = random.Random(SEED)
    graph = Graph()
    level = [graph.add(("random", 0, i), inc, i) for i in range(width)]
    for layer in range(1, layers):
        level = [
            graph.add(("random", layer, i), total, *rng.sample(level, 4)) for i in range(width)
        ]
    return graph.ask(level)


# Those of the community's benchmarks that need no data.


def neighbour(n: int) -> Graph:
    """Twice, add each value to its neighbour: N literals, N - 1 tasks, then N - 2."""
    graph = Graph()
    first = [graph.add(("near", 0, i), total, i, i + 1) for i in range(n - 1)]
    pairs = itertools.pairwise(first)
    return graph.ask([graph.add(("near", 1, i), total, a, b) for i, (a, b) in enumerate(pairs)])


def full(width: int, height: int) -> Graph:
    """Each task of a layer depends on all of the layer before: W^2 (H - 1) edges."""
    graph = Graph()
    level = [graph.add(("full", 0, i), inc, i) for i in range(width)]
    for layer in range(1, height):
        level = [graph.add(("full", layer, i), clamp, *level) for i in range(width)]
    return graph.ask(level)


def groups(count: int, width: int) -> Graph:
    """Disconnected groups: each one root, W tasks on it, and one sum of these."""
    graph = Graph()
    sums = []
    for g in range(count):
        root = graph.add(("root", g), inc, g)
        middle = [graph.add(("middle", g, i), total, root, i) for i in range(width)]
        sums.append(graph.add(("sum", g), sum, List(*middle)))
    return graph.ask(sums)


def earlier(n: int) -> Graph:
    """N tasks, each the max of 5 random earlier ones: narrow, long-range edges.

    Dask's own benchmark calls this SchedulerComputeDepsInMemory, with N = 200.
    """
    rng = random.Random(SEED)
    graph = Graph()
    refs = [graph.add(("earlier", i), inc, i) for i in range(5)]
    for i in range(5, n):
        refs.append(graph.add(("earlier", i), max, *rng.sample(refs, 5)))
    return graph.ask(refs)


def fork(n: int) -> Graph:
    """N producers with two consumers each (Estee fork1, N = 100: 300 tasks)."""
    graph = Graph()
    outputs = []
    for i in range(n):
        source = graph.add(("source", i), inc, i)
        outputs += [graph.add(("use", i, side), total, source, side) for side in (0, 1)]
    return graph.ask(outputs)


def grid(side: int) -> Graph:
    """A task on the one above and the one to the left: a wavefront (Estee grid, side 19)."""
    graph = Graph()
    refs: dict[tuple[int, int], TaskRef] = {}
    for i in range(side):
        for j in range(side):
            before = [refs[at] for at in ((i - 1, j), (i, j - 1)) if at in refs]
            refs[i, j] = graph.add(("grid", i, j), clamp, 1, *before)
    return graph.ask([refs[side - 1, side - 1]])


def fern(n: int) -> Graph:
    """A chain whose every link but the first also takes a leaf of its own (Estee, n = 200)."""
    graph = Graph()
    stem = graph.add(("stem", 0), inc, 0)
    for i in range(1, n + 1):
        leaf = graph.add(("leaf", i), inc, i)
        stem = graph.add(("stem", i), total, stem, leaf)
    return graph.ask([stem])


def splitters(depth: int) -> Graph:
    """A tree that splits from one root: each task feeds two (Estee, depth 7: 255 tasks)."""
    graph = Graph()
    level = [graph.add(("split", 0, 0), inc, 0)]
    for d in range(1, depth + 1):
        level = [graph.add(("split", d, i), inc, level[i // 2]) for i in range(2**d)]
    return graph.ask(level)


def maps(n: int, count: int) -> Graph:
    """N tasks, then maps over them one after the other (pyperformance's bm_dask: 100, 10)."""
    graph = Graph()
    level = [graph.add(("map", 0, i), inc, i) for i in range(n)]
    for m in range(1, count + 1):
        level = [graph.add(("map", m, i), inc, ref) for i, ref in enumerate(level)]
    return graph.ask(level)


@dataclass(frozen=True)
class Shape:
    """A named graph in two sizes.

    Parameters
    ----------
    name
        How ``--shapes`` calls it.
    build
        Makes the graph from one of the two tuples of arguments.
    full, quick
        The arguments of a real run, and of a trial and the warm-up.
    barred
        Whether the overhead on this shape has a bar to meet.
    """

    name: str
    build: Callable[..., Graph]
    full: tuple[Any, ...]
    quick: tuple[Any, ...]
    barred: bool = False

    def graph(self, *, quick: bool) -> Graph:
        """Build the graph anew: nodes remember what was asked of them (hash, token)."""
        return self.build(*(self.quick if quick else self.full))

    def label(self, *, quick: bool) -> str:
        """Name the shape with its size, as in ``random 5x2000``."""
        sizes = [str(arg) for arg in (self.quick if quick else self.full) if isinstance(arg, int)]
        return f"{self.name} {'x'.join(sizes)}"


def _task_bench_shape(rule: Rule) -> Shape:
    return Shape(f"tb-{rule.__name__}", task_bench, (rule, 16, 64), (rule, 8, 8))


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("bag", bag, (10_000,), (500,), barred=True),
        Shape("merge", merge, (10_000,), (500,), barred=True),
        Shape("tree", tree, (13,), (8,), barred=True),
        Shape("chain", chain, (1_000,), (100,), barred=True),
        Shape("random", layers_random, (5, 2_000), (5, 100), barred=True),
        Shape("tree-15", tree, (14,), (8,)),
        Shape("sequential", chain, (100,), (100,)),
        Shape("neighbour", neighbour, (1_000,), (100,)),
        Shape("full-square", full, (100, 20), (20, 5)),
        Shape("full-wide", full, (500, 2), (50, 2)),
        Shape("full-long", full, (10, 1_000), (10, 20)),
        Shape("full-line", full, (1, 50_000), (1, 100)),
        Shape("groups", groups, (100, 10), (10, 10)),
        Shape("earlier", earlier, (200,), (50,)),
        Shape("plain", bag, (380,), (100,)),
        Shape("fork", fork, (100,), (50,)),
        Shape("bigmerge", merge, (320,), (100,)),
        Shape("splitters", splitters, (7,), (5,)),
        Shape("conflux", tree, (7,), (5,)),
        Shape("maps", maps, (100, 10), (10, 10)),
        Shape("grid", grid, (19,), (8,)),
        Shape("fern", fern, (200,), (50,)),
        *(_task_bench_shape(rule) for rule in RULES),
    )
}
BARRED = tuple(shape.name for shape in SHAPES.values() if shape.barred)
