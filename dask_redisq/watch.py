"""What a supervisor makes of its slots' pages: tasks that ran too long, tasks held up. No I/O.

Time is an argument, in seconds of `time.monotonic`, which all processes of a host share.
"""

from __future__ import annotations

from typing import NamedTuple

from dask_redisq.pace import BUDGET
from dask_redisq.page import Cursor, Limit

__all__ = ["Overdue", "due_at", "find_overdue", "hostages_since"]


class Overdue(NamedTuple):
    """A task that ran longer than it may.

    Attributes
    ----------
    task, seq : int
        The task, and the lease in which it runs.
    seconds : float
        Its limit.
    """

    task: int
    seq: int
    seconds: float


def due_at(cursor: Cursor, limit: Limit) -> float | None:
    """Return when the running task will have taken too long; None if it has no limit."""
    if not cursor.runs or limit.most_ms <= 0:
        return None
    return (limit.since_ms + limit.most_ms) / 1000


def find_overdue(cursor: Cursor, limit: Limit, now: float) -> Overdue | None:
    """Return the running task if it has taken too long."""
    due = due_at(cursor, limit)
    if due is None or now < due:
        return None
    return Overdue(cursor.begun, cursor.seq, limit.most_ms / 1000)


def hostages_since(cursor: Cursor) -> float | None:
    """Return since when the tasks behind the running one wait too long; None without any.

    The slot itself looks at the time between two tasks, and hands the rest back. It cannot while
    one runs.
    """
    if not cursor.runs or cursor.position + 1 >= cursor.tasks:
        return None
    return cursor.since_ms / 1000 + 2 * BUDGET
