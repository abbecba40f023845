"""A Dask graph becomes numbered tasks: culled, aliases resolved, constants set aside. No I/O.

Sources: sections 1.1 and 1.4 of Dask's contract for a ``get`` (`dask.local.get_async`,
`dask._task_spec`). Keys are mapped to job-local integers through a dict, so whatever Dask
accepts as a key works: ``0``, ``""``, tuples; and ``1 == 1.0 == True`` are one key.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from dask._task_spec import Alias, DataNode, GraphNode, Task, TaskRef, convert_legacy_task
from dask.typing import Key

from dask_redisq.codec import KeptValue
from dask_redisq.order import depth_first
from dask_redisq.plan import Plan

__all__ = ["plan_graph"]

#: Up to this many tasks `dask.order` costs less than a round trip.
FEW = 64


_MISSING = object()


class _Reader:
    """Reads a graph lazily: resolves only what the requested keys need.

    Each task that is met gets a place, an int, and is known by it from then on: keys are mostly
    tuples, which hash anew at each look (planning took 9.5 us a task by key, 6 by place).
    """

    def __init__(
        self, dsk: Mapping[Key, Any], kept: Callable[[Key], Any], held: Mapping[Key, Any]
    ) -> None:
        self.dsk = dsk
        self.kept = kept
        self.held = held
        self.parts: dict[int, Any] = {-1 - i: part for i, part in enumerate(held.values())}
        self.outer: dict[int, list[int]] = {}
        # None for a constant
        self.places: dict[Key, int | None] = {key: -1 - i for i, key in enumerate(held)}
        self.data: dict[Key, Any] = {}
        self.keys: list[Key] = []
        self.nodes: list[GraphNode] = []
        self.inputs: list[list[int] | None] = []  # of those that were looked at

    def node(self, key: Key, dependents: Iterable[Key] = ()) -> GraphNode:
        """Return the node of `key`, converted from a legacy form if need be."""
        node: GraphNode | Any = self.dsk.get(key, _MISSING)
        if type(node) is Task:
            return node
        if node is not _MISSING:
            node = convert_legacy_task(key, node, self.dsk)
            if not isinstance(node, GraphNode):
                node = DataNode(key, node)
            if not (isinstance(node, Alias) and node.target == key):
                return node
        raise ValueError(f"Missing dependency {key!r} for dependents {set(dependents) or {key}}")

    def output(self, key: Key) -> int | None:
        """Return the task behind a requested key; its own alias is none, as in Dask."""
        try:
            return self.place(key, key)
        except ValueError:
            node = convert_legacy_task(key, self.dsk.get(key), self.dsk)
            if isinstance(node, Alias) and node.target == key:
                raise KeyError(key) from None
            raise

    def place(self, name: Key, dependent: Key) -> int | None:
        """Return the task behind `name`, through aliases; None if it is a constant."""
        if name in self.places:
            return self.places[name]
        key = name
        try:
            node: Any = self.node(name, (dependent,))
        except ValueError as missing:
            node = self._part(name, missing)
        if isinstance(node, Alias):
            key, node = self._behind(name, node, dependent)
        found: int | None = None
        if isinstance(node, DataNode):
            self.data[name] = node.value
        elif key in self.places:
            found = self.places[key]
        elif not isinstance(node, GraphNode):
            found = self.places[key] = -1 - len(self.parts)
            self.parts[found] = node
        else:
            found = self.places[key] = len(self.nodes)
            self.keys.append(key)
            self.nodes.append(node)
            self.inputs.append(None)
        self.places[name] = found
        return found

    def _part(self, key: Key, missing: ValueError) -> Any:
        """Return the part of a persisted collection that is called `key`, or raise `missing`."""
        try:
            part = self.kept(key)
        except KeyError as freed:
            raise ValueError(f"{missing}: {freed.args[0]}") from None
        if part is None:
            raise missing
        return part

    def _behind(self, name: Key, node: Any, dependent: Key) -> tuple[Key, Any]:
        """Return the key and node, or part, that an alias stands for."""
        key, seen = name, [name]
        while isinstance(node, Alias):
            key = node.target
            if key in seen:
                raise RuntimeError(
                    f"Cycle detected in Dask graph: {' -> '.join(map(repr, [*seen, key]))}"
                )
            seen.append(key)
            if key in self.held:
                return key, self.held[key]
            try:
                node = self.node(key, (dependent,))
            except ValueError as missing:
                node = self._part(key, missing)
        return key, node

    def inputs_of(self, task: int) -> list[int]:
        """Return the tasks that a task needs, each once, in any order; values of other jobs apart.

        It is the order of the arguments where each of them is another task: `Plan.block` then
        writes them once.
        """
        found = self.inputs[task]
        if found is None:
            node = self.nodes[task]
            names: Collection[Key] = node.dependencies  # a property, which takes its time
            if not names:
                found = self.inputs[task] = []
                return found
            count = len(names)
            if count > 1 and type(node) is Task and len(node.args) == count and not node.kwargs:
                direct = [a.key for a in node.args if type(a) is TaskRef]
                # As many as there are different names, and nothing else has any: the same names.
                names = direct if len(direct) == count else names
            get, key, new = self.places.get, self.keys[task], -1
            tasks = [
                place if (place := get(name, new)) != new else self.place(name, key)
                for name in names
            ]
            # Two names may mean one task (aliases), or a constant.
            distinct = dict.fromkeys(tasks) if count > 1 else tasks
            found = [k for k in distinct if k is not None]
            if self.parts and (outer := [k for k in found if k < 0]):
                self.outer[task] = outer
                found = [k for k in found if k >= 0]
            self.inputs[task] = found
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
    priority: Mapping[Key, float] | None = None,
    *,
    finalize_here: bool = True,
    kept: Callable[[Key], Any] = lambda _: None,
    held: Mapping[Key, Any] | None = None,
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
    priority : Mapping, optional
        Key -> priority, 0 for others. Tasks of a higher one come first, with all that they need.
    finalize_here : bool, default True
        Leave the last step of an array or bag (its concatenation) to the client: a worker would
        receive, hold and send the whole result.
    kept : callable, optional
        Key -> the part of a persisted collection with that name, None, or a `KeyError` that tells
        of it; asked for what the graph lacks.
    held : Mapping, optional
        Key -> the part that is taken for its value, whatever the graph says.

    Raises
    ------
    KeyError
        If a requested key is not in the graph, or is there as an alias of itself.
    ValueError
        "Missing dependency", as `dask.local` says it.
    RuntimeError
        "Cycle detected", as `dask.order` says it.
    """
    reader = _Reader(dsk, kept, held or {})
    wanted = list(dict.fromkeys(flatten_keys(keys)))
    if absent := [key for key in wanted if key not in dsk and kept(key) is None]:
        raise KeyError(absent[0])
    local = _local_nodes(reader, wanted) if finalize_here else {}
    needed = dict.fromkeys([*wanted, *(k for n in local.values() for k in n.dependencies)])
    outputs: dict[Key, int] = {}
    constants: dict[Key, Any] = {}
    fetched: dict[Key, Any] = {}
    for key in (k for k in needed if k not in local):
        task = reader.output(key)
        if task is None:
            constants[key] = reader.data[key]
        elif task < 0:
            fetched[key] = reader.parts[task]
        else:
            outputs[key] = task
    plan = _number(reader, outputs, constants, local, order, priority or {})
    plan.fetched = fetched
    return plan


def _refuse_idle_cycles(reader: _Reader) -> None:
    """Raise for a cycle among tasks that nobody asked for, as `dask.local` does of any cycle.

    What else is wrong with them does not matter, there or here. 8 us a task that nobody asked for;
    collections leave none, as Dask culls their graphs.
    """
    idle: dict[Key, list[Key]] = {}
    for key in reader.dsk.keys() - reader.places.keys():
        with suppress(ValueError):
            idle[key] = list(reader.node(key).dependencies)
    depth_first(idle, lambda key: [k for k in idle[key] if k in idle])


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
    priority: Mapping[Key, float],
) -> Plan:
    places = depth_first(dict.fromkeys(outputs.values()), reader.inputs_of, reader.keys.__getitem__)
    _refuse_idle_cycles(reader)
    by_dask, urgency = order == "dask" or (order is None and len(places) <= FEW), 0.0
    if by_dask:
        places = _dask_order(places, reader)
    if priority:
        places, urgency = _urgent_first(places, reader, priority)
    number = dict(zip(places, range(len(places)), strict=True))
    seen = reader.inputs  # all of them are, by now
    inputs = [tuple([number[k] for k in seen[place] or ()]) for place in places]
    users: list[list[int]] = [[] for _ in places]
    for task, its_inputs in enumerate(inputs):
        for i in its_inputs:
            users[i].append(task)
    outer = {
        number[place]: tuple(
            [KeptValue(n, reader.parts[n].job, reader.parts[n].task) for n in numbers]
        )
        for place, numbers in reader.outer.items()
    }
    return Plan(
        keys=[reader.keys[place] for place in places],
        nodes=[reader.nodes[place] for place in places],
        inputs=inputs,
        users=users,
        outputs={key: number[place] for key, place in outputs.items()},
        constants=constants,
        local=local,
        names={n: number.get(p, p) for n, p in reader.places.items() if p is not None},
        data=reader.data,
        outer=outer,
        parts=reader.parts,
        ordered=by_dask or bool(priority),
        urgency=urgency,
    )


def _urgent_first(
    places: list[int], reader: _Reader, priority: Mapping[Key, float]
) -> tuple[list[int], float]:
    """Return `places` by falling priority, and the least; what a task needs is as urgent as it."""
    urgent = {place: priority.get(reader.keys[place], 0) for place in places}
    for place in reversed(places):
        for needed in reader.inputs_of(place):
            urgent[needed] = max(urgent[needed], urgent[place])
    return sorted(places, key=lambda place: -urgent[place]), min(urgent.values(), default=0)


def _dask_order(places: list[int], reader: _Reader) -> list[int]:
    """Return `places` as `dask.order` ranks them."""
    from dask.order import order

    keys = reader.keys  # it breaks ties by key
    graph: dict[Key, Any] = {
        keys[p]: Task(keys[p], id, *(TaskRef(keys[k]) for k in reader.inputs_of(p))) for p in places
    }
    rank = order(graph)
    return sorted(places, key=lambda place: rank[keys[place]])
