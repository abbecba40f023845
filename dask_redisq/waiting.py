"""Wait for futures: for some or all of them, or for each as it comes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future as CallFuture
from contextlib import ExitStack
from typing import Any, NamedTuple

from dask_redisq.amounts import deadline_of
from dask_redisq.future import Future
from dask_redisq.keys import Keys
from dask_redisq.page import Wait
from dask_redisq.persist import KeptJob, Part
from dask_redisq.pool import Pool
from dask_redisq.serving import stand_in

__all__ = ["Waited", "as_completed", "wait"]

#: Seconds between two looks: at first, and at most.
SOON, LATER = 0.002, 0.1


class Waited(NamedTuple):
    """What `wait` returns.

    Attributes
    ----------
    done, not_done : set
        Of the futures that were given.
    """

    done: set[Any]
    not_done: set[Any]


def as_completed(futures: Iterable[Any], timeout: float | None = None) -> Iterator[Any]:
    """Yield futures as they are done, with a result or without.

    Parameters
    ----------
    futures : iterable of Future or Part
        Of `Queue.compute` or an `Executor`, or `futures_of` persisted collections; mixed, if need
        be.
    timeout : float, optional
        Seconds, over all of them; by default for ever.

    Raises
    ------
    TimeoutError
        If some are not done in time.
    ValueError
        If `timeout` is no number.
    TypeError
        For what is no future.

    Examples
    --------
    >>> import dask_redisq as redisq
    >>> list(redisq.as_completed([]))
    []
    """
    deadline = deadline_of(timeout, time.monotonic())
    left, pause = list(dict.fromkeys(futures)), SOON
    with ExitStack() as stack:
        for pool, keys in _places(left):
            stack.enter_context(stand_in(pool.url, keys, Wait.FUTURES))
        yield from _as_completed(left, pause, deadline, timeout)


def _places(futures: Iterable[Any]) -> set[tuple[Pool, Keys]]:
    """Return the servers and queues that are waited for; calls of an `Executor` see to theirs."""
    found = set()
    for future in futures:
        if isinstance(future, Future | Part):
            found.add(future.where)
        elif not isinstance(future, CallFuture):
            raise TypeError(
                "as_completed and wait are for futures: of Queue.compute, of an Executor, or "
                f"redisq.futures_of(x) for a persisted x. {future!r} is none"
            )
    return found


def _as_completed(
    left: list[Any], pause: float, deadline: float | None, timeout: float | None
) -> Iterator[Any]:
    while left:
        done = _done(left)
        left = [future for future in left if future not in done]
        yield from done
        if not left:
            return
        if done:
            pause = SOON
            continue
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            raise TimeoutError(f"{len(left)} futures are not done after {timeout:g} s")
        time.sleep(pause if deadline is None else min(pause, deadline - now))
        pause = min(1.5 * pause, LATER)


def wait(
    futures: Iterable[Any], timeout: float | None = None, return_when: str = "ALL_COMPLETED"
) -> Waited:
    """Wait until futures are done.

    Parameters
    ----------
    futures : iterable of Future or Part
        As for `as_completed`.
    timeout : float, optional
        Seconds; what is not done then is in ``not_done``.
    return_when : {"ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"}
        As in `concurrent.futures`.

    Returns
    -------
    Waited
        ``(done, not_done)``.

    Raises
    ------
    ValueError
        For another `return_when`.

    Examples
    --------
    >>> import dask_redisq as redisq
    >>> redisq.wait([])
    Waited(done=set(), not_done=set())
    """
    if return_when not in ("ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"):
        raise ValueError(
            "return_when is 'ALL_COMPLETED', 'FIRST_COMPLETED' or 'FIRST_EXCEPTION', "
            f"not {return_when!r}"
        )
    whole, done = set(futures), set[Any]()
    try:
        for future in as_completed(whole, timeout):
            done.add(future)
            if return_when == "FIRST_COMPLETED":
                break
            if return_when == "FIRST_EXCEPTION" and _failed(future):
                break
    except TimeoutError:
        pass
    return Waited(done, whole - done)


def _failed(future: Any) -> bool:
    if isinstance(future, CallFuture) and future.cancelled():
        return False  # as in concurrent.futures
    return future.exception() is not None


def _done(futures: list[Any]) -> dict[Any, None]:
    """Return those that are done; parts of one job are looked at together."""
    found: dict[Any, None] = {}
    jobs: dict[str, tuple[KeptJob, dict[int, Part]]] = {}
    for future in futures:
        if isinstance(future, Part):
            jobs.setdefault(future.job, (future.kept, {}))[1][future.task] = future
        elif future.done():
            found[future] = None
    for kept, parts in jobs.values():
        found |= dict.fromkeys([parts[task] for task in kept.done(list(parts))])
    return found
