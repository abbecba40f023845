"""dask-redisq: a Dask scheduler without a scheduler.

``dask.compute(x, scheduler=redisq.get)`` sends the graph to Redis, where a few Lua scripts
deal it out to anonymous workers (``dask-redisq-worker``) on any number of hosts.
"""

from dask_redisq import embedded as _embedded  # noqa: F401 - serves queues without a URL
from dask_redisq import policies
from dask_redisq._defaults import __version__
from dask_redisq.enabled import enable
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
from dask_redisq.executor import Executor
from dask_redisq.future import Future
from dask_redisq.local import LocalCluster, start_local_workers
from dask_redisq.lock import Lock, Semaphore
from dask_redisq.own_keys import get_redis
from dask_redisq.persist import Part, futures_of
from dask_redisq.queue import Queue
from dask_redisq.scheduler import get
from dask_redisq.tags import get_tag, set_tag
from dask_redisq.waiting import as_completed, wait
from dask_redisq.worker import run_worker

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

from dask.base import named_schedulers as _named_schedulers

_named_schedulers["redisq"] = get
