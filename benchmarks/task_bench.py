"""Task Bench: a grid of width x steps, and a rule for what a task takes of the step before."""

from collections.abc import Callable, Iterable

from dask._task_spec import TaskRef
from dask.typing import Key

from benchmarks.graph import Graph
from benchmarks.tasks import clamp

__all__ = ["RULES", "Rule", "task_bench"]

Rule = Callable[[int, int, int], Iterable[int]]


def trivial(_step: int, _i: int, _width: int) -> Iterable[int]:
    """No dependencies."""
    return ()


def no_comm(_step: int, i: int, _width: int) -> Iterable[int]:
    """The same column: W chains."""
    return (i,)


def stencil_1d(_step: int, i: int, width: int) -> Iterable[int]:
    """The column and its two neighbours."""
    return range(max(0, i - 1), min(width, i + 2))


def fft(step: int, i: int, width: int) -> Iterable[int]:
    """The column and those at a distance of a power of two, another one at each step."""
    distance = 1 << (step - 1) % max(1, width.bit_length() - 1)
    return (at for at in (i - distance, i, i + distance) if 0 <= at < width)


def tree_out(step: int, i: int, width: int) -> Iterable[int]:
    """A tree from one root, twice as wide at each step until it fills the width."""
    return (i // 2,) if 1 << step <= width else (i,)


def spread(step: int, i: int, width: int) -> Iterable[int]:
    """Five columns spread over the width, shifted at each step."""
    return {(i + k * width // 5 + (step if k else 0)) % width for k in range(5)}


def nearest(_step: int, i: int, width: int) -> Iterable[int]:
    """The column and two on each side: five nearest, fewer at an edge."""
    return range(max(0, i - 2), min(width, i + 3))


def all_to_all(_step: int, _i: int, width: int) -> Iterable[int]:
    """All columns."""
    return range(width)


#: The rules that are measured.
RULES = (trivial, no_comm, stencil_1d, fft, tree_out, nearest, spread, all_to_all)


def task_bench(rule: Rule, width: int, steps: int) -> Graph:
    """Steps of W tasks wired by a rule of Task Bench; asks for all that nobody takes."""
    graph = Graph()
    outputs: dict[Key, TaskRef] = {}
    level: list[TaskRef] = []
    for step in range(steps):
        tasks = []
        # Only the tree grows; with any other rule each step is as wide as the grid.
        for i in range(min(width, 1 << step) if rule is tree_out else width):
            before = [level[at] for at in sorted(rule(step, i, width))] if step else []
            ref = graph.add((rule.__name__, step, i), clamp, 1, *before)
            for used in before:
                outputs.pop(used.key, None)
            outputs[ref.key] = ref
            tasks.append(ref)
        level = tasks
    return graph.ask(outputs.values())
