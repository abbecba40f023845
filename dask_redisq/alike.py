"""Finds containers in the arguments of tasks that hold the very same things. No I/O.

Dask copies lists, tuples and dicts as it reads a graph: the list that a thousand tasks were given
is a thousand lists, of the same arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from types import BuiltinFunctionType, FunctionType
from typing import Any

from dask._task_spec import Task

__all__ = ["Alike", "may_be_part"]

#: Containers with more items, or inside of so many others, are like no other.
MOST_ITEMS, DEEPEST = 1024, 4
_KINDS = frozenset((list, tuple, dict))
#: What takes no room in a pickle, or is looked at by itself.
_NO_PARTS = _KINDS | {set, frozenset, type, FunctionType, BuiltinFunctionType}


def may_be_part(thing: Any) -> bool:
    """Tell whether a container is worth a look for this, which several tasks share."""
    return type(thing) not in _NO_PARTS


class Alike:
    """The containers of some tasks that hold any of `parts`, the same ones as another one.

    Parameters
    ----------
    tasks : iterable of tuple
        As `dask_redisq.task.run_task` takes them.
    parts : Mapping of int to object
        What several tasks share, by id.

    Attributes
    ----------
    keys : dict of int to tuple
        Id of a container -> what is equal for those of the same things, as long as these live.
    found : dict of int to object
        Id of a container -> the container, where there are several.

    Examples
    --------
    >>> part = object()
    >>> one, other = [part, 1], [part, 1]
    >>> alike = Alike([(print, (one,), ()), (print, (other, [part]), ())], {id(part): part})
    >>> list(alike.found.values())
    [[<object object at ...>, 1], [<object object at ...>, 1]]
    """

    def __init__(self, tasks: Iterable[Any], parts: Mapping[int, Any]) -> None:
        self.keys: dict[int, Any] = {}
        self._parts = parts.keys()
        self._of: dict[Any, list[Any]] = {}
        for task in tasks:
            if len(task) > 2:
                self._look(task[1])
        self.found = {id(x): x for some in self._of.values() if len(some) > 1 for x in some}

    def _look(self, args: Iterable[Any], depth: int = 0) -> None:
        for arg in args:
            if type(arg) in _KINDS:
                self._key(arg, depth)
            elif isinstance(arg, Task) and depth < DEEPEST:
                self._key(arg.args, depth + 1)
                self._look([x for x in arg.args if isinstance(x, Task)], depth + 1)

    def _key(self, thing: Any, depth: int) -> Any:
        """Return the key of a container that holds a part, else its id."""
        if depth == DEEPEST or len(thing) > MOST_ITEMS:
            return id(thing)
        items = list(chain(thing, thing.values())) if type(thing) is dict else thing
        inner = {i: self._key(x, depth + 1) for i, x in enumerate(items) if type(x) in _KINDS}
        if all(type(key) is int for key in inner.values()) and self._parts.isdisjoint(
            map(id, items)
        ):
            return id(thing)
        key = (type(thing), *[inner.get(i, id(x)) for i, x in enumerate(items)])
        self.keys[id(thing)] = key
        self._of.setdefault(key, []).append(thing)
        return key
