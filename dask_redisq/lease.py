"""Run a lease and all that follows from it alone, and report it as components. No I/O.

*Continuation*: a task whose every input was made in this same lease is nobody else's yet, so it
runs at once, up to a time budget. Values used only inside the lease are never published. A chain
or the lower part of a tree costs no round trip and no serialisation at all.

*Component*: tasks linked by such values. The server accepts each whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dask_redisq.codec import Block, dumps_value, pack
from dask_redisq.pace import EDGES, Pace
from dask_redisq.task import kind_of, run_task

__all__ = ["EDGES", "Batch", "Lease", "LeaseRun", "Published"]

#: Bytes of values inside one call, and of one value inside a call.
INLINE_TOTAL = 256 * 1024
INLINE = 64 * 1024


class Lease(NamedTuple):
    """What a slot holds: tasks of one job, under the sequence number of the call that gave it."""

    job: str
    epoch: str
    chunk: int
    block: int
    alone: bool
    tasks: list[int]
    seq: int


class Published(NamedTuple):
    """A value that goes to the server: inside the call, or stored apart beforehand."""

    task: int
    value: Any
    data: bytes
    inline: bool


@dataclass
class Batch:
    """What a slot reports of a lease.

    Attributes
    ----------
    groups : list
        Components, as lua/lib/finish.lua describes them.
    published : list of Published
        The values that the server, or another slot, will see.
    failed : tuple, optional
        The task that raised, and what.
    unpublished : tuple, optional
        The task whose result does not pickle, and why.
    """

    groups: list[Any] = field(default_factory=list)
    published: list[Published] = field(default_factory=list)
    failed: tuple[int, BaseException] | None = None
    unpublished: tuple[int, str] | None = None

    def drop_group_of(self, task: int) -> None:
        """Report nothing of the group that `task` is in: its values get no verdict."""
        dropped = {t for g in self.groups if task in g[1] for t in g[1]}
        self.groups = [g for g in self.groups if task not in g[1]]
        self.published = [p for p in self.published if p.task not in dropped]


class LeaseRun:
    """One lease on its way through a slot.

    Parameters
    ----------
    lease : Lease
        What to run.
    blocks : Mapping of int to Block
        Block number -> block, for those that the slot has; all of the lease's own among them.
    values : dict of int to object
        The inputs of the lease's tasks.
    pace : Pace
        What is known of durations; updated.
    tags : frozenset of str
        Tags of the slot, for tasks with restrictions.
    clock : callable
        Returns seconds, like `time.perf_counter`.
    begin : callable
        Called as ``begin(task, position)`` before each task.
    go_on : callable
        Asked before each further leased task; false: hand the rest back.
    """

    def __init__(
        self,
        lease: Lease,
        blocks: Mapping[int, Block],
        values: dict[int, Any],
        pace: Pace,
        tags: frozenset[str],
        clock: Callable[[], float],
        begin: Callable[[int, int], None],
        go_on: Callable[[], bool],
    ) -> None:
        self.lease = lease
        self.blocks = blocks
        self.values = values
        self.pace = pace
        self.tags = tags
        self.clock = clock
        self.begin = begin
        self.go_on = go_on
        self.made: dict[int, None] = {}
        self.failed: tuple[int, BaseException] | None = None
        self._open: set[int] = set()
        self._missing: dict[int, int] = {}
        self._edges = 0
        self._last_edges: Any = None
        self._most = lease.chunk if lease.chunk > 0 else 1 << 30

    # -- running --------------------------------------------------------------------

    def run(self) -> None:
        """Run the lease's tasks in order, each with what follows from it alone."""
        started = now = self.clock()
        done = 0
        for position, task in enumerate(self.lease.tasks):
            if task in self.made:
                continue
            if position and self._should_step(task, now - started):
                break
            now = self._run_tree(task, position, started, now)
            done = position + 1
            if self.failed is not None:
                break
        if done:
            self.pace.leased(self.lease.job, done, now - started, self._edges)
            if done < len(self.lease.tasks) and not self._known(self.lease.tasks[done]):
                self.pace.surprised()

    def _should_step(self, task: int, elapsed: float) -> bool:
        """Tell whether to report now and hand the rest of the lease back, instead of `task`."""
        if not self.go_on():
            return True
        if self._edges > EDGES:
            return True  # no call counts more, whatever the chunk size
        if self.lease.chunk != 0:
            return False
        if elapsed > 2 * self.pace.budget:
            return True
        return not self._known(task)

    def _known(self, task: int) -> bool:
        return self.pace.know(kind_of(self._node(task)))

    def _node(self, task: int) -> Any:
        size = self.lease.block
        return self.blocks[task // size].nodes[task % size]

    def _run_tree(self, first: int, position: int, started: float, now: float) -> float:
        """Run a task, then what became possible by it, depth first; return the time."""
        todo = [first]
        pace = self.pace
        while todo:
            task = todo.pop()
            node = self._node(task)
            if task != first and not self._may_follow(task, node, now - started):
                continue
            self.begin(task, position)
            try:
                self.values[task] = run_task(node, self.values)
            except BaseException as error:  # what a task raises is data: it goes to the client
                self.failed = (task, error)
                return self.clock()
            before, now = now, self.clock()
            pace.ran(kind_of(node), now - before)
            self.made[task] = None
            todo.extend(self._followers(task))
        return now

    def _followers(self, task: int) -> list[int]:
        """Return the tasks whose last missing input is `task`, the most urgent one last."""
        size = self.lease.block
        block = self.blocks[task // size]
        users = block.users[task % size]
        edges = (block.inputs[task % size], users)
        if edges != self._last_edges:  # a fan-out is reported as one group
            self._last_edges = edges
            self._edges += len(edges[0]) + len(users)
        self._open.discard(task)
        found = []
        for user in users:
            self._open.add(user)
            missing = self._missing.get(user)
            if missing is None:
                its_block = self.blocks.get(user // size)
                missing = len(its_block.inputs[user % size]) if its_block is not None else -1
            self._missing[user] = missing - 1
            if missing == 1:
                found.append(user)
        if len(found) > 1:
            found.sort(reverse=True)
        return found

    def _may_follow(self, task: int, node: Any, elapsed: float) -> bool:
        """Tell whether a task whose inputs were all made here may run here at once.

        A (1 ms) -> B, C (10 min each): were B run at once, A would be reported after 10 min, and
        C could not run elsewhere. So: into a short kind, or if nothing else could follow.
        """
        if self.lease.alone or len(self.made) >= self._most or task in self.made:
            return False
        size = self.lease.block
        wanted = self.blocks[task // size].restricted.get(task)
        if wanted is not None and self.tags.isdisjoint(wanted):
            return False
        if elapsed > self.pace.budget or self._edges > EDGES:
            return False
        return self.pace.short(kind_of(node)) or self._open == {task}

    # -- reporting ------------------------------------------------------------------

    def report(self) -> Batch:
        """Return what was made, as components with their outer edges."""
        batch = Batch(failed=self.failed)
        budget = [INLINE_TOTAL]
        lone: dict[Any, list[Any]] = {}
        for tasks in self._components():
            before = len(batch.published)
            try:
                if len(tasks) == 1:
                    self._report_lone(batch, lone, tasks[0], budget)
                else:
                    self._report_component(batch, tasks, budget)
            except _NotPublishable as error:
                del batch.published[before:]  # without a group they get no verdict
                batch.unpublished = batch.unpublished or (error.task, error.why)
        return batch

    def _components(self) -> list[list[int]]:
        """Return the made tasks, those linked by inner values together, each list in order."""
        size, made = self.lease.block, self.made
        of: dict[int, list[int]] = {}
        for task in made:
            group = [task]
            for i in self.blocks[task // size].inputs[task % size]:
                if i in made and of[i] is not group:
                    other = of[i]
                    if len(other) > len(group):
                        other, group = group, other
                    group.extend(other)
                    for t in other:
                        of[t] = group
            of[task] = group
        return [sorted(g) for g in {id(g): g for g in of.values()}.values()]

    def _report_lone(
        self, batch: Batch, lone: dict[Any, list[Any]], task: int, budget: list[int]
    ) -> None:
        size = self.lease.block
        block, i = self.blocks[task // size], task % size
        inputs, users, output = block.inputs[i], block.users[i], task in block.outputs
        if len(inputs) + len(users) > EDGES:
            self._report_component(batch, [task], budget)
            return
        value = self._publish(batch, task, budget)
        edges = (inputs, users, output)
        group = lone.get(edges)
        if group is None:
            group = lone[edges] = [
                0, [], _once(inputs), _once(users), [], [], [], int(output), []
            ]  # fmt: skip
            batch.groups.append(group)
        group[1].append(task)
        group[5].append(value)

    def _report_component(self, batch: Batch, tasks: list[int], budget: list[int]) -> None:
        size, inside = self.lease.block, set(tasks)
        inputs: dict[int, int] = {}
        users: dict[int, int] = {}
        uses: dict[int, int] = {}
        published, outputs = [], []
        for task in tasks:
            block = self.blocks[task // size]
            for i in block.inputs[task % size]:
                counts = uses if i in inside else inputs
                counts[i] = counts.get(i, 0) + 1
            outside = [u for u in block.users[task % size] if u not in inside]
            for u in outside:
                users[u] = users.get(u, 0) + 1
            if task in block.outputs:
                outputs.append(task)
            if outside or task in block.outputs:
                published.append(task)
        values = [self._publish(batch, task, budget) for task in published]
        first_in, first_out, more = _slices(inputs, users)
        batch.groups.append([
            1, tasks, first_in, first_out, published, values,
            [uses.get(t, 0) for t in published], outputs, more,
        ])  # fmt: skip

    def _publish(self, batch: Batch, task: int, budget: list[int]) -> bytes | int:
        value = self.values[task]
        try:
            data = dumps_value(value)
        except Exception as why:
            text = f"it is a {type(value).__module__}.{type(value).__qualname__}: {why}"
            raise _NotPublishable(task, text) from why
        inline = len(data) <= INLINE and len(data) <= budget[0]
        if inline:
            budget[0] -= len(data)
        batch.published.append(Published(task, value, data, inline))
        return data if inline else len(data)


class _NotPublishable(Exception):
    """The result of a task cannot be pickled."""

    def __init__(self, task: int, why: str) -> None:
        super().__init__(task, why)
        self.task = task
        self.why = why


def _once(tasks: tuple[int, ...]) -> list[int]:
    return [x for task in tasks for x in (task, 1)]


def _slices(
    inputs: dict[int, int], users: dict[int, int]
) -> tuple[list[int], list[int], list[bytes]]:
    """Return edges for one call, and the rest as packed slices for lua/lib/settle.lua."""
    flat_in = [x for pair in sorted(inputs.items()) for x in pair]
    flat_out = [x for pair in sorted(users.items()) for x in pair]
    if len(flat_in) + len(flat_out) <= 2 * EDGES:
        return flat_in, flat_out, []
    step = 2 * EDGES
    more = [pack([flat_in[i : i + step], [], b""]) for i in range(0, len(flat_in), step)]
    more += [pack([[], flat_out[i : i + step], b""]) for i in range(0, len(flat_out), step)]
    return [], [], more
