"""The tasks of one job, numbered, and cut into blocks. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

from dask._task_spec import Alias, DataNode, GraphNode, Task, TaskRef
from dask.typing import Key

from dask_redisq.annotations import RESOURCE, SOFT
from dask_redisq.codec import Block, KeptValue, pack
from dask_redisq.task import run_node

__all__ = ["BLOCK", "Plan"]

#: Tasks in a block.
BLOCK = 128


@dataclass
class Plan:
    """The tasks of one job, numbered 0..n-1 in the order in which they should run.

    Attributes
    ----------
    keys : list of hashable
        The graph key of each task.
    nodes : list of GraphNode
        What each task runs.
    inputs : list of tuple of int
        Tasks whose values a task needs, each once; see `dask_redisq.graph` for their order.
    users : list of list of int
        Tasks that need its value, each once.
    outputs : dict of hashable to int
        Requested key -> its task.
    constants : dict of hashable to object
        Requested key -> its value, where the graph holds that value itself.
    local : dict of hashable to GraphNode
        Requested keys that the client computes itself, from `outputs` and `constants`.
    names : dict
        Key under which a task reads an input (an alias, say) -> the task that makes it.
    data : dict
        Key under which a task reads a constant -> that constant.
    restricted : dict of int to tuple of str
        Task -> where it may run; see `dask_redisq.annotations`.
    limits : dict of int to tuple
        Task -> its timeout and retries; see `codec.Block`.
    every : bool
        Whether the client waits for the values of all tasks: a callback looks at them.
    seeds : dict of int to tuple of int
        Task -> the seed of its random numbers, and which stream of that.
    outer : dict of int to tuple of KeptValue
        Task -> what it reads of kept jobs; `names` holds the numbers of these too, below 0.
    parts : dict of int to object
        Number of such a value -> its `dask_redisq.persist.Part`, held as long as this plan is.
    fetched : dict of hashable to object
        Requested key -> the part that already is its value.
    kept : bool
        Whether the job keeps its outputs, for later ones.
    ordered : bool
        Whether ready tasks go by their numbers alone: by default one that just became ready goes
        first, where its input is.
    urgency : float
        The least priority of its tasks.
    priorities : dict of int to float
        Task -> its priority, where it is annotated.
    """

    keys: list[Key]
    nodes: list[GraphNode]
    inputs: list[tuple[int, ...]]
    users: list[list[int]]
    outputs: dict[Key, int]
    constants: dict[Key, Any]
    local: dict[Key, GraphNode]
    names: dict[Key, int]
    data: dict[Key, Any]
    restricted: dict[int, tuple[str, ...]] = field(default_factory=dict)
    limits: dict[int, tuple[float, int]] = field(default_factory=dict)
    every: bool = False
    seeds: dict[int, tuple[int, int]] = field(default_factory=dict)
    outer: dict[int, tuple[KeptValue, ...]] = field(default_factory=dict)
    parts: dict[int, Any] = field(default_factory=dict)
    fetched: dict[Key, Any] = field(default_factory=dict)
    kept: bool = False
    ordered: bool = False
    urgency: float = 0
    priorities: dict[int, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.nodes)

    def __repr__(self) -> str:
        return f"<Plan {len(self)} tasks, {len(self.outputs)} outputs>"

    def block_starts(self) -> range:
        """Return the number of the first task of each block."""
        return range(0, len(self.nodes), BLOCK)

    def block(self, first: int) -> Block:
        """Return the block that begins with task `first`."""
        last = min(first + BLOCK, len(self.nodes))
        wanted = self.wanted
        return Block(
            [self._packed(i) for i in range(first, last)],
            self.inputs[first:last],
            [tuple(users) for users in self.users[first:last]],
            frozenset(i for i in range(first, last) if i in wanted),
            {i: self.restricted[i] for i in range(first, last) if i in self.restricted}
            if self.restricted
            else {},
            {i: self.limits[i] for i in range(first, last) if i in self.limits}
            if self.limits
            else {},
            {i: self.outer[i] for i in range(first, last) if i in self.outer} if self.outer else {},
            {i: self.seeds[i] for i in range(first, last) if i in self.seeds} if self.seeds else {},
            self.kept,
        )

    def about(self, first: int) -> list[Any]:
        """Return what a policy is to know of a block's tasks: task, packed, task, packed, ..."""
        found: list[Any] = []
        for task in range(first, min(first + BLOCK, len(self.nodes))):
            key, kept = self.keys[task], self.outer.get(task, ())
            plain = [t for t in self.restricted.get(task, ()) if not t.startswith((RESOURCE, SOFT))]
            words = [str(key), self.priorities.get(task, 0), plain[0] if plain else ""]
            more = [self.inputs[task], [x for k in kept for x in (k.job, k.task)]]
            found += [task, pack([*words, *more])]
        return found

    @cached_property
    def wanted(self) -> set[int]:
        """The tasks whose values the client waits for."""
        return set(range(len(self))) if self.every else set(self.outputs.values())

    def wait_counts(self) -> list[int]:
        """Return for each task its inputs, and one more for its block."""
        return [len(inputs) + 1 for inputs in self.inputs]

    def consumer_counts(self) -> list[int]:
        """Return for each task its users, and one more if the client waits for it."""
        counts = [len(users) for users in self.users]
        for task in self.wanted:
            counts[task] += 1
        return counts

    def without(self, received: Mapping[int, Any]) -> Self:
        """Return the plan of the outputs that are still missing: fewer tasks, other numbers.

        A received value that a missing output needs is a constant there, and not computed again:
        its user has seen it, and another run might give another one.

        Parameters
        ----------
        received : Mapping
            Task -> value, for outputs of this plan.
        """
        outputs = {key: task for key, task in self.outputs.items() if task not in received}
        needed: set[int] = set()
        todo = list(outputs.values())
        while todo:
            task = todo.pop()
            if task not in needed:
                needed.add(task)
                todo += [i for i in self.inputs[task] if i not in received]
        old = sorted(needed)  # their order is as good for the rest
        number = dict(zip(old, range(len(old)), strict=True))
        found = {n: received[task] for n, task in self.names.items() if task in received}
        return type(self)(
            keys=[self.keys[task] for task in old],
            nodes=[self.nodes[task] for task in old],
            inputs=[tuple([number[i] for i in self.inputs[t] if i in number]) for t in old],
            users=[[number[u] for u in self.users[task] if u in number] for task in old],
            outputs={key: number[task] for key, task in outputs.items()},
            constants={},
            local={},
            names={n: number.get(t, t) for n, t in self.names.items() if t in number or t < 0},
            data={**self.data, **found},
            restricted={number[t]: tags for t, tags in self.restricted.items() if t in number},
            limits={number[t]: limit for t, limit in self.limits.items() if t in number},
            every=self.every,
            seeds={number[t]: seed for t, seed in self.seeds.items() if t in number},
            outer={number[t]: kept for t, kept in self.outer.items() if t in number},
            parts=self.parts,
            kept=self.kept,
            ordered=self.ordered,
            urgency=self.urgency,
            priorities={number[t]: x for t, x in self.priorities.items() if t in number},
        )

    def _packed(self, task: int) -> Any:
        """Return a task in the form of `dask_redisq.task.run_task`.

        A plain `Task` goes as its function and arguments, which halves the bytes and the time to
        load it. A node that holds other nodes reads its inputs by their graph keys.
        """
        node = self.nodes[task]
        if type(node) is Task:
            inputs = self.inputs[task]
            if len(node.args) == len(inputs) and not node.kwargs:
                only = [a for a in node.args if type(a) is TaskRef]
                if len(only) == len(inputs):  # each another one, in the order of the arguments
                    return (node.func, inputs)
            packed = self._packed_args(node)
            if packed is not None:
                return packed
        known = self.names
        names = tuple([k for k in node.dependencies if k in known])
        data = {k: self.data[k] for k in node.dependencies if k in self.data}
        args = (node, names, data, *[known[k] for k in names])
        return (run_node, args, tuple(range(3, len(args))))

    def _packed_args(self, node: Task) -> tuple[Any, ...] | None:
        """Return a task with inputs by number and constants in place; None if it holds others."""
        args: list[Any] = [*node.args, *node.kwargs.values()]
        where = []
        for i, a in enumerate(args):
            if isinstance(a, (TaskRef, Alias)):
                key = a.target if isinstance(a, Alias) else a.key
                if key in self.names:
                    args[i] = self.names[key]
                    where.append(i)
                else:
                    args[i] = self.data[key]
            elif type(a) is DataNode:
                args[i] = a.value
            elif isinstance(a, GraphNode):
                return None
        if node.kwargs:
            return (node.func, tuple(args), tuple(where), tuple(node.kwargs))
        return (node.func, tuple(args), tuple(where))
