"""The settings of one job: from keywords, then from the settings of the process."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import dask

from dask_redisq.amounts import number, whole
from dask_redisq.annotations import check_retries
from dask_redisq.serving import in_slot
from dask_redisq.settings import setting

__all__ = [
    "JobOptions",
    "check_keywords",
    "clamped",
    "job_options",
    "refuse_keywords",
    "refuse_waiting_keywords",
]

#: Keywords of `Queue.get`, in its own words and those of Dask's schedulers.
KEYWORDS = frozenset(
    """
    alive_expiry allow_disk_shuffle allow_other_workers allowed_failures cache callbacks chunk_size
    chunksize ft_interval get_task locality_wait no_workers_timeout num_workers order priority pure
    rerun_exceptions_locally resources retries retry_delay seed timeout workers
    """.split()  # noqa: SIM905 - a list of words
)
#: Keywords of other schedulers that mean nothing here: code that was written for them must work.
OTHERS = frozenset(
    """
    actors asynchronous direct dumps fifo_timeout flush func_dumps func_loads get_id initializer
    loads optimize_graph pack_exception pool raise_exception submit sync
    """.split()  # noqa: SIM905
)
#: Priorities of jobs are no higher, nor lower than its negative: see lua/lib/ready.lua.
MOST_PRIORITY = 4096.0
#: Seconds that the job of a task outlives it: it was killed, as its own job was cancelled, say.
NESTED_LEASE = 5.0
#: Those that loops and executors have, besides their own: of a job, and of each of its tasks.
OF_CALLS = KEYWORDS - set(
    """
    allow_disk_shuffle cache callbacks order rerun_exceptions_locally seed
    """.split()  # noqa: SIM905
)
#: Those of a client that waits.
OF_WAITING = ("cache", "callbacks", "rerun_exceptions_locally")
_told: set[str] = set()


def check_keywords(kwargs: Iterable[str]) -> None:
    """Warn of keywords that no scheduler knows, once each: a misspelt one has no effect."""
    for word in sorted(set(kwargs) - KEYWORDS - OTHERS - _told):
        _told.add(word)
        warnings.warn(
            f"dask-redisq does not know the keyword {word!r}, and ignores it", stacklevel=2
        )


def refuse_keywords(
    who: str, kwargs: Iterable[str], own: Callable[[], Iterable[str]], hint: str
) -> None:
    """Raise a TypeError for a keyword that loops and executors do not have.

    Dask calls `get`, with keywords of any scheduler. A loop is called by its user, who has misspelt
    a word: without it the result is another one.

    Parameters
    ----------
    who : str
        Who has no such keyword.
    kwargs : iterable of str
        What was given besides its own.
    own : callable
        Returns those.
    hint : str
        What else may be meant, if none is spelt alike.
    """
    for word in sorted(set(kwargs) - OF_CALLS):
        near = get_close_matches(word, sorted(OF_CALLS.union(own())), 1)
        meant = f"did you mean {near[0]!r}?" if near else hint
        raise TypeError(f"{who} has no keyword {word!r}: {meant}")


def refuse_waiting_keywords(kwargs: Mapping[str, Any]) -> None:
    """Raise a TypeError for what only a client that waits can do, unless it is not to be done."""
    for word in OF_WAITING:
        if kwargs.get(word) or (word == "cache" and kwargs.get(word) is not None):
            raise TypeError(
                f"{word} has no effect where nobody waits: it is for Queue.get, as in "
                "x.compute(scheduler=queue.get, ...)"
            )


@dataclass(frozen=True)
class JobOptions:
    """Settings of one job; the names are those of `redisq.yaml`."""

    chunk_size: int = 0
    priority: float = 0
    #: Slots that may work for it at a time; 0: all.
    num_workers: int = 0
    allowed_failures: int = 3
    retries: int = 0
    retry_delay: float = 0.0
    #: Whether a task that runs again gives the same value.
    pure: bool = True
    locality_wait: float = 0.1
    ft_interval: float = 5.0
    alive_expiry: float = 10.0
    client_lease: float = 60.0
    no_workers_timeout: float | None = None
    #: Lua that wishes which tasks a slot is given; empty: the default chooses.
    get_task: str = ""
    #: The job whose task waits for this one, if one does.
    parent: str = ""
    #: When the loop began of which the job is a part, in ms of the server's clock; 0: of none.
    since: int = 0
    #: Seconds for which the results of a detached job are kept; 0: it is not detached.
    result_ttl: float = 0.0


def job_options(kwargs: dict[str, Any]) -> JobOptions:
    """Return a job's options from keywords of `get`, then from the settings.

    Raises
    ------
    ValueError
        For a chunk size that is none, or an interval below its least value.
    """
    chunk = kwargs.get("chunk_size", kwargs.get("chunksize"))
    chunk = setting("chunk-size", chunk)
    if chunk is not None:
        chunk = whole("chunk_size, a number of tasks or -1 to spread them evenly,", chunk, -1)
        if chunk == 0:
            raise ValueError("chunk_size is a number of tasks, or -1 to spread them evenly, not 0")
    priority = number("priority", kwargs.get("priority") or 0)
    # A job of a task goes before other tasks: these would run in the stand-in, and wait as well.
    priority += in_slot()
    return JobOptions(
        chunk_size=chunk or 0,
        pure=bool(kwargs.get("pure", True)),
        priority=clamped(priority),
        num_workers=_num_workers(kwargs.get("num_workers")),
        allowed_failures=setting("allowed-failures", kwargs.get("allowed_failures")),
        retries=check_retries(setting("retries", kwargs.get("retries"))),
        retry_delay=setting("retry-delay", kwargs.get("retry_delay")),
        locality_wait=setting("locality-wait", kwargs.get("locality_wait")),
        ft_interval=setting("ft-interval", kwargs.get("ft_interval")),
        alive_expiry=setting("alive-expiry", kwargs.get("alive_expiry")),
        client_lease=_client_lease(),
        no_workers_timeout=setting("no-workers-timeout", kwargs.get("no_workers_timeout")),
        get_task=_policy(kwargs.get("get_task")),
    )


def _policy(given: Any) -> str:
    """Return the text of a policy, empty for none; whether it is Lua is for the server to say."""
    if given is not None and not isinstance(given, str):
        raise TypeError(f"get_task is text, the body of a function in Lua, not {given!r}")
    return given or ""


def clamped(priority: float) -> float:
    """Return the priority of a job, as far as they go."""
    return max(-MOST_PRIORITY, min(MOST_PRIORITY, priority))


def _num_workers(given: Any) -> int:
    """Return how many slots may work for a job, 0 for all: Dask's pool size, by that name."""
    if given is None:
        given = dask.config.get("num_workers", None)
    return 0 if given is None else whole("num_workers", given, 1)


def _client_lease() -> float:
    """Return how long a job outlives its client; in a task, which may be killed, not for long."""
    lease: float = setting("client-lease")
    return min(lease, NESTED_LEASE) if in_slot() else lease
