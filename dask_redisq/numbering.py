"""Numbers of tasks that depend on what a graph does, and not on what its keys are called. No I/O.

Such a number says which random numbers a task draws. Names will not do: `dask.delayed` makes new
ones at each call, `dask.order` breaks ties by them, and a set of them has another order in each
process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from dask._task_spec import Alias, Task, TaskRef
from dask.typing import Key

from dask_redisq.graph import flatten_keys
from dask_redisq.order import depth_first
from dask_redisq.plan import Plan

__all__ = ["number_tasks"]


def number_tasks(plan: Plan, keys: Any) -> dict[int, int]:
    """Return task -> its number in a walk from the requested keys.

    In their order, depth first, arguments in the order in which they stand: each task comes behind
    all that it needs.

    Parameters
    ----------
    plan : Plan
        The tasks.
    keys : hashable, or nested list of hashable
        What was asked for; those that the client computes from others stand for these.
    """

    def tasks_of(names: Iterable[Key]) -> list[int]:
        met = dict.fromkeys(plan.names.get(name, -1) for name in names)
        return [task for task in met if task >= 0]  # below 0: a value of another job

    def inputs_of(task: int) -> list[int]:
        node = plan.nodes[task]
        names = dict.fromkeys(_names_in(node))
        # What a node of a kind that Dask may yet make reads in places of its own.
        return tasks_of([*names, *sorted(node.dependencies - names.keys(), key=repr)])

    wanted = (
        _names_in(plan.local[key]) if key in plan.local else iter([key])
        for key in flatten_keys(keys)
    )
    walk = depth_first(tasks_of(chain.from_iterable(wanted)), inputs_of)
    return {task: number for number, task in enumerate(walk)}


def _names_in(node: Any) -> Iterator[Key]:
    """Yield the names that a node reads, as they stand in it."""
    left = [node]
    while left:
        found = left.pop()
        if isinstance(found, TaskRef):
            yield found.key
        elif isinstance(found, Alias):
            yield found.target
        elif isinstance(found, Task) and found.has_subgraph():
            yield from _names_around(found)
        elif isinstance(found, Task):
            left += reversed([*found.args, *found.kwargs.values()])


def _names_around(fused: Task) -> Iterator[Key]:
    """Yield the names that a fused node reads, as the tasks in it do: it has them by hash."""
    inside, last, names, *given = fused.args
    outside = dict(zip(names, given, strict=True))
    left, seen = [last], set()
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in inside:
            left += reversed(list(_names_in(inside[name])))
        else:
            yield from _names_in(outside.get(name))
