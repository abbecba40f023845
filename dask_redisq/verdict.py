"""Why a job ended without its answer, as the exception that its client raises. No I/O."""

from __future__ import annotations

import signal
import textwrap
from collections.abc import Callable, Sequence

from dask.typing import Key
from dask.utils import format_bytes

from dask_redisq.codec import unpack
from dask_redisq.errors import (
    JobCancelled,
    JobFailed,
    JobLost,
    RedisqError,
    TaskNotSerializable,
    TaskTimeout,
    WorkerDied,
)
from dask_redisq.remote_error import unpack_error
from dask_redisq.trust import ERROR, Seal

__all__ = [
    "as_exception",
    "culprit",
    "how_it_ended",
    "is_dropped",
    "what_failed",
    "why_gone",
]


#: By its number, the same on all workers: a client on Windows knows it by no name.
_SIGKILL = 9


def as_exception(reason: bytes, job: str, keys: Sequence[Key], seal: Seal) -> BaseException:
    """Return the exception for the reason that a script stored (lua/lib/ending.lua).

    Parameters
    ----------
    reason : bytes
        msgpack of kind, task, payload and slot.
    job : str
        The job's id.
    keys : sequence of hashable
        The graph key of each task.
    seal : Seal
        What checks the one payload that is a pickle.

    Raises
    ------
    BadSignature
        If that is not from who has our secret.
    """
    try:
        return _opened(reason, job, keys, seal)
    except RedisqError:  # refused, or the names are on a server that is away
        raise
    except Exception as why:  # what is no msgpack, and msgpack of anything: each fails its own way
        error = JobFailed(
            f"job {job} has ended, and the reason that the server has for that cannot be read "
            f"({type(why).__name__}: {why}): a key of the queue was changed by hand, or somebody "
            "else writes to the server"
        )
        error.__cause__ = why
        return error


def _opened(reason: bytes, job: str, keys: Sequence[Key], seal: Seal) -> BaseException:
    kind, payload, (first, last), tries = _read(reason, seal)
    name = ""
    if first >= 0:
        last = min(last, len(keys) - 1) if last > first else last
        name = repr(keys[first])
        name = name if last <= first else f"(one of {name} to {keys[last]!r})"
    error = _KINDS[kind.decode()](job, name, payload)
    if tries and tries[0] > 1:
        error.add_note(f"dask-redisq: task {name} failed {tries[0]} times, and has no retries left")
    return error


def what_failed(reason: bytes) -> tuple[str, int | None]:
    """Return of which kind a reason is, and its task, None if it is of no task, or unreadable."""
    try:
        kind, task, *_ = unpack(reason)
        return kind.decode(), int(task) if task >= 0 else None
    except Exception:  # as for `as_exception`, which tells it
        return "", None


def culprit(reason: bytes, seal: Seal) -> int | None:
    """Return the number of the task that is to blame; None if there is none, or one of several."""
    try:
        _, _, (first, last), _ = _read(reason, seal)
        return first if 0 <= first == last else None
    except Exception:  # as for `as_exception`, which tells it
        return None


def _read(reason: bytes, seal: Seal) -> tuple[bytes, bytes, tuple[int, int], list[int]]:
    """Return kind, payload, the first and the last task that may be to blame, and tries."""
    kind, task, payload, _slot, *tries = unpack(reason)
    unread: tuple[int, ...] = ()
    if kind == b"raised":
        # A reason that somebody forged may hold anything, and none of it may get past the seal. So
        # it comes first: before a number of a task that is none.
        signed = payload if isinstance(payload, bytes) else b""
        payload = bytes(seal.open(ERROR, b"", max(task, 0), signed))
        unread = tuple(unpack(payload)[2:])  # see pack_error
    elif kind == b"died":
        unread = _killed_as_read(payload)
    first, last = unread or (task, task)
    return kind, payload, (first, last), tries


def _killed_as_read(payload: bytes) -> tuple[int, ...]:
    """Return which tasks were read at all of some deaths, in one piece: not what ran is to blame.

    A death tells one task, if tasks were told apart as they were read; see `loading`.
    """
    read = [tuple(unpack(record)[5:]) for record in unpack(payload)]
    if not read or not all(len(tasks) == 2 and tasks[0] >= 0 for tasks in read):
        return ()
    return min(reversed(read), key=lambda tasks: tasks[1] - tasks[0])


def why_gone(tomb: bytes, job: str, queue: str) -> BaseException:
    """Return the exception for a job that is not there, by the word that it left.

    Parameters
    ----------
    tomb : bytes
        What `lua/lib/tomb.lua` left; empty if there is nothing.
    job, queue : str
        Which job.
    """
    told = "the server lost it, or its results expired after result_ttl"
    if tomb:
        try:
            state, reason = unpack(tomb)
            kind, _, payload, *_ = unpack(reason) if state == b"cancelled" else (state, -1, b"")
            # No other kind is left of a job: what a task raised, which is a pickle, least of all.
            if kind in (b"cancelled", b"client"):
                return _KINDS[kind.decode()](job, "", payload)
            told = _TOMBS[kind]
        except Exception as why:  # as for `as_exception`
            told = (
                f"the word that it left cannot be read ({type(why).__name__}), so a key of the "
                "queue was changed by hand, or somebody else writes to the server"
            )
    return JobLost(f"job {job} of queue {queue!r} is gone: {told}. Submit it again")


def is_dropped(state: str, reason: bytes) -> bool:
    """Tell whether a job is gone though nobody wanted that: its client may submit it again.

    Parameters
    ----------
    state : str
        As the job has it; empty when it is not there, `reason` is its tomb then.
    reason : bytes
        As `as_exception` takes it.
    """
    if state == "":
        if not reason:
            return True
        try:
            word, reason = unpack(reason)
            state = word.decode()
        except Exception:  # as for `as_exception`: nobody knows that nobody wanted it
            return False
    return (state, what_failed(reason)[0]) in {("cancelled", "client"), ("failed", "damaged")}


def how_it_ended(code: int) -> str:
    """Say how a process ended, by the code that `subprocess` gives.

    >>> how_it_ended(-9)
    'signal SIGKILL'
    """
    if code >= 0:
        return f"exit code {code}"
    if code == -_SIGKILL:
        return "signal SIGKILL"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # one without a name
        return f"signal {-code}"


def _raised(_job: str, name: str, payload: bytes) -> BaseException:
    return unpack_error(payload, name)


def _unpicklable(_job: str, name: str, payload: bytes) -> BaseException:
    worker, why = (text.decode(errors="replace") for text in unpack(payload))
    return TaskNotSerializable(f"the result of task {name} cannot leave its worker {worker}: {why}")


def _died(_job: str, name: str, payload: bytes) -> BaseException:
    deaths = [unpack(record) for record in unpack(payload)]
    told = "; ".join(
        f"on {worker.decode()} by {how_it_ended(code)} {doing.decode()}, "
        f"after a peak of {format_bytes(peak)}"
        for worker, code, peak, _, doing, *_ in deaths
    )
    killed = any(code == -_SIGKILL for _, code, *_ in deaths)
    return WorkerDied(
        f"task {name} was in hand at {len(deaths)} deaths of its process, as many as "
        f"allowed_failures: {told}. A task that crashes Python or runs out of memory does this"
        + (": SIGKILL is what the kernel's out-of-memory killer sends" if killed else "")
        + _last_lines(deaths[-1][0], deaths[-1][3])
    )


def _last_lines(worker: bytes, lines: bytes) -> str:
    if not lines:
        return ""
    text = textwrap.indent(lines.decode(errors="replace"), "    ")
    return f".\nThe last that it printed on {worker.decode()}:\n{text}"


def _timeout(_job: str, name: str, payload: bytes) -> BaseException:
    worker, limit, peak, lines = unpack(payload)
    return TaskTimeout(
        f"task {name} ran longer than its timeout of {limit:g} s on worker {worker.decode()}, and "
        f"its process was killed by {how_it_ended(-_SIGKILL)}, after a peak of "
        f"{format_bytes(peak)}. Raise the timeout, or give it retries" + _last_lines(worker, lines)
    )


def _unseen(_job: str, name: str, payload: bytes) -> BaseException:
    return JobFailed(
        f"the value of task {name} was gone from the server before it could count, "
        f"{payload.decode()} times. Does the server evict keys, or is it out of memory?"
    )


def _damaged(job: str, _name: str, _payload: bytes) -> BaseException:
    return JobFailed(
        f"job {job} cannot be repaired: part of what it is made of is gone from the server. Was a "
        "key of the queue deleted by hand, or evicted? Submit again"
    )


def _cancelled(job: str, _name: str, payload: bytes) -> BaseException:
    return JobCancelled(f"job {job} was cancelled: {payload.decode() or 'no reason given'}")


def _client(job: str, _name: str, _payload: bytes) -> BaseException:
    return JobCancelled(
        f"job {job} was cancelled: nothing was heard of this client for redisq.client-lease seconds"
    )


#: What a tomb tells of a job that was not cancelled.
_TOMBS = {
    b"expired": "its results were kept for its result_ttl, and that is over",
    b"forgotten": "its results were given up by forget()",
}
_KINDS: dict[str, Callable[[str, str, bytes], BaseException]] = {
    "raised": _raised,
    "unpicklable": _unpicklable,
    "died": _died,
    "timeout": _timeout,
    "unseen": _unseen,
    "damaged": _damaged,
    "cancelled": _cancelled,
    "client": _client,
}
