"""What the state of a job must be, computed from its graph and from what is there. No I/O.

Counters, ready sets and the log are derived: after any damage they are computed anew, never
corrected. The same function serves a lost value, a lost server, and the audit of a sound job.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Recount", "Truth", "recount"]


class Truth(NamedTuple):
    """What a rebuild starts from.

    Attributes
    ----------
    inputs : sequence of sequence of int
        For each task the tasks whose values it needs, each once.
    outputs : frozenset of int
        Tasks whose value the client waits for.
    finished : set of int
        Tasks with an accepted result.
    valued : set of int
        Tasks whose value is there.
    delivered : set of int
        Outputs that have arrived at the client.
    """

    inputs: Sequence[Sequence[int]]
    outputs: frozenset[int]
    finished: set[int]
    valued: set[int]
    delivered: set[int]


@dataclass(frozen=True)
class Recount:
    """The derived state of a job.

    Attributes
    ----------
    finished : set of int
        Tasks that need not run (again).
    again : set of int
        Tasks that were finished, and must run again.
    wait, consumers : list of int
        The counters of each task.
    ready : list of int
        Tasks to run whose inputs are all there, leased ones too.
    unneeded : set of int
        Tasks whose value is there, and that nobody needs, or that run again.
    delivered : set of int
        Outputs that have arrived, and do not run again.
    told : list of int
        Finished outputs that have not arrived.
    """

    finished: set[int]
    again: set[int]
    wait: list[int]
    consumers: list[int]
    ready: list[int]
    unneeded: set[int]
    delivered: set[int]
    told: list[int]


def recount(truth: Truth, *, pure: bool = True) -> Recount:
    """Return the state that belongs to `truth`.

    Parameters
    ----------
    truth : Truth
        What is there.
    pure : bool, default True
        Whether a task that runs again gives the same value. If not, all that was made from the
        lost one is made again, too, also outputs that have arrived.

    Examples
    --------
    Of a chain 0 -> 1 -> 2 the value of 1 is lost, and that of 0 was freed: both run again.

    >>> found = recount(Truth([(), (0,), (1,)], frozenset([2]), {0, 1}, set(), set()))
    >>> found.wait, found.ready, sorted(found.again)
    ([0, 1, 1], [0], [0, 1])
    """
    inputs, n = truth.inputs, len(truth.inputs)
    run = _needed(truth, [t for t in truth.outputs if t not in truth.delivered])
    if not pure:
        # What has arrived was finished once, and so was all that it was made of: a server that came
        # back older may know neither.
        ever, anew = truth.finished | truth.delivered, set[int]()
        while remade := (_descendants(inputs, run) & ever) - run:
            anew |= remade
            run = _needed(truth, [*run, *anew], anew)
    finished = set(range(n)) - run
    again = run & truth.finished
    # An output that runs again is told again: its client has it, and says so again.
    delivered = truth.delivered - run
    wait = [0] * n
    consumers = [0] * n
    for task in range(n):
        if task not in finished:
            wait[task] = sum(i not in finished for i in inputs[task])
            for i in inputs[task]:
                consumers[i] += 1
    for task in truth.outputs - delivered:
        consumers[task] += 1
    ready = [t for t in range(n) if t not in finished and wait[t] == 0]
    unneeded = {t for t in truth.valued if t not in finished or consumers[t] == 0}
    told = sorted((truth.outputs & finished) - delivered)
    return Recount(finished, again, wait, consumers, ready, unneeded, delivered, told)


def _needed(truth: Truth, wanted: list[int], remade: Collection[int] = ()) -> set[int]:
    """Return what must run for the values of `wanted`: unfinished tasks, and lost ones.

    Gone is not lost: a value that nobody needs any more was freed, and its task stays finished.
    Nor does an unfinished task run of which only outputs that have arrived were made.
    """
    found: set[int] = set()
    todo = list(wanted)
    while todo:
        task = todo.pop()
        there = task in truth.finished and task in truth.valued and task not in remade
        if task not in found and not there:
            found.add(task)
            todo += truth.inputs[task]
    return found


def _descendants(inputs: Sequence[Sequence[int]], roots: Collection[int]) -> set[int]:
    """Return what was made from `roots`; a task is numbered behind all of its inputs."""
    found: set[int] = set()
    for task, its_inputs in enumerate(inputs):
        if any(i in found or i in roots for i in its_inputs):
            found.add(task)
    return found
