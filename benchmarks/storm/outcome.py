"""What a storm left: figures with their bars, and what to look at where one is missed."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.report import Figure
from benchmarks.storm.ledger import Job
from benchmarks.storm.runs import Hit, Repeats

#: Faults that a storm has to have, from so many minutes on.
LEAST_PER_MINUTE, LONG = 50, 5


@dataclass
class Outcome:
    """The result of one storm.

    Attributes
    ----------
    minutes, seed
        What was asked for.
    jobs
        Serial number -> what became of the job.
    hangs
        Jobs that had not ended in time after the last fault.
    faults
        How many of each kind.
    repeats
        Runs beyond one per task.
    recoveries
        Seconds until a task ran again that ran when its slot was hit, the slowest first.
    server_recoveries
        Seconds from when a killed server was back to the next start of a task.
    job_keys
        Keys of jobs that were left when all had ended.
    keys
        Keys that were left after `Queue.remove`.
    processes
        Processes that were left when all had ended.
    audit
        Jobs whose counts did not fit to their graphs, as monitors told.
    """

    minutes: float
    seed: int
    jobs: dict[int, Job] = field(default_factory=dict)
    hangs: list[Job] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    repeats: Repeats = field(default_factory=lambda: Repeats(0, 0))
    recoveries: list[tuple[float, Hit]] = field(default_factory=list)
    server_recoveries: list[float] = field(default_factory=list)
    job_keys: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    audit: list[str] = field(default_factory=list)

    def of(self, *states: str) -> list[Job]:
        """Return the jobs in these states."""
        return [job for job in self.jobs.values() if job.state in states]

    def figures(self) -> list[Figure]:
        """Return the figures, with the bars of those that have one."""
        repeats = self.repeats
        right, slowest = self.of("right"), self.recoveries[:1]
        kind = f"slowest recovery ({slowest[0][1].kind})" if slowest else "slowest recovery"
        rows: list[tuple[str, float, str, float | None]] = [
            ("minutes", self.minutes, "", None),
            ("seed", self.seed, "", None),
            ("jobs with the right answer", len(right), "", None),
            ("their tasks", sum(job.about["tasks"] for job in right), "", None),
            ("jobs whose client was killed", len(self.of("abandoned")), "", None),
            ("faults", self.faults.total(), "", None),
            ("wrong answers", len(self.of("wrong")), "", 0),
            ("jobs that failed", len(self.of("failed")), "", 0),
            ("hangs", len(self.hangs), "", 0),
            (
                "extra runs; bar: leased by what was hit",
                repeats.extra,
                "",
                repeats.bound,
            ),
            ("runs of impure jobs made anew after a restart", repeats.anew, "", None),
            ("extra runs without such a cause", len(repeats.strange), "", 0),
            (kind, slowest[0][0] if slowest else 0.0, "s", None),
            ("server back -> a task starts", max(self.server_recoveries, default=0.0), "s", None),
            ("keys of jobs left when all had ended", len(self.job_keys), "", 0),
            ("keys left after Queue.remove", len(self.keys), "", 0),
            ("processes left", len(self.processes), "", 0),
            ("jobs that an audit found damaged", len(self.audit), "", 0),
        ]
        figures = [Figure(*row) for row in rows]
        if self.minutes >= LONG:
            at = next(i for i, row in enumerate(rows) if row[0] == "faults")
            least = LEAST_PER_MINUTE * self.minutes
            figures[at] = Figure("faults", self.faults.total(), "", least, at_least=True)
        return figures

    @property
    def held(self) -> bool:
        """Whether no bar was missed."""
        return all(figure.met is not False for figure in self.figures())

    def troubles(self) -> list[str]:
        """Return a line for each thing that should not have happened."""
        jobs = [*self.of("wrong", "failed"), *self.hangs]
        return [
            *(f"job {job.about}: {job.state} {job.why}" for job in jobs),
            *(f"ran twice without a cause: {one} {other}" for one, other in self.repeats.strange),
            *(f"key left when all jobs had ended: {name}" for name in self.job_keys),
            *(f"key left after remove: {name}" for name in self.keys),
            *(f"process left: {words}" for words in self.processes),
            *(f"audit: {line}" for line in self.audit),
        ]

    def as_json(self) -> Mapping[str, Any]:
        """Return all of it in plain types."""
        return {
            "minutes": self.minutes,
            "seed": self.seed,
            "jobs": dict(Counter(job.state for job in self.jobs.values())),
            "tasks": sum(job.about["tasks"] for job in self.of("right")),
            "faults": dict(self.faults),
            "held": self.held,
            "recoveries": [(seconds, hit.kind) for seconds, hit in self.recoveries],
            "server_recoveries": self.server_recoveries,
            "troubles": self.troubles(),
        }
