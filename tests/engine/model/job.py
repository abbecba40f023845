"""One job of the model, and what is held of it. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ANEW", "ONCE", "SOFT", "Job", "Lease"]


#: What is missing of a job: it was missed before a rebuild began, or since then.
ONCE, ANEW = 1, 2
#: A restriction that is a wish.
SOFT = "soft:"


@dataclass
class Lease:
    """What a slot holds under its call `seq`, and what was given back of it."""

    seq: int
    tasks: list[int]
    given: list[int] = field(default_factory=list)


@dataclass
class Job:
    """One job.

    Attributes
    ----------
    blocks : set of int
        The blocks that are there; each is one more input of its tasks.
    values : set of int
        Finished tasks whose value is kept, since somebody needs it.
    log : list of list of int
        Finished outputs, in the order in which they finished; `acked` entries have arrived.
    hard : dict of int to tuple of str
        Tags of which a slot has to carry one that runs the task; with `SOFT` among them any slot may,
        if none of those took one of them for `patience` ms.
    since : dict of str to int
        The ready sets of restrictions that hold something: since when, or when they were last served.
    asks : bool
        Whether it has a policy, which wishes what a slot is given of it.
    passed : dict of str to tuple
        The first task of a ready set, when wishes were last looked at, and since when it is that.
    frozen, frozen_at : str, float
        The rebuild that holds the job still, and since when.
    damaged : int
        Whether something is missing: `ONCE`, or `ANEW` since the rebuild began that is under way.
    generation : str
        The rebuild that wrote the log.
    buried : bool
        Whether its results were given up: what is left of it is removed.
    alone : set of int
        Tasks that may have run before.
    parked : set of int
        Tasks that miss an input: they are not ready when they come back.
    delayed : dict of int to int
        Failed tasks, and when each is ready again, in ms.
    """

    inputs: tuple[tuple[int, ...], ...]
    outputs: frozenset[int]
    block: int
    chunk: int = 0
    priority: int = 0
    retries: int = 0
    retry_delay: int = 0
    allowed: int = 3
    detached: bool = False
    hard: dict[int, tuple[str, ...]] = field(default_factory=dict)
    patience: int = 0
    asks: bool = False
    epoch: str = ""
    state: str = "running"
    frozen: str = ""
    frozen_at: float = 0
    damaged: int = 0
    generation: str = ""
    buried: bool = False
    sealed: bool = False
    error: tuple[str, int] = ("", -1)
    blocks: set[int] = field(default_factory=set)
    finished: set[int] = field(default_factory=set)
    values: set[int] = field(default_factory=set)
    ready: set[int] = field(default_factory=set)
    leases: dict[str, Lease] = field(default_factory=dict)
    since: dict[str, int] = field(default_factory=dict)
    passed: dict[str, tuple[int, int]] = field(default_factory=dict)
    alone: set[int] = field(default_factory=set)
    parked: set[int] = field(default_factory=set)
    delayed: dict[int, int] = field(default_factory=dict)
    tries: dict[int, int] = field(default_factory=dict)
    deaths: dict[int, int] = field(default_factory=dict)
    log: list[list[int]] = field(default_factory=list)
    acked: int = 0

    @property
    def tasks(self) -> range:
        """All tasks."""
        return range(len(self.inputs))

    @property
    def numbers(self) -> range:
        """Those of all blocks."""
        return range(-(-len(self.inputs) // self.block))

    def set_of(self, task: int) -> str:
        """The ready set of a task: that of its restriction, or the common one, ''."""
        restrictions = list(dict.fromkeys(self.hard.values()))
        return f"hard:{restrictions.index(self.hard[task]) + 1}" if task in self.hard else ""

    def ready_in(self, name: str) -> list[int]:
        """What one ready set holds."""
        return sorted(t for t in self.ready if self.set_of(t) == name)

    def list_sets(self, now: int) -> None:
        """Sets that hold something are listed, the others are not."""
        names = {self.set_of(t) for t in self.ready} - {""}
        self.since = {name: self.since.get(name, now) for name in names}

    def wait(self, task: int) -> int:
        """How much a task waits for: unfinished inputs, and its block."""
        missing = task // self.block not in self.blocks
        return sum(i not in self.finished for i in self.inputs[task]) + missing

    def consumers(self, task: int) -> int:
        """How often a value is still to be used."""
        users = sum(task in self.inputs[u] for u in self.tasks if u not in self.finished)
        return users + (task in self.outputs and task not in self.delivered)

    def free(self) -> None:
        """Drop values that nobody needs."""
        self.values = {t for t in self.values if self.consumers(t) > 0}

    @property
    def delivered(self) -> set[int]:
        """Outputs that have arrived."""
        return {t for entry in self.log[: self.acked] for t in entry}

    def damage(self) -> None:
        """Something is missing; a rebuild that is under way may have read before that."""
        self.damaged = ANEW if self.frozen else ONCE

    def end(self, state: str, error: tuple[str, int] = ("", -1)) -> None:
        """Give the job its last state."""
        self.state, self.error = state, error
