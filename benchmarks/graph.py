"""A Dask graph under construction, and the keys that will be asked of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from dask._task_spec import Task, TaskRef
from dask.typing import Key


@dataclass
class Graph:
    """A Dask graph and the keys that are asked of it."""

    dsk: dict[Key, Task] = field(default_factory=dict)
    keys: list[Key] = field(default_factory=list)

    def add(self, key: Key, func: Callable[..., Any], *args: Any) -> TaskRef:
        """Add a task, and return the reference by which others use its value."""
        self.dsk[key] = Task(key, func, *args)
        return TaskRef(key)

    def ask(self, refs: Iterable[TaskRef]) -> "Graph":
        """Make these the outputs."""
        self.keys = [ref.key for ref in refs]
        return self

    def needed(self) -> set[Key]:
        """Return the keys that the outputs depend on: what is left after culling."""
        seen = set(self.keys)
        stack = list(self.keys)
        while stack:
            fresh = self.dsk[stack.pop()].dependencies - seen
            seen |= fresh
            stack += fresh
        return seen

    def size(self) -> tuple[int, int]:
        """Return the number of tasks and of edges after culling."""
        needed = self.needed()
        return len(needed), sum(len(self.dsk[key].dependencies) for key in needed)
