"""Random jobs whose results tell which runs they were made from.

Results are not deterministic: each run of a task makes a fresh token, and that remembers the
tokens of its inputs. So an answer tells whether it saw two runs of one task.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from invariants import Graph

from dask_redisq.annotations import SOFT
from dask_redisq.codec import Block, pack
from simulator.choices import Choices

__all__ = ["LEASE", "MANY", "Job", "Token", "random_job"]

#: The lease of a client, in ms: longer than what an unseen value has, so that time can tell them apart.
LEASE = 1_200_000
#: More failures than a world can have.
MANY = 10**6
#: The tag that slots and jobs carry for their version of Python.
PYTHON = "python"
#: What a worker has one of, and what a task says that needs it.
RESOURCE, NEED = "resource:GPU", "resource:GPU=1"


class Token(NamedTuple):
    """One run of a task, and the runs of its inputs that it saw.

    `task` is the task's number in the graph that the user submitted first.
    """

    family: int
    task: int
    inputs: tuple[int, ...]


class Function:
    """What a task runs: `run` is told the task, and the tokens of its inputs."""

    def __init__(
        self, run: Callable[[Job, int, tuple[int, ...]], int], job: Job, task: int
    ) -> None:
        self.run, self.job, self.task = run, job, task

    def __call__(self, *tokens: int) -> int:
        return self.run(self.job, self.task, tokens)


@dataclass
class Job:
    """A job, what its client asked for, and what the world saw of it.

    Attributes
    ----------
    family : int
        The first job of a user's graph; one that is submitted again has the same.
    origin : tuple of int
        For each task its number in the user's graph.
    known : Mapping of int to int
        Tasks of the user's graph that are constants here, and their tokens.
    """

    id: str
    family: int
    graph: Graph
    whole: Graph
    origin: tuple[int, ...]
    known: Mapping[int, int]
    epoch: str
    settings: dict[str, Any]
    #: An attempt's results were lost, or history: the answer may hold two runs of a task.
    doubtful: bool = False
    #: It was submitted again with values of another job as constants.
    mixed: bool = False
    #: Its client's lease ran out.
    lapsed: bool = False
    #: Its removal has begun.
    swept: bool = False
    #: Values of it are stored apart: whose slot made one is near to its users.
    apart: bool = False
    #: Somebody gave it up.
    cancelled: bool = False
    #: How often each task raised or ran too long, was running when its process died.
    tries: Counter[int] = field(default_factory=Counter)
    deaths: Counter[int] = field(default_factory=Counter)
    #: The job whose task waits for it.
    parent: str = ""
    #: How often it was run again after it failed.
    reruns: int = 0
    runs: int = 0
    #: Tasks that may have run, and whose next lease holds nothing else.
    careful: set[int] = field(default_factory=set)
    blocks: dict[int, Block] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Job {self.id[:6]} of {len(self.graph)} tasks>"

    @property
    def detached(self) -> bool:
        """Whether others may read it, too."""
        return bool(self.settings["ttl"])

    @property
    def fragile(self) -> float:
        """How likely each run of a task raises."""
        return 0.3 if self.detached and self.settings["retries"] < MANY else 0.1

    @property
    def pure(self) -> bool:
        """Whether a task that runs again is taken to give what it gave before."""
        return bool(self.settings["pure"])

    @property
    def once(self) -> bool:
        """Whether its answer must hold one run of each task."""
        return not self.pure or not (self.doubtful or self.mixed)

    @property
    def block_count(self) -> int:
        """How many blocks it has."""
        return -(-len(self.graph) // self.graph.block)

    def make_blocks(self, run: Callable[[Job, int, tuple[int, ...]], int]) -> None:
        """Make what slots get: `run` stands for all functions."""
        graph, size = self.graph, self.graph.block
        for number in range(self.block_count):
            tasks = range(number * size, min((number + 1) * size, len(graph)))
            self.blocks[number] = Block(
                [(Function(run, self, t), graph.inputs[t]) for t in tasks],
                [graph.inputs[t] for t in tasks],
                [graph.users[t] for t in tasks],
                graph.outputs.intersection(tasks),
                {t: graph.hard[t] for t in tasks if t in graph.hard},
                {t: (self.settings["timeout"], -1) for t in tasks if self.settings["timeout"]},
                {},
                {},
                kept=False,
            )

    def constants(self, number: int) -> tuple[str, ...]:
        """Return the digests of the large constants that a block uses; one of them all blocks do."""
        return ("c0", f"c{number + 1}")[: self.settings["constants"]]

    # -- what its client sends ---------------------------------------------------------

    def stages(self) -> list[tuple[str, bytes]]:
        """Return the counters that create takes, by the names of their keys."""
        graph, n = self.graph, len(self.graph)
        wait = [len(inputs) + 1 for inputs in graph.inputs]
        uses = [len(users) + (t in graph.outputs) for t, users in enumerate(graph.users)]
        found = [
            ("new_wait", struct.pack(f">{n}I", *wait)),
            ("new_consumers", struct.pack(f">{n}I", *uses)),
        ]
        if graph.hard:
            numbers = {tags: i for i, tags in enumerate(graph.restrictions, 1)}
            marks = [numbers.get(graph.hard.get(t, ()), 0) for t in range(n)]
            found.append(("new_restrict", bytes(marks)))
        return found

    def create_args(self) -> dict[str, Any]:
        """Return what create is told."""
        names = (
            "chunk",
            "priority",
            "allowed",
            "retries",
            "retry_delay",
            "patience",
            "ttl",
            "pure",
        )
        return {
            "job": self.id, "n": len(self.graph), "block": self.graph.block, "blocks": self.block_count,
            "epoch": self.epoch, "python": PYTHON, "client_lease": LEASE, "watched": 0,
            "kept": 0, "uses": pack([]), "most": 0, "ordered": self.settings["ordered"], "parent": self.parent, "by": b"", "policy": self.settings["policy"], "since": 0,
            "hard": pack([list(tags) for tags in self.graph.restrictions]),
        } | {name: self.settings[name] for name in names}  # fmt: skip

    def block_args(self, number: int) -> dict[str, Any]:
        """Return what put_block is told."""
        block = self.blocks[number]
        return {
            "job": self.id, "number": number, "first": number * self.graph.block, "count": len(block.tasks),
            "payload": b"tasks", "edges": pack([block.inputs, sorted(block.outputs)]),
            "consts": pack(self.constants(number)),
            "near": pack([]), "about": b"",
        }  # fmt: skip

    # -- what may be missing -----------------------------------------------------------

    def without(self, received: Mapping[int, int], new_id: str, epoch: str) -> Job:
        """Return a job for the outputs that `received` (user's task -> token) lacks."""
        known = {**self.known, **received}
        wanted = {t for t in self.whole.outputs if t not in known}
        needed: set[int] = set()
        todo = list(wanted)
        while todo:
            task = todo.pop()
            if task not in needed and task not in known:
                needed.add(task)
                todo += self.whole.inputs[task]
        origin = tuple(sorted(needed))
        number = {t: i for i, t in enumerate(origin)}
        inputs = tuple(
            tuple(number[i] for i in self.whole.inputs[t] if i in number) for t in origin
        )
        hard = {number[t]: tags for t, tags in self.whole.hard.items() if t in number}
        graph = Graph(inputs, frozenset(number[t] for t in wanted), self.graph.block, hard)
        job = Job(new_id, self.family, graph, self.whole, origin, known, epoch, self.settings)
        job.parent = self.parent
        job.mixed = bool(known)  # what it has may come from other runs than what it gets
        return job


def random_job(
    choices: Choices,
    family: int,
    job_id: str,
    epoch: str,
    most: int,
    often: Collection[str] = (),
    parent: str = "",
) -> Job:
    """Return a job of 1 to `most` tasks.

    Parameters
    ----------
    often : collection of str
        What happens to it more than to others.
    parent : str
        The job of which a task waits for it.
    """
    n = 1 + choices.below(most)
    roots = choices.pick([1, max(1, n // 2)])  # wide ones give leases of several tasks
    inputs = [_some_before(choices, task) if task >= roots else () for task in range(n)]
    used = {i for its in inputs for i in its}
    outputs = frozenset(t for t in range(n) if t not in used or choices.chance(0.2))
    hard = {}
    if "needs" in often or choices.chance(0.25):
        kinds = [("gpu",), (NEED,), (SOFT, "gpu"), (SOFT, "lab")]
        wanted = (NEED,) if "needs" in often else choices.pick(kinds)
        hard = {t: wanted for t in range(n) if choices.chance(0.4)}
    graph = Graph(tuple(inputs), outputs, choices.pick([128, 3]), hard)
    detached = not parent and choices.chance(0.9 if "run again" in often else 0.3)
    strict = choices.chance(
        0.7 if detached else 0.15
    )  # such jobs fail, and detached ones run again
    settings = {
        "chunk": choices.pick([0, 0, 1, 2, 3, -1]),
        "priority": choices.pick([0, 0, 1]),
        "allowed": choices.pick([3, 1]) if strict else MANY,
        "retries": choices.pick([0, 1, 2]) if strict else MANY,
        "retry_delay": choices.pick([0, 3000]),
        "patience": choices.pick([0, 1000]),
        "timeout": choices.pick([0, 0, 0, 5]),
        "ttl": 1_000_000 if detached else 0,
        "pure": choices.pick([1, 0]),
        "policy": choices.pick(["", "", "", "what it wishes is drawn by the slots"]),
        "ordered": choices.pick([0, 0, 1]),
        "constants": choices.pick([0, 0, 1, 2]),
    }
    return Job(job_id, family, graph, graph, tuple(range(n)), {}, epoch, settings, parent=parent)


def _some_before(choices: Choices, task: int) -> tuple[int, ...]:
    """Choose up to three of the tasks before one."""
    count = min(task, choices.pick([1, 0, 1, 2, 3]))
    found: set[int] = set()
    while len(found) < count:
        chosen = choices.below(task)
        while chosen in found:
            chosen = (chosen + 1) % task
        found.add(chosen)
    return tuple(sorted(found))


def check_tree(job: Job, tokens: list[Token], answer: Mapping[int, int], *, once: bool) -> None:
    """Assert that an answer is made as the graph says, and, if `once`, of one run of each task.

    Parameters
    ----------
    answer : Mapping
        Output (as the user numbered it) -> token.
    """
    assert answer.keys() == set(job.whole.outputs), f"outputs {sorted(answer)} came"
    seen: dict[int, int] = {}
    done: Collection[int] = set()
    todo = list(answer.items())
    while todo:
        task, token = todo.pop()
        made = tokens[token]
        assert (made.family, made.task) == (job.family, task), f"{task} has the value of {made}"
        assert seen.setdefault(task, token) == token or not once, (
            f"the answer holds two runs of task {task}"
        )
        if token not in done:
            done = {*done, token}
            todo += zip(job.whole.inputs[task], made.inputs, strict=True)
