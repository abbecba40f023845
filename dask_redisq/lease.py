"""Run a lease and all that follows from it alone, and report it as components. No I/O.

*Continuation*: a task whose every input was made in this same lease is nobody else's yet, so it
runs at once, up to a time budget. Values used only inside the lease are never published. A chain
or the lower part of a tree costs no round trip and no serialisation at all.

*Component*: tasks linked by such values. The server accepts each whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import Any, NamedTuple

from dask_redisq.annotations import RESOURCE
from dask_redisq.batch import Batch, Published
from dask_redisq.codec import Block, dumps
from dask_redisq.errors import ValueTooLarge
from dask_redisq.pace import EDGES, Pace
from dask_redisq.seeding import seeded
from dask_redisq.task import Given, kind_of, run_node, run_task, settled

__all__ = ["Lease", "LeaseRun"]

#: Bytes of values inside one call, and of one value inside a call.
INLINE_TOTAL = 256 * 1024
INLINE = 64 * 1024
#: A value below this fits into any server, whatever its limit.
FITS = 1_000_000


class Lease(NamedTuple):
    """What a slot holds: tasks of one job, under the sequence number of the call that gave it."""

    job: str
    epoch: str
    chunk: int
    block: int
    alone: bool
    tasks: list[int]
    seq: int
    files: int = 0


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
    tags : set of str
        Tags of the slot, as they are at each moment, for tasks with restrictions.
    clock : callable
        Returns seconds, like `time.perf_counter`.
    begin : callable
        Called as ``begin(task, position)`` before each task, and before its result is pickled
        with the number of tasks as the position.
    limit : callable
        Called as ``limit(task, timeout, retries)`` before that, for tasks with limits.
    go_on : callable
        Asked before each further leased task; false: hand the rest back.
    most : callable
        Called with the bytes of a large value; returns how many the server holds in one.
    sign : callable, optional
        Called as ``sign(task, pickle)`` for each value that leaves this process.
    take : callable, optional
        Called before each task; false: it may not run here, nor may any other.
    """

    def __init__(
        self,
        lease: Lease,
        blocks: Mapping[int, Block],
        values: dict[int, Any],
        pace: Pace,
        tags: AbstractSet[str],
        clock: Callable[[], float],
        begin: Callable[[int, int], None],
        limit: Callable[[int, float, int], None],
        go_on: Callable[[], bool],
        most: Callable[[int], int],
        sign: Callable[[int, bytes], bytes] | None = None,
        take: Callable[[], bool] | None = None,
    ) -> None:
        self.lease = lease
        self.blocks = blocks
        self.values = values
        self.pace = pace
        self.tags = tags
        self.clock = clock
        self.begin = begin
        self.limit = limit
        self.go_on = go_on
        self.most = most
        self.sign = sign
        self.take = take
        self.made: dict[int, None] = {}
        self.failed: tuple[int, BaseException] | None = None
        #: Whether one of the values is a `Given`.
        self.gave = False
        self._missing: dict[int, int] = {}  # user of what was made -> inputs that it still lacks
        self._plain: set[type] = set()  # types of results that can be read again
        self._last_func: Any = None
        self._last_kind = ""
        self._edges = 0
        self._last_edges: Any = None
        self._most = lease.chunk if lease.chunk > 0 else 1 << 30
        first = lease.tasks[0]
        self._restricted = first in blocks[first // lease.block].restricted
        self._room = INLINE_TOTAL

    # -- running --------------------------------------------------------------------

    def run(self) -> None:
        """Run the lease's tasks in order, each with what follows from it alone."""
        started = now = self.clock()
        done = 0
        for position, task in enumerate(self.lease.tasks):
            if task in self.made:
                continue
            # Before it is asked whether to go on, not after. Story: the slot asks, and stops for a
            # moment; its supervisor, which reads that the task before this one is in hand, gives
            # this one to another slot; then this slot goes on, and the task runs twice.
            self.begin(task, position)
            if position and self._should_step(task, now - started):
                break
            if self.take is not None and not self.take():
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
        if len(self.made) >= self._most:
            # Continuation took the rest's room. Depth first it frees memory, and publishes less
            # than the leased tasks first would: these go back, un-begun, for the next lease.
            return True
        if self._edges > EDGES:
            return True  # no call counts more, whatever the chunk size
        if self.lease.chunk != 0:
            return False
        if elapsed > 2 * self.pace.budget:
            return True
        return not self._known(task)

    def _known(self, task: int) -> bool:
        return self.pace.know(self._kind(self._node(task)))

    def _node(self, task: int) -> Any:
        size = self.lease.block
        return self.blocks[task // size].tasks[task % size]

    def _run_tree(self, first: int, position: int, started: float, now: float) -> float:
        """Run a task, then what became possible by it, depth first; return the time."""
        todo = [first]
        while todo:
            task = todo.pop()
            node = self._node(task)
            if task != first:
                if not self._may_follow(task, node, now - started):
                    continue
                if self.take is not None and not self.take():
                    break
            block = self.blocks[task // self.lease.block]
            if task in block.limits:
                self.limit(task, *block.limits[task])
            if task != first:
                self.begin(task, position)
            try:
                if task in block.seeds:
                    with seeded(*block.seeds[task]):
                        value = run_task(node, self.values)
                else:
                    value = run_task(node, self.values)
                if type(value) not in self._plain:  # 0.02 us; to ask each for __next__ takes 0.1
                    value = self._settled(value)
                self.values[task] = value
            except BaseException as error:  # what a task raises is data: it goes to the client
                self.failed = (task, error)
                return self.clock()
            before, now = now, self.clock()
            self.pace.ran(self._kind(node), now - before)
            self.made[task] = None
            todo += self._followers(task)
        return now

    def _settled(self, value: Any) -> Any:
        found = settled(value)
        if found is value:
            self._plain.add(type(value))
        return found

    def _kind(self, node: Any) -> str:
        """Return the kind of a task; neighbours mostly run the same function."""
        if node[0] is not self._last_func or node[0] is run_node:
            self._last_func, self._last_kind = node[0], kind_of(node)
        return self._last_kind

    def _followers(self, task: int) -> list[int]:
        """Return the tasks whose last missing input is `task`, the most urgent one last."""
        size, missing = self.lease.block, self._missing
        block = self.blocks[task // size]
        users = block.users[task % size]
        edges = (block.inputs[task % size], users)
        if edges != self._last_edges:  # a fan-out is reported as one run
            self._last_edges = edges
            self._edges += len(edges[0]) + len(users)
        found = []
        for user in users:
            left = missing.get(user)
            if left is None:
                its_block = self.blocks.get(user // size)
                left = len(its_block.inputs[user % size]) if its_block is not None else -1
            missing[user] = left - 1
            if left == 1:
                found.append(user)
        if len(found) > 1:
            found.sort(reverse=True)
        return found

    def _may_run_here(self, wanted: tuple[str, ...]) -> bool:
        """Tell whether a task may, by its restriction: this lease holds what its own tasks need.

        No more than that, or the task would run without; and no less, or it would keep what others
        wait for: a minute on a core behind a second on the only GPU.
        """
        size, first = self.lease.block, self.lease.tasks[0]
        held = self.blocks[first // size].restricted.get(first, ())
        needs = {need for need in wanted if need.startswith(RESOURCE)}
        plain = [tag for tag in wanted if not tag.startswith(RESOURCE)]
        return not (plain and self.tags.isdisjoint(plain)) and needs == {
            need for need in held if need.startswith(RESOURCE)
        }

    def _only_follower(self, task: int) -> bool:
        """Tell whether nothing but `task` could follow from all that was made here."""
        return all(user == task or user in self.made for user in self._missing)

    def _may_follow(self, task: int, node: Any, elapsed: float) -> bool:
        """Tell whether a task whose inputs were all made here may run here at once.

        A (1 ms) -> B, C (10 min each): were B run at once, A would be reported after 10 min, and
        C could not run elsewhere. So: into a short kind, or if nothing else could follow.
        """
        if self.lease.alone or len(self.made) >= self._most or task in self.made:
            return False
        block = self.blocks[task // self.lease.block]
        if any(kept.number not in self.values for kept in block.outer.get(task, ())):
            return False
        if (block.restricted or self._restricted) and not self._may_run_here(
            block.restricted.get(task, ())
        ):
            return False
        if elapsed > self.pace.budget or self._edges > EDGES:
            return False
        return self.pace.short(self._kind(node)) or self._only_follower(task)

    # -- reporting ------------------------------------------------------------------

    def report(self) -> Batch:
        """Return what was made, as components with their outer edges."""
        batch = Batch()
        batch.failed = self.failed
        lone, linked = self._components()
        for tasks in chain(([task] for task in lone), linked):
            try:
                if len(tasks) > 1 or not self._report_lone(batch, tasks[0]):
                    self._report_component(batch, tasks)
            except _NotPublishable as error:  # without a group its tasks get no verdict
                if isinstance(error.why, ValueTooLarge):
                    batch.failed = batch.failed or (error.task, error.why)
                else:
                    batch.unpublished = batch.unpublished or (error.task, str(error.why))
        return batch

    def _components(self) -> tuple[list[int], list[list[int]]]:
        """Return the made tasks: those by themselves, and those that inner values link."""
        size, blocks, made = self.lease.block, self.blocks, self.made.keys()
        of: dict[int, list[int]] = {}
        for task in made:
            inputs = blocks[task // size].inputs[task % size]
            if made.isdisjoint(inputs):
                continue
            group = of.setdefault(task, [task])
            for i in made & inputs:
                other = of.setdefault(i, [i])
                if other is not group:
                    if len(other) > len(group):
                        other, group = group, other
                    group += other
                    of.update(dict.fromkeys(other, group))
        lone = [task for task in made if task not in of]
        return lone, [sorted(g) for g in {id(g): g for g in of.values()}.values()]

    def _report_lone(self, batch: Batch, task: int) -> bool:
        """Report a task by itself; false if it has too many edges for that."""
        size = self.lease.block
        block, i = self.blocks[task // size], task % size
        inputs, users = block.inputs[i], block.users[i]
        if len(inputs) + len(users) > EDGES:
            return False
        batch.add_lone(task, inputs, users, self._publish(task), output=task in block.outputs)
        return True

    def _report_component(self, batch: Batch, tasks: list[int]) -> None:
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
        values = [self._publish(task) for task in published]
        batch.add_component(
            tasks, inputs, users, values, [uses.get(t, 0) for t in published], outputs
        )

    def _publish(self, task: int) -> Published:
        value = self.values[task]
        self.begin(task, len(self.lease.tasks))  # a __reduce__ can kill the process as well
        try:
            data = dumps(value)
        except BaseException as why:  # one that calls exit too: it is no word to the slot
            text = f"it is a {type(value).__module__}.{type(value).__qualname__}: {why}"
            raise _NotPublishable(task, text) from why
        if self.sign is not None:
            data = self.sign(task, data)
        size = len(data)
        if size > FITS and size > (most := self.most(size)):
            text = f"the result takes {size:,} bytes; the server holds at most {most:,} "
            raise _NotPublishable(task, ValueTooLarge(f"{text}in one value: return smaller parts"))
        if type(value) is Given:
            self.gave = True
            return Published(task, value.thing, data, inline=False, size=value.size)
        inline = size <= INLINE and size <= self._room
        if inline:
            self._room -= size
        return Published(task, value, data, inline, size)


class _NotPublishable(Exception):
    """The result of a task does not pickle, or no server would hold it."""

    def __init__(self, task: int, why: str | ValueTooLarge) -> None:
        super().__init__(task, why)
        self.task = task
        self.why = why
