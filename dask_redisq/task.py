"""Run one task. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from io import IOBase
from types import FunctionType
from typing import Any
from weakref import ProxyTypes

from dask._task_spec import GraphNode, Task

__all__ = ["Given", "give", "itself", "kind_of", "run_node", "run_task", "settled"]


def run_task(task: Any, values: Mapping[int, Any]) -> Any:
    """Run a task; return its value, or raise what it raises.

    Parameters
    ----------
    task : tuple
        ``(func, inputs)``: each argument is the value of a task, by number;
        ``(func, args, where)``: so are those at the places `where`, the others are constants;
        ``(func, args, where, names)``: the last arguments are keywords, with these names.
    values : Mapping
        Task number -> value, for each input of the task.

    Examples
    --------
    >>> run_task((pow, (7, 8)), {7: 5, 8: 2})
    25
    >>> run_task((round, (7, 1), (0,), ("ndigits",)), {7: 2.34})
    2.3
    """
    if len(task) == 2:
        return task[0](*[values[number] for number in task[1]])
    func, args, where = task[:3]
    args = list(args)
    for place in where:
        args[place] = values[args[place]]
    if len(task) == 3:
        return func(*args)
    names = task[3]
    first = len(args) - len(names)
    return func(*args[:first], **dict(zip(names, args[first:], strict=True)))


def settled(value: Any) -> Any:
    """Return a task's result; what can be read only once, an iterator, as a list.

    A was an iterator. It was pickled for the others, which read it to its end, and kept for those
    that run here: B found it empty, and a partition was missing from the answer. Nor may the one
    user of A that runs here read it: B might raise half-way, and run again elsewhere.

    An open file stays what it is: nobody wants its lines in place of it. So does a weak proxy,
    whose type has all methods that there are.
    """
    if not isinstance(value, Iterator) or isinstance(value, IOBase):
        return value
    return value if type(value) in ProxyTypes else list(value)


def run_node(node: GraphNode, names: tuple[Any, ...], data: dict[Any, Any], *values: Any) -> Any:
    """Run a node of a Dask graph that holds other nodes, and reads its inputs by their keys.

    Parameters
    ----------
    node : GraphNode
        What to run.
    names : tuple
        The keys of its inputs.
    data : dict
        Key -> constant, for the rest of what it reads.
    values : object
        The values of `names`, in their order.
    """
    return node({**data, **dict(zip(names, values, strict=True))})


class Given:
    """The value of a task that only gives what it was given, and that is large.

    Its pickle holds nothing: whoever reads it finds the thing in the task, on the server, where it
    came with its job. So it goes there once, and is there once.

    Attributes
    ----------
    thing : object, optional
        What the task was given; None where this was unpickled.
    size : int
        Bytes that it is taken for.
    """

    __slots__ = ("size", "thing")

    def __init__(self, thing: Any = None, size: int = 0) -> None:
        self.thing = thing
        self.size = size

    def __repr__(self) -> str:
        return f"<Given {type(self.thing).__name__}, {self.size} bytes>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Given, ()


def give(thing: Any, size: int) -> Given:
    """Return what is given, as a value that stays where it is."""
    return Given(thing, size)


def itself(value: Any) -> Any:
    """Return what is given."""
    return value


def kind_of(task: Any) -> str:
    """Return the name of what a task runs: tasks of one kind are taken to last alike."""
    func = task[0]
    if func is run_node:
        func = task[1][0]
    if isinstance(func, Task):
        func = func.func
    while isinstance(func, partial):
        func = func.func
    if type(func) is FunctionType:
        return func.__qualname__
    return getattr(func, "__qualname__", "") or type(func).__qualname__
