"""Random graphs whose right answer is known: each task gives a hash of what it was given."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from dask._task_spec import Task, TaskRef
from dask.delayed import Delayed
from dask.typing import Key

from benchmarks.graph import Graph
from benchmarks.shapes import SHAPES
from benchmarks.storm.tasks import Piece, value_of, work

#: Shares of tasks whose value is stored apart, that sleep a little, and that sleep long.
BIG, NAPS, SLEEPS = 0.03, 0.3, 0.02
BIG_BYTES = (70_000, 200_000)
NAP_SECONDS, SLEEP_SECONDS = (0.001, 0.005), (0.05, 0.4)
#: How often a graph has a large constant, and how large that is.
CONSTANT, CONSTANT_BYTES = 0.2, 100_000
#: Inputs of a task of a random graph, at most.
FAN_IN = 4


@dataclass(frozen=True)
class Wiring:
    """Which tasks each one takes: only earlier ones; and which are asked for."""

    inputs: list[tuple[int, ...]]
    outputs: list[int]


@dataclass(frozen=True)
class Puzzle:
    """A graph of `tasks.work`, and its answer.

    Parameters
    ----------
    wiring
        Its edges.
    pieces
        What each task is.
    constants
        A large argument of some tasks, empty for the others.
    options
        Keywords for `Queue.get`.
    """

    wiring: Wiring
    pieces: list[Piece]
    constants: list[bytes]
    options: dict[str, Any]

    @classmethod
    def make(cls, seed: int, serial: int, folder: str) -> Self:
        """Make the graph of a seed; `serial` names the job, and so it changes the answer."""
        rng = random.Random(seed)
        wiring = _wiring(rng)
        big = rng.randbytes(CONSTANT_BYTES) if rng.random() < CONSTANT else b""
        constants = [big if rng.random() < BIG else b"" for _ in wiring.inputs]
        pieces = [
            Piece(folder, serial, number, _size(rng), _pause(rng))
            for number in range(len(wiring.inputs))
        ]
        options = {
            "chunk_size": rng.choice([None, None, None, 1, 5, -1]),
            "pure": rng.random() < 0.8,
            "priority": rng.choice([0, 0, 0, 1]),
        }
        return cls(wiring, pieces, constants, options)

    @property
    def keys(self) -> list[Key]:
        """The graph keys of the outputs."""
        return [self._key(number) for number in self.wiring.outputs]

    def graph(self) -> dict[Key, Task]:
        """Return the graph."""
        graph: dict[Key, Task] = {}
        for piece, constant, inputs in self._tasks():
            key, refs = self._key(piece.number), [TaskRef(self._key(i)) for i in inputs]
            graph[key] = Task(key, work, piece, constant, *refs)
        return graph

    def collections(self) -> list[Delayed]:
        """Return the outputs as collections, for `Queue.compute`."""
        graph = self.graph()
        return [Delayed(key, graph) for key in self.keys]

    def answer(self) -> list[bytes]:
        """Return the right values of the outputs, computed here."""
        values: list[bytes] = []
        for piece, constant, inputs in self._tasks():
            values.append(value_of(piece, constant, *(values[i] for i in inputs)))
        return [values[number] for number in self.wiring.outputs]

    def _tasks(self) -> Iterator[tuple[Piece, bytes, tuple[int, ...]]]:
        return zip(self.pieces, self.constants, self.wiring.inputs, strict=True)

    def _key(self, number: int) -> str:
        return f"storm-{self.pieces[0].serial}-{number}"


def _wiring(rng: random.Random) -> Wiring:
    dice = rng.random()
    if dice < 0.4:
        return random_wiring(rng, rng.randint(1, 300))
    if dice < 0.5:
        return fan_wiring(rng.randint(50, 400))
    return shape_wiring(rng.choice(sorted(SHAPES)))


def random_wiring(rng: random.Random, n: int) -> Wiring:
    """A task on up to four earlier ones, near ones rather than far ones; also inner outputs."""
    inputs: list[tuple[int, ...]] = []
    for i in range(n):
        reach = i if rng.random() < 0.2 else min(i, 20)
        taken = rng.sample(range(i - reach, i), min(reach, rng.randint(0, FAN_IN)))
        inputs.append(tuple(sorted(taken)))
    used = {i for taken in inputs for i in taken}
    return Wiring(inputs, [i for i in range(n) if i not in used or rng.random() < 0.1])


def fan_wiring(n: int) -> Wiring:
    """One task that N others take, and one that takes them all."""
    return Wiring([(), *[(0,)] * n, tuple(range(1, n + 1))], [n + 1])


def shape_wiring(name: str) -> Wiring:
    """The edges of a shape of the other benchmarks."""
    graph = SHAPES[name].graph(quick=True)
    order = _order(graph)
    number = {key: i for i, key in enumerate(order)}
    inputs = [tuple(sorted(number[k] for k in graph.dsk[key].dependencies)) for key in order]
    return Wiring(inputs, [number[key] for key in dict.fromkeys(graph.keys)])


def _order(graph: Graph) -> list[Key]:
    """Return the needed keys, inputs first, in the order in which they were added."""
    needed = graph.needed()
    order = [key for key in graph.dsk if key in needed]
    seen: set[Key] = set()
    for key in order:
        if not graph.dsk[key].dependencies <= seen:
            msg = f"{key!r} was added before what it takes"
            raise ValueError(msg)
        seen.add(key)
    return order


def _size(rng: random.Random) -> int:
    return rng.randint(*BIG_BYTES) if rng.random() < BIG else 0


def _pause(rng: random.Random) -> float:
    dice = rng.random()
    if dice < SLEEPS:
        return rng.uniform(*SLEEP_SECONDS)
    return rng.uniform(*NAP_SECONDS) if dice < SLEEPS + NAPS else 0.0


def is_right(values: Sequence[Any], answer: Sequence[bytes]) -> bool:
    """Tell whether what came back is the answer."""
    return list(values) == list(answer)
