"""A Dask graph becomes numbered tasks: culled, aliases resolved, constants set aside. No I/O.

Sources: sections 1.1 and 1.4 of Dask's contract for a ``get`` (`dask.local.get_async`,
`dask._task_spec`). Keys are mapped to job-local integers through a dict, so whatever Dask
accepts as a key works: ``0``, ``""``, tuples; and ``1 == 1.0 == True`` are one key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dask._task_spec import Alias, DataNode, GraphNode, Task, TaskRef, convert_legacy_task
from dask.typing import Key

from dask_redisq.codec import Block
from dask_redisq.order import depth_first
from dask_redisq.task import run_node

__all__ = ["BLOCK", "Plan", "plan_graph"]

#: Tasks in a block.
BLOCK = 128
#: Up to this many tasks `dask.order` costs less than a round trip.
FEW = 64

_NONE: tuple[()] = ()


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
        Tasks whose values a task needs, each once; see `_Reader.inputs_of` for their order.
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
        Task -> the tags of which its slot must carry one.
    limits : dict of int to tuple
        Task -> its timeout and retries; see `codec.Block`.
    every : bool
        Whether the client waits for the values of all tasks: a callback looks at them.
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
        )

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

    def without(self, received: Mapping[int, Any]) -> Plan:
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
        return Plan(
            keys=[self.keys[task] for task in old],
            nodes=[self.nodes[task] for task in old],
            inputs=[tuple([number[i] for i in self.inputs[t] if i in number]) for t in old],
            users=[[number[u] for u in self.users[task] if u in number] for task in old],
            outputs={key: number[task] for key, task in outputs.items()},
            constants={},
            local={},
            names={n: number[task] for n, task in self.names.items() if task in number},
            data={**self.data, **found},
            restricted={number[t]: tags for t, tags in self.restricted.items() if t in number},
            limits={number[t]: limit for t, limit in self.limits.items() if t in number},
            every=self.every,
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


class _Reader:
    """Reads a graph lazily: converts and resolves only what the requested keys need.

    Each task that is met gets a place, an int, and is known by it from then on: keys are mostly
    tuples, which hash anew at each look (planning took 9.5 us a task by key, 6 by place).
    """

    def __init__(self, dsk: Mapping[Key, Any]) -> None:
        self.dsk = dsk
        self.places: dict[Key, int | None] = {}  # None for a constant
        self.data: dict[Key, Any] = {}
        self.keys: list[Key] = []
        self.nodes: list[GraphNode] = []
        self._inputs: list[list[int] | None] = []

    def node(self, key: Key, dependents: Iterable[Key] = ()) -> GraphNode:
        """Return the node of `key`, converted from a legacy form if need be."""
        if key in self.dsk:
            node: GraphNode | Any = self.dsk[key]
            if type(node) is not Task:
                node = convert_legacy_task(key, node, self.dsk)
            if not isinstance(node, GraphNode):
                node = DataNode(key, node)
            if not (isinstance(node, Alias) and node.target == key):
                return node
        raise ValueError(f"Missing dependency {key!r} for dependents {set(dependents) or {key}}")

    def place(self, name: Key, dependent: Key) -> int | None:
        """Return the task behind `name`, through aliases; None if it is a constant."""
        if name in self.places:
            return self.places[name]
        key, seen = name, [name]
        node = self.node(key, (dependent,))
        while isinstance(node, Alias):
            key = node.target
            if key in seen:
                raise RuntimeError(
                    f"Cycle detected in Dask graph: {' -> '.join(map(repr, [*seen, key]))}"
                )
            seen.append(key)
            node = self.node(key, (dependent,))
        found: int | None = None
        if isinstance(node, DataNode):
            self.data[name] = node.value
        elif key in self.places:
            found = self.places[key]
        else:
            found = self.places[key] = len(self.nodes)
            self.keys.append(key)
            self.nodes.append(node)
            self._inputs.append(None)
        self.places[name] = found
        return found

    def inputs_of(self, task: int) -> list[int]:
        """Return the tasks that a task needs, each once, in any order.

        It is the order of the arguments where each of them is another task: `Plan.block` then
        writes them once.
        """
        found = self._inputs[task]
        if found is None:
            node, places = self.nodes[task], self.places
            names: Iterable[Key] = node.dependencies
            if type(node) is Task and len(node.args) == len(node.dependencies) > 1:
                direct = dict.fromkeys([a.key for a in node.args if type(a) is TaskRef])
                # As many, and no name twice: then they are the same names.
                names = direct if len(direct) == len(node.dependencies) else names
            get, key, new = places.get, self.keys[task], -1
            tasks = [
                place if (place := get(name, new)) != new else self.place(name, key)
                for name in names
            ]
            # Two names may mean one task (aliases), or a constant.
            found = self._inputs[task] = [k for k in dict.fromkeys(tasks) if k is not None]
        return found


def flatten_keys(keys: Any) -> Iterator[Key]:
    """Yield the keys in a possibly nested list of them; a tuple is one key."""
    if isinstance(keys, list):
        for key in keys:
            yield from flatten_keys(key)
    else:
        yield keys


def plan_graph(
    dsk: Mapping[Key, Any],
    keys: Any,
    order: str | None = None,
    *,
    finalize_here: bool = True,
) -> Plan:
    """Number the tasks of `dsk` that `keys` need.

    Parameters
    ----------
    dsk : Mapping
        Key -> Dask task, in any of its forms, mixed.
    keys : hashable, or nested list of hashable
        What the caller asked for.
    order : {None, "dask"}
        How to number: None by `dask.order` for up to 64 tasks, else depth first.
    finalize_here : bool, default True
        Leave the last step of an array or bag (its concatenation) to the client: a worker would
        receive, hold and send the whole result.

    Raises
    ------
    KeyError
        If a requested key is not in the graph.
    ValueError
        "Missing dependency", as `dask.local` says it.
    RuntimeError
        "Cycle detected", as `dask.order` says it.
    """
    reader = _Reader(dsk)
    wanted = list(dict.fromkeys(flatten_keys(keys)))
    for key in wanted:
        if key not in dsk:
            raise KeyError(key)
    local = _local_nodes(reader, wanted) if finalize_here else {}
    for node in local.values():
        wanted.extend(k for k in node.dependencies if k not in wanted)
    outputs: dict[Key, int] = {}
    constants: dict[Key, Any] = {}
    for key in wanted:
        if key in local:
            continue
        task = reader.place(key, key)
        if task is None:
            constants[key] = reader.data[key]
        else:
            outputs[key] = task
    return _number(reader, outputs, constants, local, order)


def _local_nodes(reader: _Reader, wanted: list[Key]) -> dict[Key, GraphNode]:
    """Return those requested nodes that only put finished parts together."""
    local: dict[Key, GraphNode] = {}
    for key in wanted:
        if isinstance(key, str) and key.startswith("finalize-hlgfinalizecompute"):
            node = reader.node(key)
            if type(node) is Task and getattr(node.func, "__name__", "") == "finalize":
                local[key] = node
    return local


def _number(
    reader: _Reader,
    outputs: dict[Key, int],
    constants: dict[Key, Any],
    local: dict[Key, GraphNode],
    order: str | None,
) -> Plan:
    places = depth_first(dict.fromkeys(outputs.values()), reader.inputs_of, reader.keys.__getitem__)
    if order == "dask" or (order is None and len(places) <= FEW):
        places = _dask_order(places, reader)
    number = dict(zip(places, range(len(places)), strict=True))
    inputs = [tuple([number[k] for k in reader.inputs_of(place)]) for place in places]
    users: list[list[int]] = [[] for _ in places]
    for task, its_inputs in enumerate(inputs):
        for i in its_inputs:
            users[i].append(task)
    return Plan(
        keys=[reader.keys[place] for place in places],
        nodes=[reader.nodes[place] for place in places],
        inputs=inputs,
        users=users,
        outputs={key: number[place] for key, place in outputs.items()},
        constants=constants,
        local=local,
        names={n: number[place] for n, place in reader.places.items() if place is not None},
        data=reader.data,
    )


def _dask_order(places: list[int], reader: _Reader) -> list[int]:
    """Return `places` as `dask.order` ranks them."""
    from dask.order import order

    keys = reader.keys  # it breaks ties by key
    graph: dict[Key, Any] = {
        keys[p]: Task(keys[p], id, *(TaskRef(keys[k]) for k in reader.inputs_of(p))) for p in places
    }
    rank = order(graph)
    return sorted(places, key=lambda place: rank[keys[place]])
