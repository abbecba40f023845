"""Run one world and tell how it went; and find the shortest record that still fails the same way."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError

from dask_redisq.errors import RedisqError
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from simulator.choices import Choices, Record
from simulator.server import Server
from simulator.story import tell
from simulator.world import World

__all__ = ["Outcome", "Sum", "run_world", "shrink"]

#: What the error of a world says that does not come to its end.
_STUCK = "bound to end"


@dataclass
class Outcome:
    """How a world went.

    Attributes
    ----------
    error : str
        What did not hold; empty if all was well.
    kind : str
        The same without names and numbers: two worlds that fail alike have the same.
    answers : int
        How many jobs gave their client the answer; the others were cancelled, failed of their
        own tasks, or lost their client.
    """

    seed: int
    jobs: int = 0
    answers: int = 0
    calls: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    error: str = ""
    record: Record = field(default_factory=list)
    story: str = ""

    @property
    def kind(self) -> str:
        """What went wrong, without names and numbers."""
        return re.sub(r"\b[0-9a-f]{4,}\b|\bw?\d+\b|\[.*\]|\{.*\}", "#", self.error)[:60]


@dataclass
class Sum:
    """What many worlds came to.

    Attributes
    ----------
    failed : list of tuple of int and str
        Seeds, and what did not hold.
    """

    jobs: int = 0
    answers: int = 0
    calls: int = 0
    worlds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[int, str]] = field(default_factory=list)
    seeds: tuple[int, int] = (10**9, 0)

    def add(self, outcome: Outcome) -> None:
        """Count one world."""
        self.jobs += outcome.jobs
        self.answers += outcome.answers
        self.calls += outcome.calls
        self.worlds += 1
        self.faults += outcome.faults
        self.seeds = min(self.seeds[0], outcome.seed), max(self.seeds[1], outcome.seed)
        if outcome.error:
            self.failed.append((outcome.seed, outcome.error))

    def plus(self, other: Sum) -> Sum:
        """Return both together."""
        return Sum(
            self.jobs + other.jobs,
            self.answers + other.answers,
            self.calls + other.calls,
            self.worlds + other.worlds,
            self.faults + other.faults,
            sorted(self.failed + other.failed),
            (min(self.seeds[0], other.seeds[0]), max(self.seeds[1], other.seeds[1])),
        )

    def line(self, seconds: float) -> str:
        """Return the sums in a line."""
        stuck = sum(_STUCK in error for _, error in self.failed)
        left = sum("keys are left" in error for _, error in self.failed)
        faults = ", ".join(f"{count} {name}" for name, count in self.faults.most_common())
        return (
            f"{self.jobs} jobs in {self.worlds} worlds (seeds {self.seeds[0]} to {self.seeds[1]}), "
            f"{self.answers} answered, {self.calls} scripts called, {self.faults.total()} faults "
            f"({faults}); {len(self.failed) - stuck - left} wrong, {stuck} stuck, {left} with keys "
            f"left; {seconds:.0f} s"
        )


def run_world(link: Link, seed: int, record: Record | None = None, **settings: Any) -> Outcome:
    """Run the world of a seed, or that of a record."""
    outcome = Outcome(seed)
    choices = Choices(seed, record)
    world: World | None = None
    try:
        world = World(Server(link, Keys("simulated")), choices, **settings)
        world.run()
    except (
        AssertionError,
        RedisError,
        RedisqError,
        ArithmeticError,
        LookupError,
        TypeError,
    ) as error:
        outcome.error = f"{type(error).__name__}: {error}"
    finally:
        if world is not None:
            world.close()
    if world is not None:
        outcome.jobs, outcome.calls, outcome.faults = len(world.clients), world.calls, world.faults
        outcome.answers = sum(client.outcome in ("answer", "detached") for client in world.clients)
        if outcome.error:
            outcome.story = tell(world)
    outcome.record = choices.record
    return outcome


def shrink(link: Link, failed: Outcome, seconds: float = 30.0, **settings: Any) -> Outcome:
    """Return a world that fails as `failed` did, with as few turns, faults and tasks as can be found."""
    best, deadline = failed, time.monotonic() + seconds
    again = True
    while again:
        again = False
        for record in _smaller(best.record):
            if time.monotonic() > deadline:
                return best
            tried = run_world(link, failed.seed, record, **settings)
            if (
                tried.error
                and tried.kind == failed.kind
                and _size(tried.record) < _size(best.record)
            ):
                best, again = tried, True
                break
    return best


def _size(record: Record) -> tuple[int, int, int]:
    return len(record), sum(map(len, record)), sum(map(sum, record))


def _smaller(record: Record) -> Iterator[Record]:
    """Yield records with something taken out, the boldest first."""
    turns = len(record) - 2
    size = max(1, turns // 2)
    while size:
        for first in range(1, turns + 1, size):
            yield [*record[:first], *record[min(first + size, turns + 1) :]]
        size //= 2
    for place in (0, len(record) - 1, *range(1, len(record) - 1)):
        chapter = record[place]
        for i in range(len(chapter)):
            if chapter[i]:
                yield [*record[:place], [*chapter[:i], 0, *chapter[i + 1 :]], *record[place + 1 :]]
        if chapter:
            yield [*record[:place], chapter[: len(chapter) // 2], *record[place + 1 :]]
