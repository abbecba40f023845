"""Dask's callbacks (`dask.callbacks`), called when something really happens to a task.

They see what `dask.local.get_async` would show them, in its order: ``start`` with the graph, which
they may change; ``start_state``; per task ``pretask`` when a slot has it, ``posttask`` when its
result was accepted; ``finish``, whatever happened. All in the thread that called `get`. No I/O.
Source: section 1.6 of Dask's contract.

What they compute themselves is not told to them. Dask's own schedulers take the active callbacks
away while they work, which is one set for the whole process: of two threads that compute the second
has none, and if it ends last it leaves the set empty for good. Here the set is left alone, and each
thread knows which of them it has at work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from dask._task_spec import Alias, DataNode, GraphNode, convert_legacy_graph
from dask.callbacks import Callback, normalize_callback
from dask.typing import Key

from dask_redisq.graph import flatten_keys
from dask_redisq.plan import Plan

__all__ = ["UNREAD", "Observer", "active_callbacks", "looks_at_values"]

#: What ``posttask`` gets for a value if no callback looks at values. They stay with the workers.
UNREAD = None
#: Methods named ``posttask`` that do not look at the value, by module and qualified name.
BLIND = {
    ("dask.diagnostics.progress", "ProgressBar._posttask"),
    ("dask.diagnostics.profile", "Profiler._posttask"),
    ("tqdm.dask", "TqdmCallback._posttask"),
}
#: Those that keep values, or measure them: with `UNREAD` a cache would give wrong answers.
KEEPING = {
    ("dask.cache", "Cache._posttask"),
    ("dask.diagnostics.profile", "CacheProfiler._posttask"),
}
#: The worker of what the client does itself.
CLIENT = "client"

#: start, start_state, pretask, posttask, finish; each a function or None.
Hooks = tuple[Any, Any, Any, Any, Any]


class _Taken(threading.local):
    """The callbacks of the computations that this thread is in."""

    # Not a context variable: some graphs compute while they are made, in a context of their own.
    hooks: tuple[Hooks, ...] = ()


_taken = _Taken()


def active_callbacks(given: Iterable[Any] | None = None) -> list[Hooks]:
    """Return the callbacks of a computation: those given to `get`, else those that are active.

    But for those of a computation that this one is a part of: a callback computes something, or a
    task that is run again here does.
    """
    if given is None:
        # A copy, in one step: another thread may register one.
        given = [one for one in list(Callback.active) if one not in _taken.hooks]
    return [normalize_callback(one) for one in given]


def looks_at_values(callbacks: Iterable[Hooks], mode: str = "auto") -> bool:
    """Tell whether results are to be fetched for callbacks.

    Parameters
    ----------
    callbacks : iterable of tuple
        See `active_callbacks`.
    mode : {"auto", "always", "never"}
        The setting ``redisq.callback-values``. With auto they are, unless each callback is known
        not to look: `ProgressBar`, `Profiler`, `ResourceProfiler`, tqdm's. With never they are
        for `Cache` and `CacheProfiler`, which are nothing without.

    Raises
    ------
    ValueError
        For another mode.
    """
    if mode not in ("auto", "always", "never"):
        raise ValueError(f"redisq.callback-values is auto, always or never, not {mode!r}")
    posts = [hooks[3] for hooks in callbacks if hooks[3]]
    names = {(getattr(p, "__module__", ""), getattr(p, "__qualname__", "")) for p in posts}
    if mode == "never":
        return not names.isdisjoint(KEEPING)
    return mode == "always" or not names <= BLIND


class Observer:
    """The callbacks of one computation and the state that they are shown; a context manager.

    Parameters
    ----------
    callbacks : list of tuple
        See `active_callbacks`.
    dsk : Mapping
        The graph.
    keys : hashable, or nested list of hashable
        What is computed.
    looks : bool
        Whether values are fetched for them.

    Attributes
    ----------
    dsk : dict
        The graph as callbacks see it, and may have changed it.
    state : dict
        As `dask.local.start_state_from_dask` makes it, but for ``ready``: a dict in place of a
        list, since tasks leave it from anywhere.
    """

    def __init__(
        self, callbacks: list[Hooks], dsk: Mapping[Key, Any], keys: Any, *, looks: bool
    ) -> None:
        self.callbacks = callbacks
        self.dsk: dict[Key, Any] = dict(convert_legacy_graph(dsk))
        self.looks = looks
        self.state: dict[str, Any] = {}
        self._results = set(flatten_keys(keys))
        self._started: list[Hooks] = []
        self._outer: tuple[Hooks, ...] = ()
        self._aliases: set[Key] = set()
        self._number: dict[Key, int] = {}
        self._pre = [hooks[2] for hooks in callbacks if hooks[2]]
        self._post = [hooks[3] for hooks in callbacks if hooks[3]]

    def __repr__(self) -> str:
        return f"<Observer of {len(self.dsk)} tasks for {len(self.callbacks)} callbacks>"

    def __enter__(self) -> Self:
        self._outer = _taken.hooks
        _taken.hooks = (*self._outer, *self.callbacks)
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        try:
            for hooks in self._started:
                if hooks[4]:
                    hooks[4](self.dsk, self.state, error is not None)
        finally:
            _taken.hooks = self._outer

    def start(self) -> None:
        """Call ``start``: a callback may put values in place of tasks, as Dask's `Cache` does."""
        for hooks in self.callbacks:
            if hooks[0]:
                hooks[0](self.dsk)
            self._started.append(hooks)
        self.dsk.update(convert_legacy_graph(self.dsk))

    def begin(self, plan: Plan) -> None:
        """Make the state of what is to be computed, and call ``start_state``."""
        nodes: dict[Key, GraphNode] = dict(zip(plan.keys, plan.nodes, strict=True))
        self._number = dict(zip(plan.keys, range(len(plan)), strict=True))
        nodes |= plan.local
        cache: dict[Key, Any] = {}
        for name in [*plan.names, *plan.data]:
            key = name
            while key not in nodes and isinstance(node := self.dsk.get(key), Alias):
                nodes[key] = node
                self._aliases.add(key)
                key = node.target  # the plan may know this one by its other name only
            if key not in nodes:
                # Else it is of a persisted collection: it is there, and stays where it is.
                cache[key] = node.value if isinstance(node, DataNode) else UNREAD
        self.state = _first_state(nodes, cache)
        for hooks in self.callbacks:
            if hooks[1]:
                hooks[1](self.dsk, self.state)

    def wanted(self, plan: Plan) -> dict[Key, Any]:
        """Return key -> part of the persisted values that callbacks see under other names.

        An alias is a task, in Dask: ``posttask`` gets its value, if anybody looks at it.
        """
        if not (self.looks and self._aliases):
            return {}
        users, cache = self.state["dependents"], self.state["cache"]
        return {
            name: plan.parts[n]
            for name, n in plan.names.items()
            if n < 0 and name in cache and not self._aliases.isdisjoint(users[name])
        }

    def read(self, values: Mapping[Key, Any]) -> None:
        """Note the values that were `wanted`, and let be done what only renames what is there."""
        state = self.state
        state["cache"] |= {key: values[key] for key in state["cache"].keys() & values.keys()}
        self._follow_aliases(self._aliases & state["ready"].keys())

    # -- what happens ------------------------------------------------------------------

    def taken(self, key: Key) -> None:
        """Note that a slot, or the client, has a task now."""
        state = self.state
        if key in state["ready"]:
            del state["ready"][key]
            state["running"].add(key)
            for call in self._pre:
                call(key, self.dsk, state)

    def done(self, key: Key, value: Any, worker: str = CLIENT) -> None:
        """Note that the result of a task was accepted, once for each task."""
        if key in self.state["finished"]:
            return
        if key in self.state["waiting"]:
            for missed in self._missed(key):
                self._end(missed, UNREAD, worker, told=not self.looks)
        self._end(key, value, worker, told=True)

    def _missed(self, key: Key) -> list[Key]:
        """Return the tasks before `key` of whose end nobody told, in the order of the plan.

        Their job was lost with the server, and the one that came after it needs no run of theirs.
        """
        waiting, found, todo = self.state["waiting"], set[Key](), [key]
        while todo:
            for dep in waiting.get(todo.pop(), ()):
                if dep not in found:
                    found.add(dep)
                    todo.append(dep)
        return sorted(found & self._number.keys(), key=self._number.__getitem__)

    def _end(self, key: Key, value: Any, worker: str, *, told: bool) -> None:
        freed = self._end_one(key, value, worker, told=told)
        if self._aliases:
            self._follow_aliases(self._aliases.intersection(freed), told=told)

    def _end_one(self, key: Key, value: Any, worker: str, *, told: bool) -> list[Key]:
        state = self.state
        self.taken(key)
        if self.looks:
            state["cache"][key] = value
        freed = self._finish(key)
        if told:  # else it would be a value that it never had
            for call in self._post:
                call(key, value, self.dsk, state, worker)
        return freed

    def _finish(self, key: Key) -> list[Key]:
        """Update the state as `dask.local.finish_task` does; return what became ready."""
        state, freed = self.state, []
        waiting, waiting_data = state["waiting"], state["waiting_data"]
        for user in state["dependents"][key]:
            left = waiting[user]
            left.discard(key)
            if not left:
                del waiting[user]
                state["ready"][user] = None
                freed.append(user)
        for dep in state["dependencies"][key]:
            users = waiting_data.get(dep)
            if users is None:
                continue
            users.discard(key)
            if not users and dep not in self._results:
                del waiting_data[dep]
                state["released"].add(dep)
                state["cache"].pop(dep, None)
        state["finished"].add(key)
        state["running"].discard(key)
        return freed

    def _follow_aliases(self, ready: Iterable[Key], *, told: bool = True) -> None:
        """Let those be done that only are other names of what is done: no worker gets them."""
        cache, todo = self.state["cache"], list(ready)
        while todo:
            key = todo.pop()
            value = cache.get(self.dsk[key].target, UNREAD)
            todo += self._aliases.intersection(self._end_one(key, value, CLIENT, told=told))

    def here(self, key: Key, compute: Callable[[], Any]) -> Any:
        """Do what the client does itself, as a task that the callbacks see."""
        self.taken(key)
        value = compute()
        self.done(key, value)
        return value


def _first_state(nodes: Mapping[Key, GraphNode], cache: dict[Key, Any]) -> dict[str, Any]:
    dependencies: dict[Key, set[Key]] = {key: set() for key in cache}
    dependents: dict[Key, set[Key]] = {key: set() for key in [*cache, *nodes]}
    waiting: dict[Key, set[Key]] = {}
    ready: dict[Key, None] = {}
    known = cache.keys()
    for key, node in nodes.items():
        dependencies[key] = needs = set(node.dependencies)
        missing = needs - known
        for dep in needs:
            dependents[dep].add(key)
        if missing:
            waiting[key] = missing
        else:
            ready[key] = None
    return {
        "dependencies": dependencies,
        "dependents": dependents,
        "waiting": waiting,
        "waiting_data": {key: set(users) for key, users in dependents.items()},
        "cache": cache,
        "ready": ready,
        "running": set(),
        "finished": set(),
        "released": set(),
    }
