"""A worker as one asks for it: what it was told is checked and put together, then it runs."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from dask.system import cpu_count

from dask_redisq.amounts import seconds, whole
from dask_redisq.annotations import check_resources
from dask_redisq.crew import WorkerOptions
from dask_redisq.errors import NoServerError
from dask_redisq.host import check_posix
from dask_redisq.inherit import inherited
from dask_redisq.keys import Keys, check_queue_name
from dask_redisq.passwords import redact
from dask_redisq.retirement import Terms
from dask_redisq.secret import environment_for, find_secret
from dask_redisq.settings import setting
from dask_redisq.url import check_url

__all__ = ["plan_worker", "run_worker"]

_NO_SERVER = "no Redis server to work for: pass url=, or set redisq.url (DASK_REDISQ__URL)"


class _Queue(Protocol):
    """What a worker is to know of a queue."""

    name: str

    @property
    def url(self) -> str:
        """Where it is."""


def run_worker(
    *queues: str | _Queue,
    url: str | None = None,
    nworkers: int | None = None,
    name: str | None = None,
    tags: Iterable[str] = (),
    resources: Mapping[str, float] | None = None,
    preload: Iterable[str] = (),
    death_timeout: float = 60.0,
    max_tasks: int | None = None,
    max_idle: float | None = None,
    burst: bool = False,
    lifetime: float | None = None,
    lifetime_stagger: float = 0.0,
    linger: float = 0.0,
) -> None:
    """Be a worker until it ends: doRedis's ``redisWorker``, and ``dask-redisq-worker`` in Python.

    This process looks after the slots, which see its directory, modules and ``redisq`` settings.
    SIGTERM and Ctrl-C drain it; in a thread that is not the main one it hears no signals.

    Parameters
    ----------
    *queues, url
        What to serve, names or `Queue` objects of one server, in order of priority, and where; by
        default as the settings say.
    nworkers, name, tags, resources, preload, death_timeout
        As for the command: the slots, what they carry and share, and what they import first.
    max_tasks, max_idle, burst, lifetime, lifetime_stagger, linger
        When it ends; see `dask_redisq.retirement.Terms`.

    Raises
    ------
    RedisqError, ValueError
        No server is named, or answers; there is no secret and one is needed; a wrong option; what
        is to be preloaded raises.
    OSError
        On Windows.

    Examples
    --------
    >>> import dask_redisq as redisq
    >>> redisq.run_worker("jobs", url="redis://server:6379/0", burst=True)  # doctest: +SKIP
    """
    from dask_redisq.supervisor import Supervisor

    names, urls = _names_and_urls(queues, url)
    if len(urls) > 1:
        where = " and ".join(sorted(map(redact, urls)))
        raise ValueError(f"a worker serves queues of one server, not of {where}")
    url = urls.pop() if urls else setting("url")
    if not url:
        raise NoServerError(_NO_SERVER)
    options = plan_worker(
        names, url, Terms(max_tasks, max_idle, burst, lifetime, lifetime_stagger, linger),
        nworkers=nworkers, name=name, tags=_words(tags), preload=_words(preload),
        resources=check_resources(resources or {}),
        death_timeout=death_timeout, environment=inherited(url),
    )  # fmt: skip
    Supervisor(options).run()


def _names_and_urls(queues: Iterable[Any], url: str | None) -> tuple[list[str], set[str]]:
    """Return what queues are called, and where those are of which more than a name was given."""
    names, urls = [], {url} if url else set()
    for queue in queues:
        known = isinstance(getattr(queue, "keys", None), Keys)
        names.append(queue.name if known else queue)
        if known:
            urls.add(queue.url)
    return names, urls


def _words(given: Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def plan_worker(
    queues: Iterable[str],
    url: str,
    terms: Terms,
    *,
    nworkers: int | None,
    name: str | None,
    tags: Iterable[str],
    resources: dict[str, float],
    preload: Iterable[str],
    death_timeout: float,
    alive_expiry: float | None = None,
    secret_file: str | None = None,
    allow_unsigned: bool = False,
    environment: Mapping[str, str] | None = None,
) -> WorkerOptions:
    """Check what a worker is to do, and fill in what was left out; see `run_worker`.

    Raises
    ------
    ValueError, SecretError, OSError
        If it cannot be done, or not on this host; the message says why.
    """
    check_posix()
    host = socket.gethostname()
    # One that comes twice counts once.
    names = tuple(dict.fromkeys(map(check_queue_name, tuple(queues) or (setting("queue"),))))
    url = check_url(url)
    options = WorkerOptions(
        queues=names,
        url=url,
        nworkers=cpu_count() if nworkers is None else whole("nworkers", nworkers, 1),
        name=name or f"{host}-{os.getpid()}",
        tags=tuple(dict.fromkeys((host, *tags))),
        resources=resources,
        preload=tuple(preload),
        alive_expiry=float(setting("alive-expiry", alive_expiry)),
        death_timeout=seconds("death_timeout", death_timeout),
        environment={**(environment or {}), **environment_for(secret_file)},
        terms=_checked(terms),
    )
    find_secret(url, secret_file, allow_unsigned=allow_unsigned)
    return options


def _checked(terms: Terms) -> Terms:
    if terms.max_tasks is not None:
        whole("max_tasks", terms.max_tasks, 1)
    spans: dict[str, Any] = {
        "max_idle": terms.max_idle,
        "lifetime": terms.lifetime,
        "lifetime_stagger": terms.lifetime_stagger,
        "linger": terms.linger,
    }
    for name, value in spans.items():
        if value is not None:
            seconds(name, value)
    if terms.lifetime is None and terms.lifetime_stagger:
        raise ValueError("lifetime_stagger is for a lifetime, and there is none")
    return terms
