"""How long tasks take, and how many of them fill a lease. No I/O."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["EDGES", "Pace"]

#: Seconds of work that a lease should hold: at least these, and so many round trips, at most those.
BUDGET, TRIPS, MOST_BUDGET = 0.05, 100, 0.25
#: Tasks of a kind are short if they take less than this share of the budget.
SHORT = 0.2
#: Edges that one call to the server may count.
EDGES = 2000
#: Work worth less than a round trip is not divided further, in seconds.
WORTH = 0.001
#: Jobs of which it is known how long their tasks take: those that were worked for last. More than
#: the windows of a loop: they take turns, and with one too many each is forgotten before its next.
JOBS = 32


class Pace:
    """How long tasks take, by kind and by lease, and calls to the server: from it come chunk sizes.

    `want` is for tasks of the job that was worked for last; see step.lua. A queue serves its jobs
    in turns, so others are known, too: else each lease would hold a single task as soon as there
    are two jobs (3 ms a task were measured, for 0.05).

    A call takes 0.3 ms beside the server, 1 ms where it has to be woken, and 20 ms over a slow
    line: a lease that lasts a hundred times as long loses 1 % to it.

    Attributes
    ----------
    budget : float
        Seconds of work that a lease should hold.
    trip : float
        Seconds that calls to the server took lately.
    """

    def __init__(self, budget: float = BUDGET) -> None:
        self.budget = self._least = budget
        self.trip = 0.0
        self.job = ""
        self._kinds: dict[str, float] = {}
        #: Job -> seconds and edges of a leased task with what follows from it; the last one last.
        self._jobs: OrderedDict[str, tuple[float, float]] = OrderedDict()
        #: What `others` returned, for that job and budget: it takes 5 us, as do loops in each step.
        self._others: tuple[str, float, list[str | int]] | None = None

    def __repr__(self) -> str:
        return f"<Pace {len(self._kinds)} kinds, want {self.want}>"

    def called(self, seconds: float) -> None:
        """Note how long a call to the server took."""
        self.trip += 0.2 * (seconds - self.trip)
        self.budget = max(self._least, min(TRIPS * self.trip, MOST_BUDGET))

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
            self.job, self._others = job, None
        unit = seconds / tasks
        before = self._jobs.pop(job, None)
        if before is not None:
            unit = before[0] + 0.5 * (unit - before[0])
        self._jobs[job] = unit, max(1.0, edges / tasks)
        if len(self._jobs) > JOBS:
            self._jobs.popitem(last=False)

    def surprised(self) -> None:
        """Ask for one task next: its kind is not known."""
        self._jobs.pop(self.job, None)
        self._others = None

    def _fitting(self, job: str) -> tuple[int, int]:
        """Return how many tasks of a job fill the budget, and one report; and are worth a trip."""
        if job not in self._jobs:
            return 1, 1
        unit, edges = self._jobs[job]
        unit = max(unit, 1e-6)
        most = min(self.budget / unit, EDGES / edges)
        return max(1, round(most)), max(1, int(WORTH / unit))

    @property
    def want(self) -> int:
        """How many tasks fill the budget, and what one call may report."""
        return self._fitting(self.job)[0]

    def bounds(self) -> tuple[int, int]:
        """Return `want`, and how many tasks are worth a round trip."""
        return self._fitting(self.job)

    def others(self) -> list[str | int]:
        """Return job, want and floor, of each further job that is known."""
        if self._others is None or self._others[:2] != (self.job, self.budget):
            others = [
                x for job in self._jobs if job != self.job for x in (job, *self._fitting(job))
            ]
            self._others = self.job, self.budget, others
        return self._others[2]
