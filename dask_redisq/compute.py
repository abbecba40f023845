"""From what Dask passes to the answer: plan, job, values; there and then, or detached."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import dask
from dask._task_spec import DataNode, Task
from dask.base import unpack_collections
from dask.core import flatten
from dask.delayed import Delayed
from dask.local import get_sync
from dask.typing import Key

from dask_redisq import client_lease
from dask_redisq.annotations import limits, priorities, restrictions, seeds
from dask_redisq.answer import Answer, assemble
from dask_redisq.callbacks import Observer, active_callbacks, looks_at_values
from dask_redisq.codec import LARGE
from dask_redisq.dask_input import read_graph, with_cached
from dask_redisq.garbage import collector_paused
from dask_redisq.graph import plan_graph
from dask_redisq.job import Job
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.numbering import number_tasks
from dask_redisq.options import (
    JobOptions,
    check_keywords,
    clamped,
    job_options,
    refuse_waiting_keywords,
)
from dask_redisq.part_names import enter_parts, find_part, living_parts
from dask_redisq.persist import KeptJob, Part, Scattered, fetch_parts, wait_for_parts
from dask_redisq.plan import Plan
from dask_redisq.pool import Pool
from dask_redisq.secret import find_secret
from dask_redisq.serving import in_slot, job_in_hand, stand_in
from dask_redisq.settings import setting
from dask_redisq.sizes import bytes_of
from dask_redisq.task import give, itself
from dask_redisq.unshared import share_or_refuse

__all__ = ["Submitted", "compute_graph", "persist_graphs", "scatter", "submit"]


def plan_job(
    graph: Mapping[Key, Any],
    keys: Any,
    annotations: Mapping[str, Any],
    kwargs: dict[str, Any],
    kept: Callable[[Key], Part | None],
    *,
    finalize_here: bool = True,
    held: Mapping[Key, Part] | None = None,
) -> Plan:
    """Return the plan for a graph, with what annotations and keywords say of its tasks."""
    order = setting("order", kwargs.get("order"))
    urgent = priorities(annotations)
    with collector_paused():
        plan = plan_graph(
            graph,
            keys,
            order,
            urgent,
            finalize_here=finalize_here,
            kept=kept,
            held=held,
        )
    one_disk = setting("allow-disk-shuffle", kwargs.get("allow_disk_shuffle"))
    share_or_refuse(plan, one_disk=one_disk, copies=setting("allow-memory-store"))
    plan.restricted = restrictions(annotations, plan.keys, kwargs)
    if urgent:
        plan.priorities = {task: urgent[k] for task, k in enumerate(plan.keys) if k in urgent}
    seed = kwargs.get("seed")
    plan.seeds = seeds(annotations, plan.keys, seed, lambda: number_tasks(plan, keys))
    plan.limits = limits(annotations, plan.keys, setting("timeout", kwargs.get("timeout")))
    return plan


def compute_graph(pool: Pool, names: Keys, dsk: Any, keys: Any, kwargs: dict[str, Any]) -> Any:
    """Do what `Queue.get` promises."""
    if not in_slot():  # asked first: the URL of no server may start one
        return _compute(pool, names, dsk, keys, kwargs)
    with stand_in(pool.url, names) as free:
        if not free:
            return _in_place(pool, names, dsk, keys)
        return _compute(pool, names, dsk, keys, kwargs)


def _in_place(pool: Pool, names: Keys, dsk: Any, keys: Any) -> Any:
    """Compute in this slot, which would wait otherwise; persisted values are read."""
    graph, keys, _, _ = read_graph(dsk, keys, {}, {})
    return get_sync(_with_parts(pool, names, graph, keys), keys)


def _with_parts(pool: Pool, names: Keys, graph: Mapping[Key, Any], keys: Any) -> Mapping[Key, Any]:
    """Return a graph with the persisted values that `keys` need, read, as constants."""
    plan = plan_graph(graph, keys, finalize_here=False, kept=find_part(pool, names))
    parts = {name: plan.parts[n] for name, n in plan.names.items() if n < 0} | plan.fetched
    if parts:
        with pool.lend() as link:
            values = fetch_parts(parts, link)
        graph = dict(graph) | {key: DataNode(key, value) for key, value in values.items()}
    return graph


def _compute(pool: Pool, names: Keys, dsk: Any, keys: Any, kwargs: dict[str, Any]) -> Any:
    check_keywords(kwargs)
    client_lease.look()
    graph, keys, annotations, kwargs = read_graph(dsk, keys, dask.get_annotations(), kwargs)
    options = job_options(kwargs)
    if in_slot():
        options = replace(options, parent=job_in_hand(pool.url, names))
    cache = kwargs.get("cache", dask.config.get("cache", None))
    if cache is not None:
        graph = with_cached(graph, cache)
    callbacks = active_callbacks(kwargs.get("callbacks"))
    rerun = _rerun(pool, names, graph) if _reruns(kwargs) else None
    kept = find_part(pool, names)
    if not callbacks:
        plan = plan_job(graph, keys, annotations, kwargs, kept)
        options = _as_urgent(options, plan, kwargs)
        return assemble(keys, _values(pool, names, plan, options, rerun=rerun), plan.local)
    looks = looks_at_values(callbacks, setting("callback-values"))
    with Observer(callbacks, graph, keys, looks=looks) as observer:
        observer.start()
        plan = plan_job(observer.dsk, keys, annotations, kwargs, kept)
        plan.every = looks
        options = _as_urgent(options, plan, kwargs)
        observer.begin(plan)
        values = _values(pool, names, plan, options, observer, rerun)
        return assemble(keys, values, plan.local, observer.here)


def _as_urgent(options: JobOptions, plan: Plan, kwargs: Mapping[str, Any]) -> JobOptions:
    """Give a job whose tasks are all annotated their least priority, unless a keyword does."""
    if not plan.urgency or kwargs.get("priority"):
        return options
    return replace(options, priority=clamped(options.priority + plan.urgency))


def _reruns(kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a task that raises is to run again in this process, as Dask's setting says."""
    given = kwargs.get("rerun_exceptions_locally")
    return bool(dask.config.get("rerun_exceptions_locally", False) if given is None else given)


def _rerun(pool: Pool, names: Keys, graph: Mapping[Key, Any]) -> Callable[[Key], Any]:
    """Return a function that computes a task of `graph`, with all that it needs, right here."""
    return lambda key: get_sync(_with_parts(pool, names, graph, key), key, callbacks=())


def _values(
    pool: Pool,
    names: Keys,
    plan: Plan,
    options: JobOptions,
    observer: Observer | None = None,
    rerun: Callable[[Key], Any] | None = None,
) -> dict[Key, Any]:
    """Return requested key -> value: of the constants, and of what workers compute."""
    values: dict[Key, Any] = plan.constants | _fetched(pool, plan, observer)
    if len(plan):
        signer = find_secret(pool.url)  # refused before anything is sent
        with pool.lend(names) as link:
            wait_for_parts(plan, link, names, options)
            job = Job(link, names, plan, options, signer, observer=observer, rerun=rerun)
            values.update(job.compute())
    return values


def _fetched(pool: Pool, plan: Plan, observer: Observer | None) -> dict[Key, Any]:
    """Return requested key -> value, of what is persisted; show an observer what it wants."""
    parts = plan.fetched if observer is None else plan.fetched | observer.wanted(plan)
    found: dict[Key, Any] = {}
    if parts:
        with pool.lend() as link:
            found = fetch_parts(parts, link)
    if observer is not None:
        observer.read(found)
    return {key: found[key] for key in plan.fetched}


class Submitted(NamedTuple):
    """A job that was submitted and left.

    Attributes
    ----------
    job : str
        Its id.
    kept : KeptJob, optional
        What holds it, if it is not detached.
    answer : Answer
        The way from its outputs to what was asked for.
    again : callable
        Submits it once more, and returns the new id and what holds that; it holds the graph.
    """

    job: str
    kept: KeptJob | None
    answer: Answer
    again: Callable[[], tuple[str, Any]]


def submit(
    pool: Pool,
    names: Keys,
    collections: tuple[Any, ...],
    result_ttl: float | None,
    dask_options: dict[str, Any],
    kwargs: dict[str, Any],
) -> Submitted:
    """Submit a job, and do not wait for it.

    Parameters
    ----------
    pool : Pool
        The server.
    names : Keys
        The queue.
    collections : tuple
        As `dask.compute` takes them.
    result_ttl : float or None
        Seconds for which the results are kept after the end of the job, which does not need this
        client then; None: they are kept as long as this client holds them.
    dask_options : dict
        ``traverse`` and ``optimize_graph`` of `dask.compute`.
    kwargs : dict
        Keywords of `Queue.get`.

    Raises
    ------
    TypeError
        If nothing of `collections` is a Dask collection.
    """
    traverse = dask_options["traverse"]
    found, repack = unpack_collections(*collections, traverse=traverse)
    if not found:
        raise TypeError("there is nothing to compute: none of the arguments is a Dask collection")
    sender = _Sender(pool, names, kwargs)
    submitted: list[Submitted] = []

    def schedule(dsk: Any, keys: Any, **_: Any) -> list[None]:
        plan, keys, options = sender.plan(dsk, keys)
        options = replace(options, result_ttl=result_ttl or 0.0)
        plan.kept = result_ttl is None
        with pool.lend(names) as link:
            constants = plan.constants | fetch_parts(plan.fetched, link)
            one = len(collections) == 1
            answer = Answer(keys, plan.outputs, constants, plan.local, repack, one)
            sent = sender.send(link, plan, options, answer)
            submitted.append(Submitted(*sent, answer, sender.again(plan, options)))
        return [None] * len(keys)

    # Dask makes the graph: it knows best how, in each of its versions.
    dask.compute(
        *found, traverse=False, optimize_graph=dask_options["optimize_graph"], scheduler=schedule
    )
    return submitted[0]


def persist_graphs(
    pool: Pool,
    names: Keys,
    collections: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    optimize_graph: bool,
) -> list[Any]:
    """Do what `Queue.persist` promises for a list of collections."""
    sender = _Sender(pool, names, kwargs)

    def schedule(dsk: Any, given: Any, **_: Any) -> list[Any]:
        plan, keys, options = sender.plan(dsk, given, persists=True)
        wanted = list(flatten(keys))
        plan.kept = True
        parts: dict[Key, Any] = {**plan.constants, **plan.fetched}
        if len(plan):
            with pool.lend(names) as link:
                kept = sender.send(link, plan, options)[1]
            parts |= {key: Part(kept, key, task) for key, task in plan.outputs.items()}
        # A shuffle that was rewritten has other keys, and both may be asked for.
        both = dict(zip(flatten(given), (parts[key] for key in wanted), strict=True)) | parts
        enter_parts(pool, names, {k: p for k, p in both.items() if isinstance(p, Part)})
        return [parts[key] for key in wanted]

    # Dask makes the graph, and the collections of what is given for their keys.
    done = dask.persist(
        *collections, traverse=False, optimize_graph=optimize_graph, scheduler=schedule
    )
    return list(done)


def scatter(pool: Pool, names: Keys, thing: Any, kwargs: dict[str, Any]) -> Delayed:
    """Do what `Queue.scatter` promises.

    A task that returns what it is given: the value has a graph, to be made again of, as any other.
    What is large is its own value: it would go to the server a second time, from a slot, and take
    the room for it twice.
    """
    sender = _Sender(pool, names, kwargs)
    key = f"scatter-{secrets.token_hex(16)}"
    size = bytes_of(thing)
    if size > LARGE and not isinstance(thing, Iterator):  # which is read as a list
        node = Task(key, give, DataNode(None, thing), size)
    else:
        node = Task(key, itself, DataNode(None, thing))
    plan, _, options = sender.plan({key: node}, [key])
    plan.kept = True
    with pool.lend(names) as link:
        part = Part(sender.send(link, plan, options)[1], key, plan.outputs[key])
    enter_parts(pool, names, {key: part})
    return Scattered(part)


class _Sender:
    """Submits jobs that nobody waits for here."""

    def __init__(self, pool: Pool, names: Keys, kwargs: dict[str, Any]) -> None:
        check_keywords(kwargs)
        refuse_waiting_keywords(kwargs)
        self.pool = pool
        self.names = names
        self.kwargs = kwargs
        self.ambient = dask.get_annotations()
        self.signer = find_secret(pool.url)
        client_lease.look()

    def plan(self, dsk: Any, keys: Any, *, persists: bool = False) -> tuple[Plan, Any, JobOptions]:
        """Return the plan for what Dask passes, its keys, and the settings of the job.

        What is to be persisted under a name that still lives is that value, as in distributed.
        """
        graph, keys, annotations, words = read_graph(dsk, keys, self.ambient, self.kwargs)
        kept = find_part(self.pool, self.names)
        held = living_parts(self.pool, self.names, flatten(keys)) if persists else None
        plan = plan_job(
            graph, keys, annotations, words, kept, finalize_here=not persists, held=held
        )
        return plan, keys, _as_urgent(job_options(words), plan, words)

    def again(self, plan: Plan, options: JobOptions) -> Callable[[], tuple[str, Any]]:
        """Return what submits a job once more."""

        def send() -> tuple[str, Any]:
            with self.pool.lend(self.names) as link:
                return self.send(link, plan, options)

        return send

    def send(
        self, link: Link, plan: Plan, options: JobOptions, answer: Answer | None = None
    ) -> tuple[str, Any]:
        """Submit a job; return its id, and what holds it if it is a kept one."""
        wait_for_parts(plan, link, self.names, options)
        job = Job(link, self.names, plan, options, self.signer, answer)
        job.detach()
        if not plan.kept:
            return job.id, None
        try:
            return job.id, KeptJob(self.pool, self.names, job.id, plan.keys, self.signer, options)
        except BaseException:  # nobody holds it
            job.abandon()
            raise
