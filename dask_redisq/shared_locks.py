"""Dask's locks that hold within one process become locks of the queue, in the tasks that write.

Dask gives any scheduler that it does not know a `dask.utils.SerializableLock` for `da.store` and
`to_hdf` (section 1.8 of its contract). Of two slots each would take its own, and write into one
chunk of a file at the same time: what one of them wrote is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import FunctionType
from typing import Any

from dask._task_spec import DataNode, Task
from dask.utils import SerializableLock

__all__ = ["LockSharer", "locks_made_by"]

#: Dask's functions that take a lock. Not `_read_hdf`: it opens a file for itself, read-only, and
#: one at a time on the whole queue would be slower and no better.
_HOLDERS = frozenset((
    "store_chunk", "load_store_chunk", "load_chunk", "_pd_to_hdf",
    "getter", "getter_nofancy", "getter_inline",
))  # fmt: skip

_make: Callable[[str], Any] | None = None


def locks_made_by(make: Callable[[str], Any]) -> None:
    """Let `make`, name -> lock, give the lock of the queue that a slot works for.

    ``import dask_redisq`` does so, for `dask_redisq.lock`, which is built on queues: plans cannot
    import it.
    """
    global _make  # noqa: PLW0603
    _make = make


def _lock(name: str) -> Any:
    if _make is None:
        raise RuntimeError("import dask_redisq makes locks")
    return _make(name)


class _LockThere:
    """A lock of the queue, once it is unpickled in a slot: that knows which queue it is."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<lock {self.name} of the queue>"

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return _lock, (self.name,)


class LockSharer:
    """Makes tasks with locks of the queue for those of one plan.

    A lock has the name of Dask's, so it is one for all the tasks, and jobs, that were given that.
    The nodes of the graph, which are the user's, stay as they are.
    """

    def __init__(self) -> None:
        self._locks: dict[Hashable, _LockThere] = {}
        #: id -> a node or inner graph, and what became of it: the tasks of a layer have some in
        #: common, and must have them so afterwards, for a block to hold each only once.
        self._done: dict[int, tuple[Any, Any]] = {}

    def share(self, node: Any) -> Any:
        """Return a node whose locks are those of the queue; the same node if it has none."""
        return self._once(node, self._task) if type(node) is Task else node

    def _once(self, thing: Any, make: Callable[[Any], Any]) -> Any:
        known = self._done.get(id(thing))
        if known is None:
            known = self._done[id(thing)] = (thing, make(thing))
        return known[1]

    def _task(self, task: Task) -> Task:
        func = task.func
        # Asked of plain functions only: a callable of the user may answer with anything.
        name = func.__name__ if type(func) is FunctionType else ""
        inner: Callable[[Any], Any]
        if name in _HOLDERS:
            inner = self._held
        elif name == "_execute_subgraph" or any(type(a) is Task for a in task.args):
            inner = self.share
        else:
            return task  # most of them
        args: list[Any] = [inner(a) for a in task.args]
        if name == "_execute_subgraph" and type(args[0]) is dict:  # fused
            args[0] = self._once(args[0], self._graph)
        kwargs = {word: inner(a) for word, a in task.kwargs.items()}
        if all(map(_same, args, task.args)) and all(
            map(_same, kwargs.values(), task.kwargs.values())
        ):
            return task
        return Task(task.key, func, *args, _data_producer=task.data_producer, **kwargs)

    def _graph(self, graph: dict[Any, Any]) -> dict[Any, Any]:
        shared = {key: self.share(node) for key, node in graph.items()}
        return graph if all(map(_same, shared.values(), graph.values())) else shared

    def _held(self, thing: Any) -> Any:
        if type(thing) is DataNode and type(thing.value) is SerializableLock:
            thing = thing.value
        if type(thing) is not SerializableLock:
            return self.share(thing)
        name = f"dask:{thing.token}"
        return self._locks.setdefault(name, _LockThere(name))


def _same(one: Any, other: Any) -> bool:
    return one is other
