"""What Dask hands to a ``get``, made plain: a mapping, the keys, and the annotations by type.

Source: sections 1.1, 1.3 and 1.8 of Dask's contract: `dask.compute` passes an expression, users
pass dicts and `HighLevelGraph`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import Context
from typing import Any

import dask
from dask._task_spec import DataNode, GraphNode, convert_legacy_task
from dask.core import flatten
from dask.typing import Key

from dask_redisq.forks import in_forked_child

__all__ = ["plain_graph", "read_graph", "with_cached"]

#: Annotations that mean something here.
OF_TASKS = {
    "allow_other_workers", "priority", "resources", "retries", "seed", "timeout", "workers",
}  # fmt: skip

_unfused = threading.Lock()
#: What the holder of that lock has set.
_apart: dask.config.set | None = None


def plain_graph(dsk: Any, keys: Any) -> tuple[Mapping[Key, Any], Any, Mapping[str, Any]]:
    """Return the graph as a mapping, its keys, and its annotations by type.

    A dataframe shuffle "to disk", Dask's default for any scheduler that it does not know, becomes
    a shuffle by tasks: on several hosts the other silently loses rows, since each has its own disk.
    """
    if isinstance(dsk, Mapping):
        return dsk, keys, _annotations_of_layers(dsk)
    rewritten = _shuffle_by_tasks(dsk)
    if rewritten is not dsk:
        dsk, keys = rewritten, list(flatten(rewritten.__dask_keys__()))
    if _has_annotated_layers(dsk):
        with _layers_apart():
            return dsk.__dask_graph__(), keys, dsk.__dask_annotations__()
    annotations = dsk.__dask_annotations__() if hasattr(dsk, "__dask_annotations__") else {}
    return dsk.__dask_graph__(), keys, annotations


@contextmanager
def _layers_apart() -> Iterator[None]:
    """Have Dask fuse nothing while the block makes a graph."""
    # An array's tasks are fused over the borders of its layers, and annotations are of layers:
    # they would all be lost (dask#7036). The setting is one for the whole process, which costs
    # another thread that looks at it now no more than a fusion; only ours must not restore it
    # in the wrong order. Nor are annotations merged: of two layers that ask for two workers
    # Dask makes one for none, which is anywhere.
    global _apart  # noqa: PLW0603
    apart = {"optimization.fuse.active": False, "optimization.annotations.fuse": False}
    with _unfused:
        _apart = dask.config.set(apart)
        try:
            with _apart:
                yield
        finally:
            _apart = None


@in_forked_child
def _begin_anew() -> None:
    """Renew the lock in a forked child, and end what its holder, the parent's, has set."""
    global _unfused, _apart  # noqa: PLW0603
    _unfused = threading.Lock()
    if _apart is not None:
        _apart.__exit__(None, None, None)
        _apart = None


def _has_annotated_layers(expr: Any) -> bool:
    graphs = [e.hlg for e in (expr, *getattr(expr, "operands", ())) if hasattr(e, "hlg")]
    return any(layer.annotations for graph in graphs for layer in graph.layers.values())


def read_graph(
    dsk: Any, keys: Any, ambient: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> tuple[Mapping[Key, Any], Any, dict[str, Any], dict[str, Any]]:
    """Return what `plain_graph` does, and the keywords, with what holds around the call.

    As in distributed an annotation of the graph goes before a keyword, and that before what
    `dask.annotate` says around the call.

    Parameters
    ----------
    dsk, keys : object
        What Dask passes.
    ambient : Mapping
        What `dask.get_annotations` returns.
    kwargs : Mapping
        Keywords of `get`.
    """
    # In a context of its own: layers that Dask makes only now would take the ambient annotations
    # for theirs, and these would go before the keywords.
    graph, keys, annotations = Context().run(plain_graph, dsk, keys)
    by_type, words = dict(annotations), dict(kwargs)
    for name in OF_TASKS & (ambient.keys() | kwargs.keys()):
        value = words.pop(name) if name in words else ambient[name]
        if callable(value):
            by_type[name] = {key: value(key) for key in graph} | (by_type.get(name) or {})
        else:
            words[name] = value
    return graph, keys, by_type, words


def with_cached(graph: Mapping[Key, Any], cache: MutableMapping[Key, Any]) -> dict[Key, Any]:
    """Return a graph whose tasks are constants where `cache` holds their values.

    Dask's setting and keyword ``cache`` of its own schedulers: constants of the graph are entered
    into it as well.
    """
    whole = dict(graph) | {key: DataNode(key, value) for key, value in cache.items()}
    for key, node in graph.items():
        data = convert_legacy_task(key, node, whole)
        if not isinstance(data, GraphNode):
            cache.setdefault(key, data)
        elif isinstance(data, DataNode):
            cache.setdefault(key, data.value)
    return whole


def _annotations_of_layers(dsk: Mapping[Key, Any]) -> dict[str, Any]:
    """Return annotation -> {key: value} of a `HighLevelGraph`; {} for other mappings."""
    found: dict[str, dict[Key, Any]] = {}
    for layer in getattr(dsk, "layers", {}).values():
        for name, value in (getattr(layer, "annotations", None) or {}).items():
            if name in OF_TASKS:
                for key in layer:
                    found.setdefault(name, {})[key] = value(key) if callable(value) else value
    return found


def _shuffle_by_tasks(expr: Any) -> Any:
    shuffle = sys.modules.get("dask.dataframe.dask_expr._shuffle")
    if shuffle is None or not hasattr(expr, "walk"):
        return expr
    # One at a time: what is below another shuffle has another name once that is substituted.
    while hits := [e for e in expr.walk() if type(e) is shuffle.DiskShuffle]:
        hit = hits[0]  # itself it is neither true nor false
        # A shuffle to disk keeps the index whatever it is told, and what it promised others is so.
        names = hit._parameters  # noqa: SLF001 - an expression has no other word for them
        operands = dict(zip(names, hit.operands, strict=True)) | {"ignore_index": False}
        expr = expr.substitute(hit, shuffle.TaskShuffle(*operands.values()))
    return expr
