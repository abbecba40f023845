"""Calls that need nothing of each other, as the plan of a job: of loops, executors. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dask.delayed import Delayed
from dask.typing import Key

from dask_redisq.annotations import limits, restrictions
from dask_redisq.codec import KeptValue
from dask_redisq.options import JobOptions, job_options
from dask_redisq.plan import Plan
from dask_redisq.settings import setting

__all__ = ["Call", "CallPlan", "call_settings", "plan_calls"]


class Call(NamedTuple):
    """One call of a function."""

    func: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}


@dataclass
class CallPlan(Plan):
    """A plan whose `nodes` are calls, each of them an output: no task reads of another."""

    def _packed(self, task: int) -> Any:
        call: Any = self.nodes[task]
        func, args, kwargs = call
        where: tuple[int, ...] = ()
        if kwargs:
            args = (*args, *kwargs.values())
        if task in self.outer:
            numbers = [_number(arg, self.outer[task]) for arg in args]
            where = tuple([i for i, number in enumerate(numbers) if number < 0])
            args = tuple([n if n < 0 else arg for n, arg in zip(numbers, args, strict=True)])
        return (func, args, where, tuple(kwargs)) if kwargs else (func, args, where)


def _part(arg: Any) -> Any:
    """Return the value of a kept job that an argument stands for; None if it is a plain one."""
    kind = type(arg)
    if issubclass(kind, Delayed):
        arg = arg.__dask_graph__().get(arg.key)
        kind = type(arg)
    elif not getattr(kind, "__dask_future__", False):
        return None
    if not getattr(kind, "__dask_future__", False):
        raise TypeError(
            "a delayed value among the arguments is to be persisted first, or scattered: "
            "who calls is not told of its graph"
        )
    return arg


def _number(arg: Any, outer: tuple[KeptValue, ...]) -> int:
    """Return the number of the kept value that an argument is, 0 if it is none."""
    part = _part(arg)
    if part is None:
        return 0
    return next(kept.number for kept in outer if (kept.job, kept.task) == (part.job, part.task))


def call_settings(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], JobOptions]:
    """Return keywords for `plan_calls`, settings where there are none, and the options of the jobs.

    Settings are read once: what is drawn later is of the same loop, or executor.
    """
    words = {**kwargs, "timeout": setting("timeout", kwargs.get("timeout"))}
    return words, job_options(words)


def plan_calls(
    calls: Sequence[Call], names: Sequence[Key], kwargs: Mapping[str, Any] | None = None
) -> CallPlan:
    """Return the plan of some calls.

    Parameters
    ----------
    calls : sequence of Call
        One task each. Arguments may be parts of kept jobs: workers read their values.
    names : sequence of hashable
        What errors call them, each another name.
    kwargs : Mapping, optional
        ``timeout``, ``workers``, ``allow_other_workers`` and ``resources``, for all of them.

    Examples
    --------
    >>> plan = plan_calls([Call(pow, (5, 2)), Call(round, (2.34,), {"ndigits": 1})], ["a", "b"])
    >>> plan.block(0).tasks[1]
    (<built-in function round>, (2.34, 1), (), ('ndigits',))
    """
    keys, n = list(names), len(calls)
    given = kwargs or {}
    nodes: list[Any] = list(calls)
    parts, outer = _kept(calls)
    return CallPlan(
        keys=keys,
        nodes=nodes,
        inputs=[()] * n,
        users=[[]] * n,
        outputs=dict(zip(keys, range(n), strict=True)),
        constants={},
        local={},
        names={},
        data={},
        restricted=restrictions({}, keys, given),
        limits=limits({}, keys, given.get("timeout")),
        parts=parts,
        outer=outer,
    )


def _kept(calls: Sequence[Call]) -> tuple[dict[int, Any], dict[int, tuple[KeptValue, ...]]]:
    """Return the parts among the arguments by number, and for each call those that it reads."""
    numbers: dict[tuple[str, int], int] = {}
    parts: dict[int, Any] = {}
    outer: dict[int, tuple[KeptValue, ...]] = {}
    for task, (_, args, kwargs) in enumerate(calls):
        given = (*args, *kwargs.values()) if kwargs else args
        found = [part for arg in given if (part := _part(arg)) is not None]
        if not found:
            continue
        read = {}
        for part in found:
            number = numbers.setdefault((part.job, part.task), -1 - len(numbers))
            parts[number] = part
            read[number] = KeptValue(number, part.job, part.task)
        outer[task] = tuple(read.values())
    return parts, outer
