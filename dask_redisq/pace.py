"""How long tasks take, and how many of them fill a lease. No I/O."""

from __future__ import annotations

__all__ = ["EDGES", "Pace"]

#: Seconds of work that a lease should hold: at least these, and so many round trips, at most those.
BUDGET, TRIPS, MOST_BUDGET = 0.05, 100, 0.25
#: Tasks of a kind are short if they take less than this share of the budget.
SHORT = 0.2
#: Edges that one call to the server may count.
EDGES = 2000
#: Work worth less than a round trip is not divided further, in seconds.
WORTH = 0.001


class Pace:
    """How long tasks take, by kind and by lease, and calls to the server: from it come chunk sizes.

    `want` is for tasks of the job it was measured on; see step.lua. A call takes 0.3 ms beside the
    server, 1 ms where it has to be woken, and 20 ms over a slow line: a lease that lasts a hundred
    times as long loses 1 % to it.

    Attributes
    ----------
    budget : float
        Seconds of work that a lease should hold.
    """

    def __init__(self, budget: float = BUDGET) -> None:
        self.budget = self._least = budget
        self._trip = 0.0
        self.job = ""
        self._kinds: dict[str, float] = {}
        self._unit: float | None = None
        self._edges = 1.0

    def __repr__(self) -> str:
        return f"<Pace {len(self._kinds)} kinds, want {self.want}>"

    def called(self, seconds: float) -> None:
        """Note how long a call to the server took."""
        self._trip += 0.2 * (seconds - self._trip)
        self.budget = max(self._least, min(TRIPS * self._trip, MOST_BUDGET))

    def know(self, kind: str) -> bool:
        """Tell whether a task of this kind ran here."""
        return kind in self._kinds

    def short(self, kind: str) -> bool:
        """Tell whether tasks of this kind are known to be short."""
        return self._kinds.get(kind, self.budget) < SHORT * self.budget

    def ran(self, kind: str, seconds: float) -> None:
        """Note how long one task took."""
        mean = self._kinds.get(kind)
        self._kinds[kind] = seconds if mean is None else mean + 0.2 * (seconds - mean)

    def leased(self, job: str, tasks: int, seconds: float, edges: int) -> None:
        """Note how long a lease of `tasks` tasks took, with what followed from them."""
        if job != self.job:
            self.job, self._unit = job, None
        unit = seconds / tasks
        self._unit = unit if self._unit is None else self._unit + 0.5 * (unit - self._unit)
        self._edges = max(1.0, edges / tasks)

    def surprised(self) -> None:
        """Ask for one task next: its kind is not known."""
        self._unit = None

    @property
    def want(self) -> int:
        """How many tasks fill the budget, and what one call may report."""
        if self._unit is None:
            return 1
        most = min(self.budget / max(self._unit, 1e-6), EDGES / self._edges)
        return max(1, round(most))

    @property
    def floor(self) -> int:
        """How many tasks are worth a round trip."""
        return 1 if self._unit is None else max(1, int(WORTH / max(self._unit, 1e-6)))
