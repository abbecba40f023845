"""What the tasks wrote of themselves: which ran, when, in which process."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.storm.schedule import ALIVE_EXPIRY, FT_INTERVAL
from benchmarks.storm.tasks import RECORD

#: Nanoseconds for which a job may not be rebuilt yet after the server is back: it may stand still
#: meanwhile, and nobody reads the job.
DOUBT = int((2 * ALIVE_EXPIRY + ALIVE_EXPIRY + FT_INTERVAL + 1) * 1e9)


class Run(NamedTuple):
    """One run of a task."""

    serial: int
    task: int
    ns: int
    pid: int

    @property
    def name(self) -> tuple[int, int]:
        """Which task it was of."""
        return self.serial, self.task


def runs_of(folder: Path, pid: int) -> list[Run]:
    """Return the runs in one process so far, in order."""
    try:
        data = (folder / str(pid)).read_bytes()
    except FileNotFoundError:
        return []
    whole = len(data) - len(data) % RECORD.size  # it may just be written
    return [Run(serial, task, ns, pid) for serial, task, ns in RECORD.iter_unpack(data[:whole])]


def all_runs(folder: Path) -> list[Run]:
    """Return all runs, in the order of time."""
    found = [run for file in folder.iterdir() for run in runs_of(folder, int(file.name))]
    return sorted(found, key=lambda run: run.ns)


@dataclass(frozen=True)
class Hit:
    """A slot that was hit, and what it held then.

    Parameters
    ----------
    kind
        The fault.
    ns
        When, by `time.monotonic_ns`.
    pid
        The slot's process.
    begun
        Tasks of its lease that had begun, with what followed from them there.
    waiting
        How many tasks of its lease had not begun.
    running
        The task that ran.
    until
        The end of what it was hit by, if that took some time.
    """

    kind: str
    ns: int
    pid: int
    begun: frozenset[tuple[int, int]] = frozenset()
    waiting: int = 0
    running: tuple[int, int] | None = None
    until: int = 0

    @property
    def leased(self) -> int:
        """How many tasks it held; more than these cannot run once more for this hit."""
        return len(self.begun) + self.waiting


@dataclass
class Repeats:
    """Runs beyond one per task.

    Attributes
    ----------
    extra
        How many.
    bound
        How many tasks were leased by what was hit.
    anew
        Runs of impure jobs after the server was back: what is made again is made again whole,
        as `pure=False` promises. Not among the others.
    strange
        Pairs of runs of one task of which no hit is the cause.
    """

    extra: int
    bound: int
    anew: int = 0
    strange: list[tuple[Run, Run]] = field(default_factory=list)


@dataclass(frozen=True)
class Outage:
    """A time in which the server was away, from its death to its first answer.

    Parameters
    ----------
    killed, back
        By `time.monotonic_ns`.
    """

    killed: int
    back: int

    def holds(self, ns: int) -> bool:
        """Tell whether jobs were not all rebuilt by then: what ran is refused by the rebuild."""
        return self.killed <= ns <= self.back + DOUBT

    def parts(self, before: Run, run: Run) -> bool:
        """Tell whether the server came back between two runs."""
        return before.ns <= self.back <= run.ns


def find_repeats(
    runs: Iterable[Run],
    hits: Iterable[Hit],
    outages: Collection[Outage] = (),
    impure: Collection[int] = (),
) -> Repeats:
    """Count the runs beyond one per task, and look for the hit that caused each.

    Parameters
    ----------
    runs, hits, outages
        What happened.
    impure
        Serial numbers of the jobs whose tasks were said to give something else each time.
    """
    hits = list(hits)
    by_pid: dict[int, list[Hit]] = defaultdict(list)
    for hit in hits:
        by_pid[hit.pid].append(hit)
    last: dict[tuple[int, int], Run] = {}
    repeats = Repeats(0, sum(hit.leased for hit in hits))
    for run in runs:
        before = last.get(run.name)
        last[run.name] = run
        if before is None:
            continue
        if run.serial in impure and any(outage.parts(before, run) for outage in outages):
            repeats.anew += 1
            continue
        repeats.extra += 1
        # Either the first runner was hit after it began, or the second one held the task when
        # it was frozen, and began it late.
        first = any(
            before.ns <= max(hit.ns, hit.until) and hit.ns <= run.ns for hit in by_pid[before.pid]
        )
        second = any(hit.ns <= run.ns for hit in by_pid[run.pid])
        if not (first or second or any(outage.holds(before.ns) for outage in outages)):
            repeats.strange.append((before, run))
    return repeats


def recoveries(runs: Iterable[Run], hits: Iterable[Hit]) -> list[tuple[float, Hit]]:
    """Return, for each task that ran when its slot was hit, the seconds until it ran again.

    Nothing is told of one that did not: it was done after all, or its job's client was killed.
    """
    starts: dict[tuple[int, int], list[int]] = defaultdict(list)
    for run in runs:
        starts[run.name].append(run.ns)
    found = []
    for hit in hits:
        later = [ns for ns in starts[hit.running] if ns > hit.ns] if hit.running else []
        if later:
            found.append(((min(later) - hit.ns) / 1e9, hit))
    return sorted(found, key=lambda pair: pair[0], reverse=True)
