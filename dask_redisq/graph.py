"""A Dask graph becomes numbered tasks: culled, aliases resolved, constants set aside. No I/O.

Sources: sections 1.1 and 1.4 of Dask's contract for a ``get`` (`dask.local.get_async`,
`dask._task_spec`). Keys are mapped to job-local integers through a dict, so whatever Dask
accepts as a key works: ``0``, ``""``, tuples; and ``1 == 1.0 == True`` are one key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dask._task_spec import Alias, DataNode, GraphNode, Task, TaskRef, convert_legacy_task
from dask.typing import Key

from dask_redisq.codec import Block
from dask_redisq.order import depth_first

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
        Tasks whose values a task needs, each once.
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
            [self._packed_node(i) for i in range(first, last)],
            self.inputs[first:last],
            [tuple(users) for users in self.users[first:last]],
            frozenset(i for i in range(first, last) if i in wanted),
            {i: self.restricted[i] for i in range(first, last) if i in self.restricted}
            if self.restricted
            else {},
        )

    @cached_property
    def wanted(self) -> set[int]:
        """The tasks whose values the client waits for."""
        return set(self.outputs.values())

    def wait_counts(self) -> list[int]:
        """Return for each task its inputs, and one more for its block."""
        return [len(inputs) + 1 for inputs in self.inputs]

    def consumer_counts(self) -> list[int]:
        """Return for each task its users, and one more if the client waits for it."""
        counts = [len(users) for users in self.users]
        for task in self.wanted:
            counts[task] += 1
        return counts

    def _packed_node(self, task: int) -> Any:
        """Return a task in the form of `Block.nodes`.

        A plain `Task` goes as its function and arguments, which halves the bytes and the time to
        load it. A node that holds other nodes reads its inputs by their graph keys.
        """
        node = self.nodes[task]
        if type(node) is Task:
            args = self._packed_args(node.args)
            kwargs = self._packed_args(tuple(node.kwargs.values()))
            if args is not None and kwargs is not None:
                if not kwargs:
                    return (node.func, args)
                return (node.func, args, dict(zip(node.kwargs, kwargs, strict=True)))
        names = {k: self.names[k] for k in node.dependencies if k in self.names}
        data = {k: self.data[k] for k in node.dependencies if k in self.data}
        return (node, names, data, None)

    def _packed_args(self, args: Sequence[Any]) -> tuple[Any, ...] | None:
        """Return `args` with references by number, constants in place; None if that cannot be."""
        packed = []
        for a in args:
            if type(a) is TaskRef:
                if a.key in self.names:
                    a = TaskRef(self.names[a.key])
                else:
                    a = self.data[a.key]
                    if isinstance(a, (TaskRef, GraphNode)):
                        return None  # a constant that only looks like a reference
            elif isinstance(a, Alias):
                if a.target not in self.names:
                    return None
                a = TaskRef(self.names[a.target])
            elif isinstance(a, GraphNode):
                if type(a) is DataNode and not isinstance(a.value, (TaskRef, GraphNode)):
                    a = a.value
                else:
                    return None
            packed.append(a)
        return tuple(packed)


class _Reader:
    """Reads a graph lazily: converts and resolves only what the requested keys need."""

    def __init__(self, dsk: Mapping[Key, Any]) -> None:
        self.dsk = dsk
        self.nodes: dict[Key, GraphNode] = {}
        self.names: dict[Key, Key] = {}
        self.data: dict[Key, Any] = {}
        self._inputs: dict[Key, list[Key]] = {}

    def node(self, key: Key, dependents: Iterable[Key] = ()) -> GraphNode:
        """Return the node of `key`, converted from a legacy form if need be."""
        found = self.nodes.get(key)
        if found is not None:
            return found
        if key in self.dsk:
            node: GraphNode | Any = convert_legacy_task(key, self.dsk[key], self.dsk)
            if not isinstance(node, GraphNode):
                node = DataNode(key, node)
            if not (isinstance(node, Alias) and node.target == key):
                self.nodes[key] = node
                return node
        raise ValueError(f"Missing dependency {key!r} for dependents {set(dependents) or {key}}")

    def resolve(self, name: Key, dependent: Key) -> Key | None:
        """Return the task behind `name`, through aliases; None if it is a constant."""
        if name in self.names:
            return self.names[name]
        if name in self.data:
            return None
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
        if isinstance(node, DataNode):
            self.data[name] = node.value
            return None
        self.names[name] = key
        return key

    def inputs_of(self, key: Key) -> list[Key]:
        """Return the tasks that the task `key` needs, each once, in any order."""
        found = self._inputs.get(key)
        if found is None:
            # Two names may mean one task (aliases). The order of a frozenset, another one in
            # each process, only decides which input is numbered first.
            names = self.node(key).dependencies
            tasks = [self.resolve(name, key) for name in names]
            found = self._inputs[key] = [k for k in dict.fromkeys(tasks) if k is not None]
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
    outputs: dict[Key, Key] = {}
    constants: dict[Key, Any] = {}
    for key in wanted:
        if key in local:
            continue
        task = reader.resolve(key, key)
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
    outputs: dict[Key, Key],
    constants: dict[Key, Any],
    local: dict[Key, GraphNode],
    order: str | None,
) -> Plan:
    keys = depth_first(dict.fromkeys(outputs.values()), reader.inputs_of)
    if order == "dask" or (order is None and len(keys) <= FEW):
        keys = _dask_order(keys, reader)
    number = {key: i for i, key in enumerate(keys)}
    inputs_of = reader.inputs_of
    inputs = [tuple([number[k] for k in inputs_of(key)]) for key in keys]
    users: list[list[int]] = [[] for _ in keys]
    for task, its_inputs in enumerate(inputs):
        for i in its_inputs:
            users[i].append(task)
    return Plan(
        keys=keys,
        nodes=[reader.nodes[key] for key in keys],
        inputs=inputs,
        users=users,
        outputs={key: number[task] for key, task in outputs.items()},
        constants=constants,
        local=local,
        names={name: number[key] for name, key in reader.names.items() if key in number},
        data=reader.data,
    )


def _dask_order(keys: list[Key], reader: _Reader) -> list[Key]:
    """Return `keys` as `dask.order` ranks them."""
    from dask.order import order

    graph = {key: Task(key, id, *(TaskRef(k) for k in reader.inputs_of(key))) for key in keys}
    rank = order(graph)
    return sorted(keys, key=rank.__getitem__)
