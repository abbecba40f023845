"""When a worker ends by itself: what it was told at its start, and how it was used. No I/O."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Activity", "Retirement", "Terms"]

#: Seconds between two questions whether there is work left.
ASK = 0.5


@dataclass(frozen=True)
class Terms:
    """How long a worker stays; by default until it is told to go.

    Attributes
    ----------
    max_tasks : int, optional
        How many tasks it runs, in all slots together, those that follow in a slot included. What
        the last of them compute on their own queue, and wait for, comes on top.
    max_idle : float, optional
        Seconds without a task in any slot after which it ends.
    burst : bool
        Whether it ends when no job of its queues is unfinished.
    lifetime : float, optional
        Seconds after which it ends.
    lifetime_stagger : float
        Each worker's lifetime is longer or shorter by up to these seconds, by chance: workers
        that were started together do not all leave together.
    linger : float
        Seconds for which its process stays after its last queue was removed.
    """

    max_tasks: int | None = None
    max_idle: float | None = None
    burst: bool = False
    lifetime: float | None = None
    lifetime_stagger: float = 0.0
    linger: float = 0.0


class Activity(NamedTuple):
    """What the slots of a worker do.

    Attributes
    ----------
    busy : bool
        Whether one holds tasks now.
    up : bool
        Whether one has ever called the server: until then there is no worker to be idle.
    leases : Mapping of str to int
        Slot -> how many leases it had.
    tasks_left : int, optional
        How many tasks they may still begin, if that is limited.
    """

    busy: bool
    up: bool
    leases: Mapping[str, int]
    tasks_left: int | None = None


class Retirement:
    """Says when one worker is to end.

    Parameters
    ----------
    terms : Terms
        How long it stays.
    now : float
        When it started; all times are those of one clock, in seconds.
    chance : callable, optional
        Returns a number from 0 to 1, as `random.random` does.
    """

    def __init__(
        self, terms: Terms, now: float, chance: Callable[[], float] = random.random
    ) -> None:
        self.terms = terms
        self._ends_at = math.inf
        if terms.lifetime is not None:
            shift = (2 * chance() - 1) * terms.lifetime_stagger
            self._ends_at = now + max(0.0, terms.lifetime + shift)
        self._idle_since: float | None = None
        self._leases: Mapping[str, int] = {}
        self._ask_at = now
        self._lingers_until = -math.inf

    def __repr__(self) -> str:
        return f"<Retirement by {self.terms}>"

    def reason(self, now: float, activity: Activity, has_work: Callable[[], bool]) -> str | None:
        """Return why the worker is to end now; None if it stays.

        `has_work` asks the server; it is called for a burst only, and not often.
        """
        terms = self.terms
        idle = self._idle_for(now, activity)
        if activity.tasks_left == 0:
            return f"it has begun its {terms.max_tasks} tasks"
        if now >= self._ends_at:
            return f"its lifetime of {terms.lifetime:g} s is over"
        if terms.max_idle is not None and idle is not None and idle >= terms.max_idle:
            return f"it had no task for {terms.max_idle:g} s"
        if terms.burst and not activity.busy and now >= self._ask_at:
            self._ask_at = now + ASK
            if not has_work():
                return "its queues are empty"
        return None

    def _idle_for(self, now: float, activity: Activity) -> float | None:
        """Return for how long no slot had a task; None if none is there yet."""
        # A lease may begin and end between two looks: it is seen by how many there were.
        before, self._leases = self._leases, activity.leases
        worked = any(count != before.get(slot, 0) for slot, count in activity.leases.items())
        if activity.busy or worked or (activity.up and self._idle_since is None):
            self._idle_since = now
        return None if self._idle_since is None else now - self._idle_since

    def queues_gone(self, now: float) -> None:
        """Note that the last queue was removed."""
        self._lingers_until = now + self.terms.linger

    def lingers(self, now: float) -> bool:
        """Tell whether the process stays, though it has nothing to do."""
        return now < self._lingers_until
