"""Refuses graphs that count on what workers do not share: a disk, a memory, another scheduler.

Each would be a wrong answer without an error (section 1.8 of Dask's contract).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from dask._task_spec import DataNode, GraphNode, Task, TaskRef
from dask.typing import Key

from dask_redisq.errors import RedisqError
from dask_redisq.plan import Plan

__all__ = ["refuse_unshared"]

_PARTD = ("zpartd-", "partd-", "shuffle-partd-")
_STORE = "store-map-"


def refuse_unshared(plan: Plan, *, one_disk: bool = False, copies: bool = False) -> None:
    """Raise if a plan's tasks pass data by something that is not theirs together.

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
    stores: set[str] = set()
    for task, key in enumerate(plan.keys):
        name = key[0] if isinstance(key, tuple) and key else key
        if not isinstance(name, str):
            continue
        if name.startswith(_PARTD) and not one_disk:
            raise RedisqError(
                f"the graph shuffles through a local disk (task {key!r}), which loses rows when "
                "workers run on several hosts. "
                'Build it under redisq.enable(), or pass shuffle="tasks". If all workers see one '
                "disk: redisq.allow-disk-shuffle"
            )
        if (
            _STORE in name and name not in stores and not copies
        ):  # fused with what is before, it has both names
            stores.add(name)  # one target each
            _refuse_memory(plan.nodes[task], plan.data, key)


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
    kind = _memory(target)
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
    name = getattr(node.func, "__name__", "")
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
    store = getattr(target, "store", None)
    if isinstance(store, dict) or type(store).__name__ == "MemoryStore":
        return "a zarr array in memory"
    return ""
