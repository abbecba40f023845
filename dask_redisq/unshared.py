"""Graphs that count on what workers do not share: a disk, a memory, another scheduler, a lock.

Locks are made to be shared, the rest is refused.

Each would be a wrong answer without an error (section 1.8 of Dask's contract). So would a lock,
which can be shared, and is.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FunctionType
from typing import Any

from dask._task_spec import DataNode, GraphNode, Task, TaskRef
from dask.typing import Key

from dask_redisq.errors import RedisqError
from dask_redisq.plan import Plan
from dask_redisq.shared_locks import LockSharer

__all__ = ["holds_open_file", "share_or_refuse"]

_PARTD = ("zpartd-", "partd-", "shuffle-partd-")
#: In the names of tasks that write.
_WRITES = ("store-map-", "to-hdf-")
#: Attributes by which what wraps a store or a file system has it.
_WRAPPED = ("store", "_store", "_mutable_mapping", "fs", "sync_fs")
#: Wrappers in each other that are looked into.
_DEEP = 8
_IN_MEMORY = {"MemoryStore", "MemoryFileSystem"}
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
            if not one_of_many and not any(word in name for word in _WRITES):
                continue  # a name of its own each, as those of `delayed`, and they are many
            if not copies:
                _refuse_memory(plan.nodes[task], plan.data, key)
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
                "none here. Build it under redisq.enable(), or with "
                'dask.config.set({"dataframe.shuffle.method": "tasks", '
                '"array.rechunk.method": "tasks"})'
            )


def _refuse_memory(node: GraphNode, data: Mapping[Key, Any], key: Key) -> None:
    target = _target(node, data)
    kind = "" if target is None else _memory(target)
    if kind:
        raise RedisqError(
            f"task {key!r} stores into {kind}, which is in this process: a worker would write into "
            "a copy of its own, and the target would stay as it is. Store into a file, such as "
            "zarr's, that all workers see, or compute the array and assign it. If copies are what "
            "you want: redisq.allow-memory-store"
        )


def _target(node: Any, data: Mapping[Key, Any]) -> Any:
    """Return what a task of `dask.array.store` writes into, None if that is not known."""
    if type(node) is not Task:
        return None
    # Asked of plain functions only: a callable of the user may answer with anything.
    name = node.func.__name__ if type(node.func) is FunctionType else ""
    if name in {"store_chunk", "load_store_chunk"} and len(node.args) > 1:
        return _value(node.args[1], data)
    if name == "_execute_subgraph":  # fused: graph, its output, names of its inputs, inputs
        graph, _, names, *inputs = node.args
        known = {n: _value(v, data) for n, v in zip(_value(names, data), inputs, strict=False)}
        for inner in _value(graph, data).values():
            found = _target(inner, known)
            if found is not None:
                return found
    return None


def _value(thing: Any, data: Mapping[Key, Any]) -> Any:
    if isinstance(thing, DataNode):
        return thing.value
    return data.get(thing.key) if isinstance(thing, TaskRef) else thing


def _memory(target: Any) -> str:
    """Say what kind of memory of this process a target is; nothing, if it is none."""
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
        if isinstance(inner, dict) or _IN_MEMORY & {kind.__name__ for kind in type(inner).__mro__}:
            return "a zarr array in memory"
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
