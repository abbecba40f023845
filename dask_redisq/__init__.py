"""dask-redisq: a Dask scheduler without a scheduler.

``dask.compute(x, scheduler=redisq.get)`` sends the graph to Redis, where a few Lua scripts
deal it out to anonymous workers (``dask-redisq-worker``) on any number of hosts.
"""

from typing import TYPE_CHECKING, Any

from dask_redisq import on_import as _on_import  # noqa: F401 - for what it does
from dask_redisq import policies
from dask_redisq._defaults import __version__
from dask_redisq.errors import (
    BadSignature,
    BadURL,
    JobCancelled,
    JobFailed,
    JobLost,
    LockLost,
    NoServerError,
    NoWorkersError,
    PreloadFailed,
    RedisqError,
    SecretError,
    ServerFull,
    ServerRefused,
    ServerUnavailable,
    TaskNotSerializable,
    TaskTimeout,
    ValueTooLarge,
    WorkerDied,
)
from dask_redisq.scheduler import get

if TYPE_CHECKING:
    from dask_redisq.enabled import enable
    from dask_redisq.executor import Executor
    from dask_redisq.future import Future
    from dask_redisq.local import LocalCluster, start_local_workers
    from dask_redisq.lock import Lock, Semaphore
    from dask_redisq.own_keys import get_redis
    from dask_redisq.persist import Part, futures_of
    from dask_redisq.queue import Queue
    from dask_redisq.tags import get_tag, set_tag
    from dask_redisq.waiting import as_completed, wait
    from dask_redisq.worker import run_worker
else:
    #: Public name -> its module, which is imported when the name is first asked for. A slot asks
    #: for none of them, and took 1.10 s of a processor to import all, where it takes 0.90 now.
    _MODULES = {
        "enable": "enabled",
        "Executor": "executor",
        "Future": "future",
        "LocalCluster": "local",
        "start_local_workers": "local",
        "Lock": "lock",
        "Semaphore": "lock",
        "get_redis": "own_keys",
        "Part": "persist",
        "futures_of": "persist",
        "Queue": "queue",
        "get_tag": "tags",
        "set_tag": "tags",
        "as_completed": "waiting",
        "wait": "waiting",
        "run_worker": "worker",
    }

    def __getattr__(name: str) -> Any:
        """Import what has a public name (PEP 562)."""
        from importlib import import_module

        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return found

    def __dir__() -> list[str]:
        """Return the public names, asked for or not."""
        return __all__


__all__ = [
    # compute
    "get",
    "enable",
    "Queue",
    "Future",
    "Part",
    "futures_of",
    "as_completed",
    "wait",
    # other front doors
    "Executor",
    # between tasks
    "Lock",
    "Semaphore",
    # in a task
    "get_redis",
    "get_tag",
    "set_tag",
    # which slot gets which task
    "policies",
    # on this machine
    "LocalCluster",
    "start_local_workers",
    "run_worker",
    # what can go wrong
    "RedisqError",
    "BadSignature",
    "BadURL",
    "JobCancelled",
    "JobFailed",
    "JobLost",
    "LockLost",
    "NoServerError",
    "NoWorkersError",
    "PreloadFailed",
    "SecretError",
    "ServerFull",
    "ServerRefused",
    "ServerUnavailable",
    "TaskNotSerializable",
    "TaskTimeout",
    "ValueTooLarge",
    "WorkerDied",
    "__version__",
]
