"""Graphs that count on what workers do not share: a disk, a memory, another scheduler, a lock.

Locks are made to be shared, the rest is refused.

Each would be a wrong answer without an error (section 1.8 of Dask's contract). So would a lock,
which can be shared, and is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType
from typing import Any

from dask._task_spec import DataNode, Task, TaskRef
from dask.typing import Key

from dask_redisq.errors import RedisqError
from dask_redisq.plan import Plan
from dask_redisq.shared_locks import LockSharer

__all__ = ["holds_open_file", "share_or_refuse"]

_PARTD = ("zpartd-", "partd-", "shuffle-partd-")
#: In the names of tasks that write: by themselves, or as part of what `delayed` waits for.
_WRITES = re.compile("store-map-|to-hdf-|finalize-hlg")
#: Attributes by which what wraps a store or a file system has it.
_WRAPPED = ("store", "_store", "_mutable_mapping", "fs", "sync_fs")
#: Wrappers in each other that are looked into.
_DEEP = 8
_IN_MEMORY = {"MemoryStore", "MemoryFileSystem"}
_IN_ZIP = {"ZipStore", "ZipFileSystem"}
_ZIPPED = "a zarr array in a zip file"
#: Attributes that tell others the address of an array: CuPy's, PyTorch's.
_ADDRESSES = ("__array_interface__", "__cuda_array_interface__", "__dlpack__")


def share_or_refuse(plan: Plan, *, one_disk: bool = False, copies: bool = False) -> None:
    """Raise if a plan's tasks pass data by something that is not theirs together.

    Locks of Dask that hold within one process are replaced in the plan by locks of the queue.

    Parameters
    ----------
    plan : Plan
        The tasks.
    one_disk : bool, default False
        All workers see the same temporary directory.
    copies : bool, default False
        Tasks may store into memory all the same.

    Raises
    ------
    RedisqError
        For a shuffle by `partd`, as `dask.bag.Bag.groupby` makes it unless told otherwise; for
        one by distributed's workers; and for `dask.array.store` into memory of this process.
    """
    _refuse_p2p(plan)
    sharer = LockSharer()
    # Tasks of one name are alike, and what was fused does not say so in its name: the first of
    # each is looked into. Name -> whether it has locks.
    locks: dict[str, bool] = {}
    for task, key in enumerate(plan.keys):
        one_of_many = isinstance(key, tuple) and bool(key)
        name = key[0] if isinstance(key, tuple) and key else key
        if not isinstance(name, str):
            continue
        known = locks.get(name)
        if known is None:
            if name.startswith(_PARTD) and not one_disk:
                _refuse_disk(key)
            if not one_of_many and not _WRITES.search(name):
                continue  # a name of its own each, as those of `delayed`, and they are many
            if not copies:
                _refuse_memory(plan, task)
        if known is not False:
            node = plan.nodes[task]
            plan.nodes[task] = sharer.share(node)
            locks[name] = plan.nodes[task] is not node


def _refuse_disk(key: Key) -> None:
    raise RedisqError(
        f"the graph shuffles through a local disk (task {key!r}), which loses rows when "
        "workers run on several hosts. "
        'Build it under redisq.enable(), or pass shuffle="tasks" to a bag, '
        'shuffle_method="tasks" to a dataframe. If all workers see one disk: '
        "redisq.allow-disk-shuffle"
    )


def _refuse_p2p(plan: Plan) -> None:
    if "distributed.shuffle._core" not in sys.modules:
        return
    for kind, key in dict(zip(map(type, plan.nodes), plan.keys, strict=True)).items():
        if kind.__name__ == "P2PBarrierTask":
            raise RedisqError(
                f"the graph shuffles between workers of distributed (task {key!r}), and there are "
                'none here. Pass shuffle_method="tasks" to a dataframe\'s shuffle or merge, '
                'method="tasks" to an array\'s rechunk. Without a method it is a Client of '
                "distributed that asked for this: close it before you build the graph"
            )


def _refuse_memory(plan: Plan, task: int) -> None:
    key = plan.keys[task]
    for target in _targets(plan.nodes[task], partial(_constant, plan)):
        kind = _memory(target)
        if kind == _ZIPPED:
            raise RedisqError(
                f"task {key!r} stores into {kind}, which one process can write, that closes it at "
                "the end: each worker would write one of its own over it. Store into a directory "
                "that all workers see, and pack it when that is done"
            )
        if kind:
            raise RedisqError(
                f"task {key!r} stores into {kind}, which is in this process: a worker would write "
                "into a copy of its own, and the target would stay as it is. Store into a file, "
                "such as zarr's, that all workers see, or compute the array and assign it. If "
                "copies are what you want: redisq.allow-memory-store"
            )


def _targets(node: Any, find: Callable[[Key], Any]) -> Iterator[Any]:
    """Yield what a task writes into by `dask.array.store`, as far as `find` knows values."""
    # Any task: Dask wraps those of what is given to `delayed`, as xarray does, in another each.
    if not isinstance(node, Task):
        return
    # Asked of plain functions only: a callable of the user may answer with anything.
    name = node.func.__name__ if type(node.func) is FunctionType else ""
    if name in {"store_chunk", "load_store_chunk"} and len(node.args) > 1:
        yield _value(node.args[1], find)
    elif name == "_execute_subgraph":  # fused: graph, its output, names of its inputs, inputs
        graph, _, names, *inputs = node.args
        known = {n: _value(v, find) for n, v in zip(_value(names, find), inputs, strict=False)}
        for inner in _value(graph, find).values():
            yield from _targets(inner, known.get)
    else:
        for inner in (*node.args, *node.kwargs.values()):
            yield from _targets(inner, find)


def _value(thing: Any, find: Callable[[Key], Any]) -> Any:
    if isinstance(thing, DataNode):
        return thing.value
    return find(thing.key) if isinstance(thing, TaskRef) else thing


def _constant(plan: Plan, key: Key) -> Any:
    """Return a constant of a plan, also one that Dask wrapped as a task; None if it is none."""
    if key in plan.data:
        return plan.data[key]
    task = plan.names.get(key, -1)
    node = plan.nodes[task] if task >= 0 else None
    if type(node) is Task and getattr(node.func, "__name__", "") == "_identity":
        return _value(node.args[0], plan.data.get)
    return None


def _memory(target: Any) -> str:
    """Say what kind of thing a target is that only this process writes; nothing, if it is none."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(target, numpy.ndarray):
        return "a NumPy array"
    if any(hasattr(type(target), word) for word in _ADDRESSES):
        return "an array in memory"
    xarray = sys.modules.get("xarray")
    kinds = tuple(k for n in ("DataArray", "Variable") if (k := getattr(xarray, n, None)))
    if isinstance(target, kinds):
        # Also if it was read from a file: what is assigned changes the copy, and never the file.
        return f"xarray's {type(target).__name__}"
    inner = target
    for _ in range(_DEEP):
        inner = next((x for w in _WRAPPED if (x := getattr(inner, w, None)) is not None), None)
        if inner is None:
            break
        names = {kind.__name__ for kind in type(inner).__mro__}
        if isinstance(inner, dict) or _IN_MEMORY & names:
            return "a zarr array in memory"
        if _IN_ZIP & names:
            return _ZIPPED
    return ""


def holds_open_file(task: Any) -> bool:
    """Tell whether a task, as a plan packs it, holds a file that xarray has open here."""
    todo, seen = [task], set[int]()
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if str(type(thing).__module__).startswith("xarray.backends"):
            return True
        if isinstance(thing, (list, tuple)):
            todo += thing
        elif isinstance(thing, dict):
            todo += thing.values()
        elif isinstance(thing, Task):
            todo += [*thing.args, *thing.kwargs.values()]
        elif isinstance(thing, DataNode):
            todo.append(thing.value)
    return False
