"""From what Dask passes to the answer: plan, job, values; there and then, or detached."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dask
from dask.base import unpack_collections
from dask.local import get_sync
from dask.typing import Key

from dask_redisq.answer import Answer, assemble
from dask_redisq.dask_input import limits, plain_graph, refuse_disk_shuffle, restrictions
from dask_redisq.graph import Plan, plan_graph
from dask_redisq.job import Job
from dask_redisq.keys import Keys
from dask_redisq.options import job_options
from dask_redisq.pool import Pool
from dask_redisq.secret import find_secret
from dask_redisq.serving import serves
from dask_redisq.settings import setting

__all__ = ["compute_graph", "submit_detached"]


def plan_job(dsk: Any, keys: Any, kwargs: dict[str, Any]) -> tuple[Plan, Any]:
    """Return the plan for what Dask passes to a scheduler, and its keys as a list is wanted."""
    graph, keys, annotations = plain_graph(dsk, keys)
    plan = plan_graph(graph, keys, setting("order", kwargs.get("order")))
    refuse_disk_shuffle(plan.keys)
    plan.restricted = restrictions(
        annotations,
        plan.keys,
        kwargs.get("workers"),
        others=bool(kwargs.get("allow_other_workers")),
    )
    plan.limits = limits(annotations, plan.keys, setting("timeout", kwargs.get("timeout")))
    return plan, keys


def compute_graph(pool: Pool, names: Keys, dsk: Any, keys: Any, kwargs: dict[str, Any]) -> Any:
    """Do what `Queue.get` promises."""
    if serves(pool.url, names):
        # A task waits for tasks of its own queue: with one slot for ever, and with more as soon
        # as as many tasks do so. It holds a slot, so it may as well do the work.
        return get_sync(dsk, keys)
    options = job_options(kwargs)
    plan, keys = plan_job(dsk, keys, kwargs)
    values: dict[Key, Any] = dict(plan.constants)
    if len(plan):
        signer = find_secret(pool.url)  # refused before anything is sent
        with pool.lend() as link:
            values.update(Job(link, names, plan, options, signer).compute())
    return assemble(keys, values, plan.local)


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
    signer = find_secret(pool.url)
    options = replace(job_options(kwargs), result_ttl=float(result_ttl))
    submitted: list[tuple[str, Answer]] = []

    def submit(dsk: Any, keys: Any, **_: Any) -> list[None]:
        plan, keys = plan_job(dsk, keys, kwargs)
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
