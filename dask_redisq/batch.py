"""What a slot reports of a lease: components with their edges, for one step. No I/O.

lua/lib/finish.lua describes the form. The slot sums the edges of a whole batch, at 0.1 us an edge
and beside the other slots; the server, which is one thread for all, only subtracts the sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from dask_redisq.codec import pack
from dask_redisq.pace import EDGES

__all__ = ["Batch", "Published"]


class Published(NamedTuple):
    """A value that goes to the server: inside the call, or stored apart beforehand.

    Attributes
    ----------
    task : int
        Whose value it is.
    value : object
        The value.
    data : bytes
        Its pickle.
    inline : bool
        Whether that goes with the call.
    size : int
        The bytes that it is taken for: those of the pickle, but for a `Given`.
    """

    task: int
    value: Any
    data: bytes
    inline: bool
    size: int

    @property
    def wire(self) -> bytes | int:
        """The pickle, or the size of one that is stored apart."""
        return self.data if self.inline else self.size


class Batch:
    """The components of one lease.

    Attributes
    ----------
    published : list of Published
        The values that the server, or another slot, will see.
    failed : tuple, optional
        The task that raised, and what.
    unpublished : tuple, optional
        The task whose result does not pickle, and why.

    Examples
    --------
    >>> batch = Batch()
    >>> batch.add_lone(4, inputs=(0, 1), users=(7,), value=Published(4, 5, b"5", True, 1))
    >>> batch.add_lone(5, inputs=(1, 2), users=(7,), value=Published(5, 6, b"6", True, 1))
    >>> batch.totals()
    ([0, 1, 1, 2, 2, 1], [7, 2])
    """

    def __init__(self) -> None:
        self.published: list[Published] = []
        self.failed: tuple[int, BaseException] | None = None
        self.unpublished: tuple[int, str] | None = None
        self._tasks: list[int] = []
        self._values: list[bytes | int] = []
        self._outputs: list[int] = []
        # [number of tasks in turn, inputs, users] for lone tasks: a fan-out is one entry.
        self._runs: list[list[Any]] = []
        self._components: list[list[Any]] = []
        self._inputs: dict[int, int] = {}
        self._users: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"<Batch {len(self._tasks)} lone tasks, {len(self._components)} components>"

    def add_lone(
        self,
        task: int,
        inputs: tuple[int, ...],
        users: tuple[int, ...],
        value: Published,
        *,
        output: bool = False,
    ) -> None:
        """Add a task that is a component of its own."""
        self._tasks.append(task)
        self._values.append(value.wire)
        self.published.append(value)
        if output:
            self._outputs.append(task)
        last = self._runs[-1] if self._runs else None
        if last is not None and last[1] == inputs and last[2] == users:
            last[0] += 1
        else:
            self._runs.append([1, inputs, users])

    def add_component(
        self,
        tasks: Sequence[int],
        inputs: Mapping[int, int],
        users: Mapping[int, int],
        values: Sequence[Published],
        uses: Sequence[int],
        outputs: Sequence[int],
    ) -> None:
        """Add linked tasks.

        Parameters
        ----------
        tasks : sequence of int
            All of them.
        inputs, users : Mapping of int to int
            Task outside -> edges from it, or to it.
        values : sequence of Published
            Of those that are used outside.
        uses : sequence of int
            How often each of these is used inside.
        outputs : sequence of int
            Those that the client waits for.
        """
        self.published += values
        edges, more = _sliced(_pairs(inputs), _pairs(users))
        if not more:
            _add(self._inputs, inputs)
            _add(self._users, users)
        _add(self._inputs, {v.task: n for v, n in zip(values, uses, strict=True) if n})
        published, wire = [v.task for v in values], [v.wire for v in values]
        self._components.append(
            [1, list(tasks), wire, list(outputs), pack(edges), published, list(uses), more]
        )

    def totals(self) -> tuple[list[int], list[int]]:
        """Return all edges, summed: pairs of input and uses, pairs of user and edges."""
        if not (self._components or any(run[1] or run[2] for run in self._runs)):
            return [], []  # as for loops: a Counter takes microseconds to make
        inputs, users = Counter(self._inputs), Counter(self._users)
        single = [run for run in self._runs if run[0] == 1]
        inputs.update(chain.from_iterable([run[1] for run in single]))
        users.update(chain.from_iterable([run[2] for run in single]))
        for count, its_inputs, its_users in self._runs:
            if count > 1:
                inputs.update(dict.fromkeys(its_inputs, count))
                users.update(dict.fromkeys(its_users, count))
        return _pairs(inputs), _pairs(users)

    def pack(self) -> bytes:
        """Return the batch as step.lua takes it."""
        groups = list(self._components)
        if self._tasks:
            runs = pack(list(chain.from_iterable(self._runs)))
            groups.append([0, self._tasks, self._values, self._outputs, runs])
        return pack([groups, *self.totals()])


def _add(counts: dict[int, int], more: Mapping[int, int]) -> None:
    for task, count in more.items():
        counts[task] = counts.get(task, 0) + count


def _pairs(counts: Mapping[int, int]) -> list[int]:
    return [x for task in sorted(counts) for x in (task, counts[task])]


def _sliced(inputs: list[int], users: list[int]) -> tuple[tuple[list[int], list[int]], list[bytes]]:
    """Return edges for one call, or none and the slices of them for lua/lib/settle.lua."""
    if len(inputs) + len(users) <= 2 * EDGES:
        return (inputs, users), []
    step = 2 * EDGES
    slices: Iterable[Any] = chain(
        ([inputs[i : i + step], [], b""] for i in range(0, len(inputs), step)),
        ([[], users[i : i + step], b""] for i in range(0, len(users), step)),
    )
    return ([], []), [pack(some) for some in slices]
