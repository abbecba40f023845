"""What a user may see go wrong, each with what to do about it.

Exceptions that a task raised are not here: they come back as their own type.
"""

from __future__ import annotations

__all__ = [
    "BadSignature",
    "BadURL",
    "JobCancelled",
    "JobFailed",
    "JobLost",
    "LockLost",
    "NoServerError",
    "NoWorkersError",
    "PreloadFailed",
    "RedisqError",
    "SecretError",
    "ServerFull",
    "ServerRefused",
    "ServerUnavailable",
    "TaskNotSerializable",
    "TaskTimeout",
    "ValueTooLarge",
    "WorkerDied",
]


class RedisqError(Exception):
    """Base of every error that dask-redisq itself raises."""


class NoServerError(RedisqError):
    """There is no Redis URL, and no server binary for a private one; or it could be of several."""


class BadURL(RedisqError, ValueError):
    """What was given as a server's URL is not one. It is a `ValueError` too."""


class PreloadFailed(RedisqError):
    """What a worker's slots import or run first raised, or they had no secret, all of them.

    It would be so again in each slot that is started, so the worker ends.
    """


class ServerUnavailable(RedisqError, ConnectionError):
    """The server of the URL does not answer, or refuses us.

    It is a `ConnectionError` too, so that code which retries on those works.
    """


class ServerRefused(ServerUnavailable):
    """The server is there, but a password or a certificate is wrong: waiting does not help."""


class LockLost(RedisqError):
    """A lock was not renewed for its whole expiry, so that somebody else may have had it meanwhile.

    What it guards may have been changed by both. Give it a longer ``expiry``, or let what it guards
    refuse a lower ``fence`` than it has seen.
    """


class ServerFull(RedisqError, MemoryError):
    """The server's memory is full (its ``maxmemory``), and it takes no more data.

    What finishes or removes a job still works, so it drains. Raise ``maxmemory``, submit less at a
    time, or return smaller parts.
    """


class SecretError(RedisqError):
    """Payloads cannot be signed as they must be: the message tells what to set.

    A secret is needed where others may reach the server too: see ``redisq.secret-file``.
    """


class BadSignature(RedisqError):
    """A task, a value or an error on the server was not signed by the secret of this side.

    It was not unpickled. Either client and workers have different secrets, or somebody else writes
    to the server. `Queue.stats` counts them as ``refused_payloads``.
    """


class NoWorkersError(RedisqError, TimeoutError):
    """No worker that may run the job's tasks appeared within ``no_workers_timeout``."""


class JobCancelled(RedisqError):
    """The job was cancelled, or its client's lease ran out, before it ended."""


class JobLost(RedisqError):
    """The job's keys are gone: its queue was removed, or the server lost its data."""


class JobFailed(RedisqError):
    """The engine found that the job cannot end: the message says what is missing."""


class WorkerDied(RedisqError):
    """A task was running each time when too many worker processes died.

    Only the task that was running when a slot died is charged. The message names the
    task, the workers, and the exit code or signal of each death; ``allowed_failures``
    is the number of deaths at which a task fails its job.
    """


class TaskNotSerializable(RedisqError, TypeError):
    """A task's arguments, its result or its exception cannot be pickled.

    It is a `TypeError` too, which is what `pickle` raises for most such objects.
    """


class TaskTimeout(RedisqError, TimeoutError):
    """A task ran longer than its ``timeout``, and the process that ran it was killed.

    The message names the task, the limit, the worker, how the process was ended, its peak of
    memory, and the last that it printed. With ``retries`` left the task runs again instead.
    """


class ValueTooLarge(RedisqError, ValueError):
    """A value is above the server's limit for one string (512 MB unless configured)."""
