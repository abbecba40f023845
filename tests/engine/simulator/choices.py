"""Every choice of one world: drawn from a seed, or read from a record of an earlier run. No I/O.

A record is a list of chapters, each a list of numbers: the first is how the world was made, the
last its quiet end, each of those between is one turn. So a turn can be taken out of a record
without changing what the others mean. What a record does not say is 0, and 0 is always the
plain choice: nothing goes wrong.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["Choices", "Record"]

T = TypeVar("T")
Record = list[list[int]]


class Choices:
    """The choices of one world.

    Parameters
    ----------
    seed : int
        Decides what no record decides.
    record : list of list of int, optional
        The chapters of an earlier run.

    Attributes
    ----------
    record : list of list of int
        What was chosen so far.

    Examples
    --------
    >>> first = Choices(7)
    >>> first.begin(0)
    >>> chosen = [first.below(10) for _ in range(3)]
    >>> again = Choices(0, first.record)
    >>> again.begin(0)
    >>> [again.below(10) for _ in range(4)] == [*chosen, 0]
    True
    """

    def __init__(self, seed: int, record: Record | None = None) -> None:
        self.record: Record = []
        self._random = random.Random(seed)
        self._given = record
        self._left: list[int] = []

    def __repr__(self) -> str:
        return f"<Choices, {len(self.record)} chapters>"

    @property
    def given(self) -> int | None:
        """How many chapters the record has that is read, None when choices are drawn."""
        return None if self._given is None else len(self._given)

    def begin(self, chapter: int) -> None:
        """Begin a chapter; -1 is the last of the record that is read."""
        self.record.append([])
        if self._given is not None:
            self._left = list(reversed(self._given[chapter])) if self._given else []

    def below(self, n: int) -> int:
        """Choose one of 0..n-1."""
        if n <= 1:
            return 0
        if self._given is None:
            chosen = int(self._random.random() * n)
        else:
            chosen = min(self._left.pop(), n - 1) if self._left else 0
        self.record[-1].append(chosen)
        return chosen

    def chance(self, share: float) -> bool:
        """Choose whether something happens that is not the plain choice."""
        if self._given is None:
            chosen = int(self._random.random() < share)
        else:
            chosen = min(self._left.pop(), 1) if self._left else 0
        self.record[-1].append(chosen)
        return chosen == 1

    def pick(self, things: Sequence[T]) -> T:
        """Choose one of `things`, of which the first is the plain one."""
        return things[self.below(len(things))]

    def weighted(self, weights: Sequence[int]) -> int:
        """Choose a place in `weights`, in proportion to what is there."""
        if self._given is None:
            left = self._random.random() * sum(weights)
            chosen = 0
            while left >= weights[chosen] and chosen + 1 < len(weights):
                left -= weights[chosen]
                chosen += 1
        else:
            chosen = min(self._left.pop(), len(weights) - 1) if self._left else 0
        self.record[-1].append(chosen)
        return chosen
