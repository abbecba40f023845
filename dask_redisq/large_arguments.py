"""Large arguments that come again and again: sent once, as long as somebody has them.

Source: joblib's backend for distributed, which scatters them, and its memory maps.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from weakref import KeyedRef, WeakValueDictionary, ref

import cloudpickle
from dask.sizeof import sizeof

from dask_redisq.cache import ValueCache
from dask_redisq.compute import lay_down
from dask_redisq.errors import JobLost
from dask_redisq.host import memory
from dask_redisq.memory import JobEnded, JobMemory
from dask_redisq.persist import KeptJob
from dask_redisq.queue import Queue
from dask_redisq.secret import find_secret
from dask_redisq.serving import served_url
from dask_redisq.settings import setting
from dask_redisq.staying import stay

__all__ = ["ATOMS", "Batch", "LargeArguments", "Mark", "read"]

#: Bytes from which an argument that comes again is sent once, and read from there; and from which
#: it is so at once. A job of its own costs as much as to send the least of the latter again.
AGAIN, AT_ONCE = 2**18, 2**20
#: Bytes up to which it is looked at each time whether its content is still the one that was sent;
#: joblib's own backends do so up to 1 MB.
CHECKED = 2**24
#: Neither large nor worth a look.
ATOMS = frozenset((int, float, bool, complex, str, type(None), slice))


class Mark(NamedTuple):
    """Stands for an argument that is read from the server: the constant of a kept job."""

    queue: str
    job: str


class LargeArguments:
    """What one `Parallel` knows of the arguments of its calls.

    Called by one thread at a time, that which dispatches. What others have to say, that a batch is
    over or an object is garbage, is noted, and looked at by the next batch: garbage is collected
    anywhere, by who holds any lock.

    Parameters
    ----------
    queue : Queue
        Where they are scattered.
    """

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        #: How many calls of the `Parallel` there were.
        self.call = 0
        self._known: dict[int, _Argument] = {}  # by id
        self._gone: deque[ref[Any]] = deque()
        self._over: deque[Batch] = deque()

    def __repr__(self) -> str:
        return f"<LargeArguments on {self.queue!r}, {len(self._known)} known>"

    def batch(self) -> Batch:
        """Return what looks at the arguments of one batch; let go of what is of no more use."""
        while self._over:
            for known in self._over.popleft().held:
                known.batches -= 1
                if not known.batches and self._known.get(id(known.arg)) is known:
                    del self._known[id(known.arg)]
        while self._gone:
            gone: Any = self._gone.popleft()  # a KeyedRef
            there = self._known.get(gone.key)
            if there is not None and there.ref is gone:
                del self._known[gone.key]
        return Batch(self, self._over.append)

    def next_call(self) -> None:
        """Note that a call of the `Parallel` is over: between two, all may change."""
        self.call += 1

    def find(self, arg: Any) -> _Argument:
        """Return what is known of an argument; nothing yet, if its content is another one."""
        known = self._known.get(id(arg))
        if known is not None and known.stands_for(arg):
            if known.call == self.call:
                return known
            known.call = self.call
            if known.sent is not None and known.digest == _digest(arg):
                return known
        known = self._known[id(arg)] = _Argument(arg, self._gone.append)
        known.call = self.call
        return known

    def clear(self) -> None:
        """Let go of all."""
        self._known.clear()
        self._over.clear()
        self._gone.clear()


class _Argument:
    """An argument that came.

    Attributes
    ----------
    ref : KeyedRef, optional
        To it.
    arg : object
        Itself if it can have no such reference: held by the batches that use it, so that its id is
        not used again.
    batches : int
        How many do.
    call : int
        In which call of the `Parallel` it was looked at.
    sent : KeptJob, optional
        What has it on the server.
    """

    __slots__ = ("_inline", "_seen", "_size", "arg", "batches", "call", "digest", "ref", "sent")

    def __init__(self, arg: Any, gone: Callable[[ref[Any]], object]) -> None:
        self.arg: Any = None
        self.ref: Any = None
        try:
            self.ref = KeyedRef(arg, gone, id(arg))
        except TypeError:  # a list, say
            self.arg = arg
        self.batches = self.call = 0
        self.sent: KeptJob | None = None
        self.digest = b""
        self._size = _size(arg)
        self._seen = False
        self._inline = self._size < AGAIN

    def stands_for(self, arg: Any) -> bool:
        """Tell whether it is this one, and not another of the same id."""
        return (self.arg if self.ref is None else self.ref()) is arg

    def send(self, queue: Queue, arg: Any) -> KeptJob | None:
        """Return what has it on the server; None if it is to go with its calls."""
        if self._inline:
            return None
        if self.sent is None:
            again, self._seen = self._seen, True
            if not again and self._size < AT_ONCE:
                return None
            self.digest = _digest(arg)
            try:
                self.sent = lay_down(queue.pool, queue.keys, arg)
            except Exception:  # the call that has it in place tells of it, by its own name
                self._inline = True
        elif self._size <= CHECKED and self.digest != _digest(arg):
            self.sent, self._inline = None, True  # who refills it does so again
        return self.sent


class Batch:
    """Looks at the arguments of one batch, and holds what it needs of them while that is under way.

    Attributes
    ----------
    held : list
        What is known of those that nothing else would keep from being garbage.
    """

    def __init__(self, known: LargeArguments, over: Callable[[Batch], object]) -> None:
        self._all = known
        self._tell_over = over
        self._inline: set[int] = set()
        self._sent: list[KeptJob] = []
        self.held: list[_Argument] = []

    def marked(self, args: Iterable[Any]) -> tuple[Any, ...]:
        """Return arguments with marks in place of what is large, which is sent by itself."""
        return tuple([arg if type(arg) in ATOMS else self._mark(arg) for arg in args])

    def over(self, _: object) -> None:
        """Note that its calls are done."""
        self._sent.clear()
        if self.held:
            self._tell_over(self)

    def _mark(self, arg: Any) -> Any:
        if id(arg) in self._inline:  # within a batch it goes once in any case
            return arg
        known = self._all.find(arg)
        if known.ref is None:
            known.batches += 1
            self.held.append(known)
        kept = known.send(self._all.queue, arg)
        if kept is None:
            self._inline.add(id(arg))
            return arg
        self._sent.append(kept)
        return Mark(kept.keys.queue, kept.id)


def read(mark: Mark) -> Any:
    """Return the argument that a mark stands for; on a worker, which keeps it for a while."""
    cache = _caches.get(_NAME)
    if cache is None:
        limit = int(memory() * setting("kept-memory") / (os.cpu_count() or 1))
        cache = _caches[_NAME] = ValueCache(limit)
    stay(_NAME, cache, time.monotonic())
    found = cache.found([mark])
    if not found:
        value, size = _fetch(mark)
        cache.put(mark, value, size)
        return value
    return found[mark]


def _fetch(mark: Mark) -> tuple[Any, int]:
    """Return the argument, from the block of the task that has it, and its size."""
    with Queue(mark.queue, served_url() or None) as queue, queue.pool.lend() as link:
        seal = find_secret(queue.pool.url).seal(mark.queue, mark.job)
        there = JobMemory(link, queue.keys, mark.job, seal)
        try:
            there.load_blocks([0], lambda *_: None)
        except JobEnded as why:
            raise JobLost(f"a large argument of this call is gone from the server: {why}") from None
        _, (value,), *_ = there.blocks[0].tasks[0]
        return value, there.size


_NAME = "joblib"
_caches: WeakValueDictionary[str, ValueCache] = WeakValueDictionary()


def _digest(arg: Any) -> bytes:
    """Return a digest of the content of an argument; empty for what does not pickle.

    Not `joblib.hash`, whose pickler is in Python: a list of many objects takes it seconds.
    """
    for dumps in (pickle.dumps, cloudpickle.dumps):
        buffers: list[pickle.PickleBuffer] = []
        try:
            found = hashlib.sha256(dumps(arg, protocol=5, buffer_callback=buffers.append))
        except Exception:  # noqa: S112 - who sends it tells
            continue
        for buffer in buffers:
            with buffer.raw() as view:
                found.update(view)
        return found.digest()
    return b""


def _size(arg: Any) -> int:
    try:
        return int(sizeof(arg))
    except Exception:  # of an object that does not like to be looked at
        return 0
