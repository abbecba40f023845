"""What an executor sends: as many calls as keep slots busy for a moment, no more. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dask_redisq.calls import Call, CallPlan, plan_calls
from dask_redisq.errors import JobCancelled

__all__ = ["LEAST", "CallRoom", "Work", "plan_sound"]

#: Calls under way: at least these, and twice as many as there are slots; and at most.
LEAST, MOST = 4, 10_000
#: A job that took less has more calls next, one that took longer has fewer; seconds.
SOON, LATE = 0.2, 1.0


class CallRoom:
    """How many calls may be under way.

    Parameters
    ----------
    cap : int, optional
        Calls that run at a time, at most.

    Attributes
    ----------
    slots : int
        How many there are; 0 if that is not known.

    Examples
    --------
    >>> room = CallRoom()
    >>> room.free(sent=0), room.free(sent=2), room.free(sent=3)
    (4, 2, 0)
    >>> room.took(0.1)
    >>> room.most
    8
    """

    def __init__(self, cap: int | None = None) -> None:
        self.cap = cap
        self.slots = 0
        self._size = LEAST

    def __repr__(self) -> str:
        return f"<CallRoom for {self.most}>"

    def begin(self) -> None:
        """Forget how long calls took: the next may be of another kind."""
        self._size = LEAST

    def took(self, seconds: float) -> None:
        """Note how long a job of calls took."""
        if seconds < SOON:
            self._size = min(MOST, 2 * self._size)
        elif seconds > LATE:
            self._size = max(LEAST, self._size // 2)

    @property
    def most(self) -> int:
        """How many calls may be under way."""
        if self.cap is not None and self._is_capped():
            return self.cap
        return max(self._size, 2 * self.slots)

    def free(self, sent: int) -> int:
        """Return how many calls to send now; 0 while more than half of those `sent` are to come."""
        most = self.most
        return most - sent if self._is_capped() or 2 * sent <= most else 0

    def _is_capped(self) -> bool:
        # Without a slot as well: any number of them may come while what was sent waits.
        return self.cap is not None and (self.cap < self.slots or not self.slots)


class Work:
    """Calls under way: which job they are, once it is submitted, and why it is to be cancelled."""

    def __init__(self, calls: dict[int, Call]) -> None:
        self.calls = calls
        self.job: Any = None
        self.aborted: str | None = None

    def check(self) -> None:
        """Raise if they were aborted, while there is no job yet that could be cancelled."""
        if self.aborted is not None:
            raise JobCancelled(self.aborted)


def plan_sound(
    calls: dict[int, Call], words: Mapping[str, Any]
) -> tuple[CallPlan, dict[int, Exception]]:
    """Return the plan of those calls that can be planned, and why the others cannot be.

    Parameters
    ----------
    calls : dict of int to Call
        By their numbers.
    words : Mapping of str to object
        As of `plan_calls`.
    """
    failed: dict[int, Exception] = {}
    try:
        return plan_calls(list(calls.values()), list(calls), words), failed
    except Exception:
        sound: dict[int, Call] = {}
        for number, call in calls.items():
            try:
                plan_calls([call], [number], words)
            except Exception as error:
                failed[number] = error
            else:
                sound[number] = call
        return plan_calls(list(sound.values()), list(sound), words), failed
