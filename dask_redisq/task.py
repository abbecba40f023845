"""Run one task. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from dask._task_spec import Task, TaskRef

__all__ = ["kind_of", "run_task"]


def run_task(node: Any, values: Mapping[Any, Any]) -> Any:
    """Run a task of `dask_redisq.codec.Block.nodes`; return its value, or raise what it raises.

    Parameters
    ----------
    node : tuple
        ``(func, args)``, ``(func, args, kwargs)`` or ``(node, names, data, None)``.
    values : Mapping
        Task number -> value, for each input of the task.

    Examples
    --------
    >>> from dask._task_spec import TaskRef
    >>> run_task((pow, (TaskRef(7), 2)), {7: 5})
    25
    """
    if len(node) == 2:
        func, args = node
        return func(*[values[a.key] if type(a) is TaskRef else a for a in args])
    if len(node) == 3:
        func, args, kwargs = node
        args = [values[a.key] if type(a) is TaskRef else a for a in args]
        return func(
            *args, **{k: values[a.key] if type(a) is TaskRef else a for k, a in kwargs.items()}
        )
    graph_node, names, data, _ = node
    return graph_node({**data, **{name: values[number] for name, number in names.items()}})


def kind_of(node: Any) -> str:
    """Return the name of what a task runs: tasks of one kind are taken to last alike."""
    func = node[0]
    if isinstance(func, Task):
        func = func.func
    while isinstance(func, partial):
        func = func.func
    return getattr(func, "__qualname__", "") or type(func).__qualname__
