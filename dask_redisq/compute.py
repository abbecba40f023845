"""From what Dask passes to the answer: plan, job, values; there and then, or detached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import dask
from dask.base import unpack_collections
from dask.local import get_sync
from dask.typing import Key

from dask_redisq.answer import Answer, assemble
from dask_redisq.callbacks import Observer, active_callbacks, looks_at_values
from dask_redisq.dask_input import (
    limits,
    read_graph,
    refuse_disk_shuffle,
    restrictions,
    with_cached,
)
from dask_redisq.graph import plan_graph
from dask_redisq.job import Job
from dask_redisq.keys import Keys
from dask_redisq.options import JobOptions, check_keywords, job_options
from dask_redisq.plan import Plan
from dask_redisq.pool import Pool
from dask_redisq.secret import find_secret
from dask_redisq.serving import serves
from dask_redisq.settings import setting

__all__ = ["compute_graph", "submit_detached"]


def plan_job(
    graph: Mapping[Key, Any], keys: Any, annotations: Mapping[str, Any], kwargs: dict[str, Any]
) -> Plan:
    """Return the plan for a graph, with what annotations and keywords say of its tasks."""
    plan = plan_graph(graph, keys, setting("order", kwargs.get("order")))
    if not setting("allow-disk-shuffle", kwargs.get("allow_disk_shuffle")):
        refuse_disk_shuffle(plan.keys)
    plan.restricted = restrictions(
        annotations,
        plan.keys,
        kwargs.get("workers"),
        others=bool(kwargs.get("allow_other_workers")),
    )
    plan.limits = limits(annotations, plan.keys, setting("timeout", kwargs.get("timeout")))
    return plan


def compute_graph(pool: Pool, names: Keys, dsk: Any, keys: Any, kwargs: dict[str, Any]) -> Any:
    """Do what `Queue.get` promises."""
    if serves(pool.url, names):
        # A task waits for tasks of its own queue: with one slot for ever, and with more as soon
        # as as many tasks do so. It holds a slot, so it may as well do the work.
        return get_sync(dsk, keys)
    check_keywords(kwargs)
    graph, keys, annotations, kwargs = read_graph(dsk, keys, dask.get_annotations(), kwargs)
    options = job_options(kwargs)
    cache = kwargs.get("cache", dask.config.get("cache", None))
    if cache is not None:
        graph = with_cached(graph, cache)
    callbacks = active_callbacks(kwargs.get("callbacks"))
    rerun = _rerun(graph) if _reruns(kwargs) else None
    if not callbacks:
        plan = plan_job(graph, keys, annotations, kwargs)
        return assemble(keys, _values(pool, names, plan, options, rerun=rerun), plan.local)
    looks = looks_at_values(callbacks, setting("callback-values"))
    with Observer(callbacks, graph, keys, looks=looks) as observer:
        observer.start()
        plan = plan_job(observer.dsk, keys, annotations, kwargs)
        plan.every = looks
        observer.begin(plan)
        values = _values(pool, names, plan, options, observer, rerun)
        return assemble(keys, values, plan.local, observer.here)


def _reruns(kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a task that raises is to run again in this process, as Dask's setting says."""
    given = kwargs.get("rerun_exceptions_locally")
    return bool(dask.config.get("rerun_exceptions_locally", False) if given is None else given)


def _rerun(graph: Mapping[Key, Any]) -> Callable[[Key], Any]:
    """Return a function that computes a task of `graph`, with all that it needs, right here."""
    return lambda key: get_sync(graph, key, callbacks=())


def _values(
    pool: Pool,
    names: Keys,
    plan: Plan,
    options: JobOptions,
    observer: Observer | None = None,
    rerun: Callable[[Key], Any] | None = None,
) -> dict[Key, Any]:
    """Return requested key -> value: of the constants, and of what workers compute."""
    values: dict[Key, Any] = dict(plan.constants)
    if len(plan):
        signer = find_secret(pool.url)  # refused before anything is sent
        with pool.lend() as link:
            job = Job(link, names, plan, options, signer, observer=observer, rerun=rerun)
            values.update(job.compute())
    return values


def submit_detached(
    pool: Pool,
    names: Keys,
    collections: tuple[Any, ...],
    result_ttl: float,
    dask_options: dict[str, Any],
    kwargs: dict[str, Any],
) -> tuple[str, Answer]:
    """Submit a job that does not need its client; return its id, and the way to its answer.

    Parameters
    ----------
    pool : Pool
        The server.
    names : Keys
        The queue.
    collections : tuple
        As `dask.compute` takes them.
    result_ttl : float
        Seconds for which the results are kept after the end of the job.
    dask_options : dict
        ``traverse`` and ``optimize_graph`` of `dask.compute`.
    kwargs : dict
        Keywords of `Queue.get`.

    Raises
    ------
    TypeError
        If nothing of `collections` is a Dask collection.
    ValueError
        If `result_ttl` is below a second.
    """
    if not result_ttl >= 1:
        raise ValueError(f"result_ttl is at least 1 s, not {result_ttl!r}")
    traverse = dask_options["traverse"]
    found, repack = unpack_collections(*collections, traverse=traverse)
    if not found:
        raise TypeError("there is nothing to compute: none of the arguments is a Dask collection")
    check_keywords(kwargs)
    signer = find_secret(pool.url)
    ambient = dask.get_annotations()
    submitted: list[tuple[str, Answer]] = []

    def submit(dsk: Any, keys: Any, **_: Any) -> list[None]:
        graph, keys, annotations, words = read_graph(dsk, keys, ambient, kwargs)
        options = replace(job_options(words), result_ttl=float(result_ttl))
        plan = plan_job(graph, keys, annotations, words)
        single = len(collections) == 1
        answer = Answer(keys, plan.outputs, plan.constants, plan.local, repack, single)
        with pool.lend() as link:
            job = Job(link, names, plan, options, signer, answer)
            job.detach()
        submitted.append((job.id, answer))
        return [None] * len(keys)

    # Dask makes the graph: it knows best how, in each of its versions.
    dask.compute(
        *found, traverse=False, optimize_graph=dask_options["optimize_graph"], scheduler=submit
    )
    return submitted[0]
