"""What annotations and keywords say of tasks: where, how long, how often, how urgent. No I/O.

Source: section 1.3 of Dask's contract. An annotation goes before a keyword of the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from dask.typing import Key

from dask_redisq.amounts import is_number, seconds, whole
from dask_redisq.seeding import check_seed

__all__ = [
    "RESOURCE",
    "SOFT",
    "check_priority",
    "check_resources",
    "check_retries",
    "limits",
    "may_run",
    "priorities",
    "restrictions",
    "seeds",
]

#: How a need begins among the tags of a restriction: ``resource:GPU=1``.
RESOURCE = "resource:"
#: Among the tags: others may run the task as well, after `redisq.locality-wait`.
SOFT = "soft:"
#: Three tenths are a little more than 0.3.
ROUND = 1 + 1e-9


def restrictions(
    annotations: Mapping[str, Any], keys: list[Key], kwargs: Mapping[str, Any]
) -> dict[int, tuple[str, ...]]:
    """Return task -> where it may run: the tags of which its slot must carry one, and its needs.

    With `SOFT` among the tags they say where it is to run rather than elsewhere.

    Parameters
    ----------
    annotations : Mapping
        ``workers``, ``allow_other_workers`` and ``resources`` by key, as `dask.annotate` gives
        them.
    keys : list
        The key of each task.
    kwargs : Mapping
        The same for all tasks of the job. Workers are names, hosts or tags.

    Raises
    ------
    ValueError
        For resources that are no mapping of names to numbers above 0, workers that are no text, or
        an empty one.

    Examples
    --------
    >>> restrictions({"workers": {"x": ["lab", "attic"]}}, ["x", "y"], {"resources": {"GPU": 1}})
    {0: ('attic', 'lab', 'resource:GPU=1'), 1: ('resource:GPU=1',)}
    """
    by_key = annotations.get("workers") or {}
    free = annotations.get("allow_other_workers") or {}
    needs = annotations.get("resources") or {}
    workers, others = kwargs.get("workers"), bool(kwargs.get("allow_other_workers"))
    resources = kwargs.get("resources")
    found: dict[int, tuple[str, ...]] = {}
    if not by_key and workers is None and not needs and not resources:
        return found
    for task, key in enumerate(keys):
        tags = by_key.get(key, workers)
        wanted = _sorted_tags(tags, key) if tags or isinstance(tags, str) else ()
        if wanted and free.get(key, others):
            wanted = (SOFT, *wanted)
        wanted += _needs(needs.get(key, resources), key)
        if wanted:
            found[task] = wanted
    return found


def _sorted_tags(tags: Any, key: Key) -> tuple[str, ...]:
    found = {tags} if isinstance(tags, str) else set(tags) if isinstance(tags, Iterable) else {tags}
    if not all(isinstance(tag, str) and tag for tag in found):
        raise ValueError(f"workers of task {key!r} are names, hosts or tags, not {tags!r}")
    return tuple(sorted(found))


def _needs(resources: Any, key: Key) -> tuple[str, ...]:
    if not resources:
        return ()
    checked = check_resources(resources, f" of task {key!r}")
    return tuple(f"{RESOURCE}{name}={amount:.17g}" for name, amount in sorted(checked.items()))


def check_resources(given: Any, whose: str = "") -> dict[str, float]:
    """Return resources, name -> amount; anything but numbers above 0 is a ValueError.

    >>> check_resources({"GPU": 1})
    {'GPU': 1.0}
    """
    try:
        found = {str(name): float(amount) for name, amount in dict(given).items()}
    except (TypeError, ValueError, OverflowError):
        found = {"": 0.0}
    if any(not name or "=" in name or not 0 < x < float("inf") for name, x in found.items()):
        raise ValueError(f"resources{whose} are names with numbers above 0, not {given!r}")
    return found


def may_run(wanted: Iterable[str], tags: Iterable[str], resources: Mapping[str, float]) -> bool:
    """Tell whether slots with these tags, of a worker with these resources, may run a task.

    >>> may_run(("lab", "resource:GPU=1"), ("lab",), {"GPU": 2})
    True
    """
    plain = [tag for tag in wanted if not tag.startswith(RESOURCE)]
    if plain and SOFT not in plain and set(plain).isdisjoint(tags):
        return False
    needs = [need.removeprefix(RESOURCE) for need in wanted if need.startswith(RESOURCE)]
    amounts = [need.rpartition("=") for need in needs]
    return all(resources.get(name, 0) * ROUND >= float(amount) for name, _, amount in amounts)


def priorities(annotations: Mapping[str, Any]) -> dict[Key, float]:
    """Return key -> priority, of the tasks that are annotated; higher ones run first."""
    given: Mapping[Key, Any] = annotations.get("priority") or {}
    return {key: check_priority(value, f" of task {key!r}") for key, value in given.items()}


def check_priority(given: Any, whose: str = "") -> float:
    """Return a priority; what is no number is a TypeError."""
    if not isinstance(given, Real) or not is_number(given):
        raise TypeError(f"the priority{whose} is a number, not {given!r}")
    return float(given)


def seeds(
    annotations: Mapping[str, Any],
    keys: list[Key],
    seed: int | None,
    numbers: Callable[[], Mapping[int, int]],
) -> dict[int, tuple[int, int]]:
    """Return task -> the seed that it was given, and its number; for tasks that have one.

    See `dask_redisq.seeding` for what is made of them.

    Parameters
    ----------
    annotations : Mapping
        ``seed`` by key.
    keys : list
        The key of each task.
    seed : int or None
        For tasks that are not annotated.
    numbers : callable
        Gives the number of each task; asked if there is a seed.

    Raises
    ------
    ValueError
        For a seed that is no whole number from 0 on.
    """
    by_key = annotations.get("seed") or {}
    if not by_key and seed is None:
        return {}
    number, found = numbers(), {}
    for task, key in enumerate(keys):
        given = by_key.get(key, seed)
        if given is not None:
            found[task] = (check_seed(given, f" of task {key!r}"), number[task])
    return found


def limits(
    annotations: Mapping[str, Any], keys: list[Key], timeout: Any = None
) -> dict[int, tuple[float, int]]:
    """Return task -> its timeout in seconds (0: none) and its retries (-1: its job's).

    Parameters
    ----------
    annotations : Mapping
        ``timeout`` and ``retries`` by key, as `dask.annotate` gives them.
    keys : list
        The key of each task.
    timeout : float, optional
        For tasks that are not annotated.

    Raises
    ------
    ValueError
        For a timeout that is no number of milliseconds, or retries that are no number from 0 on.
    """
    default = 0.0 if timeout is None else check_timeout(timeout)
    timeouts = annotations.get("timeout") or {}
    retries = annotations.get("retries") or {}
    if not default and not timeouts and not retries:
        return {}
    found = {}
    for task, key in enumerate(keys):
        own = timeouts.get(key)
        most = default if own is None else check_timeout(own, f" of task {key!r}")
        again = retries.get(key)
        tries = -1 if again is None else check_retries(again, f" of task {key!r}")
        if most or tries >= 0:
            found[task] = (most, tries)
    return found


def check_timeout(given: Any, whose: str = "") -> float:
    """Return a timeout in seconds; anything but a millisecond or more is a ValueError."""
    # A slot's page counts in milliseconds, where 0 is for no limit.
    return seconds(f"the timeout{whose}", given, 0.001)


def check_retries(given: Any, whose: str = "") -> int:
    """Return a number of retries; anything but a whole number from 0 on is a ValueError."""
    if isinstance(given, bool) or not isinstance(given, Integral) or given < 0:
        raise ValueError(f"retries{whose} is how often it may run again, from 0, not {given!r}")
    return whole(f"retries{whose}", given, 0)
