"""Large arguments that come again and again: sent once, as long as somebody has them.

Source: joblib's backend for distributed, which scatters them, and its memory maps.
"""

from __future__ import annotations

import hashlib
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple
from weakref import KeyedRef, ref

import cloudpickle
from dask.delayed import Delayed

from dask_redisq.errors import JobFailed, JobLost
from dask_redisq.queue import Queue
from dask_redisq.sizes import bytes_of

__all__ = ["ATOMS", "Batch", "LargeArguments", "Mark"]

#: Bytes from which an argument is sent by itself, and read from there: as it comes first, so that
#: it travels once, and as it comes again. What is smaller, or looks so, goes with its calls first:
#: most do not come again, and a job of its own, for each of them, costs more than it saves. So does
#: what is large, once it is seen that such arguments do not come again.
FIRST, AGAIN = 2**20, 2**18
#: Items that a container has at least, if one looks how large it is as it comes first.
MANY = 1000
#: Bytes up to which it is looked at each time whether its content is still the one that was sent;
#: joblib's own backends do so up to 1 MB.
CHECKED = 2**24
#: Neither large nor worth a look.
ATOMS = frozenset((int, float, bool, complex, str, type(None), slice))
_CONTAINERS = frozenset((list, tuple, dict, set, frozenset))


class Mark(NamedTuple):
    """Stands for an argument that is on the server, by its place among those of its batch."""

    place: int


class LargeArguments:
    """What one `Parallel` knows of the arguments of its calls.

    Called by one thread at a time, that which dispatches. What others have to say, that a batch is
    over or an object is garbage, is noted, and looked at by the next batch: garbage is collected
    anywhere, by who holds any lock.

    Parameters
    ----------
    queue : Queue
        Where they are scattered.
    words : Mapping, optional
        Keywords of `Queue.scatter`.

    Attributes
    ----------
    at_once : bool
        Whether they are as they come first: until one was sent so that did not come again.
    """

    def __init__(self, queue: Queue, words: Mapping[str, Any] | None = None) -> None:
        self.queue = queue
        self.words = dict(words or {})
        self.at_once = True
        self._known: dict[int, _Argument] = {}  # by id
        self._gone: deque[ref[Any]] = deque()
        self._over: deque[Batch] = deque()
        self._lost: deque[Delayed] = deque()

    def __repr__(self) -> str:
        return f"<LargeArguments on {self.queue!r}, {len(self._known)} known>"

    def batch(self) -> Batch:
        """Return what looks at the arguments of one batch; let go of what is of no more use."""
        while self._over:
            over = self._over.popleft()
            for known in over.new:
                if known.came == 1:  # one of many chunks, it seems: all would pile up there
                    known.sent, self.at_once = None, False
            for known in over.held:
                known.batches -= 1
                if not known.batches and self._known.get(id(known.arg)) is known:
                    del self._known[id(known.arg)]
        while self._lost:
            lost = self._lost.popleft()
            for known in self._known.values():
                if known.sent is lost:
                    known.sent = None
        while self._gone:
            gone: Any = self._gone.popleft()  # a KeyedRef
            there = self._known.get(gone.key)
            if there is not None and there.ref is gone:
                del self._known[gone.key]
        return Batch(self, self._over.append, self._lost.append)

    def find(self, arg: Any) -> _Argument:
        """Return what is known of an argument; nothing yet, if it is another one of that id."""
        known = self._known.get(id(arg))
        if known is None or not known.stands_for(arg):
            known = self._known[id(arg)] = _Argument(arg, self._gone.append)
        return known

    def clear(self) -> None:
        """Let go of all: the next calls have others."""
        self.at_once = True
        self._known.clear()
        self._over.clear()
        self._gone.clear()
        self._lost.clear()


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
    came : int
        In how many batches it came.
    sent : Delayed, optional
        What stands for it, once it was scattered.
    """

    __slots__ = ("_digest", "_inline", "arg", "batches", "came", "ref", "sent")

    def __init__(self, arg: Any, gone: Callable[[ref[Any]], object]) -> None:
        self.arg: Any = None
        self.ref: Any = None
        try:
            self.ref = KeyedRef(arg, gone, id(arg))
        except TypeError:  # a list, say
            self.arg = arg
        self.batches = self.came = 0
        self.sent: Delayed | None = None
        self._digest = b""
        self._inline = False

    def stands_for(self, arg: Any) -> bool:
        """Tell whether it is this one, and not another of the same id."""
        return (self.arg if self.ref is None else self.ref()) is arg

    def send(self, large: LargeArguments, arg: Any) -> Delayed | None:
        """Return what stands for it; None if it is to go with its calls."""
        self.came += 1
        if self._inline:
            return None
        first = self.came == 1
        if self.sent is None:
            size = 0 if first and (not large.at_once or _is_small(arg)) else bytes_of(arg)
            if size < (FIRST if first else AGAIN):
                self._inline = not first
                return None
            self._digest = _digest(arg) if size <= CHECKED else b""
            self.sent = large.queue.scatter(arg, **large.words)
        elif self._digest and self._digest != _digest(arg):
            self.sent, self._inline = None, True  # who refills it does so again
        return self.sent


class Batch:
    """Looks at the arguments of one batch, and holds what it needs of them while that is under way.

    Attributes
    ----------
    held : list
        What is known of those that nothing else would keep from being garbage.
    new : list
        What is known of those that came for the first time, and are on the server.
    parts : list of Delayed
        What stands for those that are on the server, by place.
    """

    def __init__(
        self,
        known: LargeArguments,
        over: Callable[[Batch], object],
        lost: Callable[[Delayed], object],
    ) -> None:
        self._all = known
        self._tell_over, self._tell_lost = over, lost
        self.held: list[_Argument] = []
        self.new: list[_Argument] = []
        self.parts: list[Delayed] = []
        self._places: dict[int, Mark | None] = {}  # by id

    def marked(self, args: Iterable[Any]) -> tuple[Any, ...]:
        """Return arguments with marks in place of what is large, and is on the server."""
        return tuple([arg if type(arg) in ATOMS else self._mark(arg) for arg in args])

    def over(self, _: object) -> None:
        """Note that its calls are done."""
        self.parts.clear()
        if self.held or self.new:
            self._tell_over(self)

    def lost(self, error: BaseException) -> bool:
        """Tell whether its calls failed since the server lost what stands for their arguments."""
        if not isinstance(error, JobLost | JobFailed):
            return False
        lost = [part for part in self.parts if not part.__dask_graph__()[part.key].kept.lives()]
        for part in lost:
            self._tell_lost(part)
        return bool(lost)

    def _mark(self, arg: Any) -> Any:
        if id(arg) not in self._places:  # within a batch it goes once in any case
            known = self._all.find(arg)
            if known.ref is None:
                known.batches += 1
                self.held.append(known)
            part = known.send(self._all, arg)
            self._places[id(arg)] = None if part is None else Mark(len(self.parts))
            if part is not None:
                self.parts.append(part)
                if known.came == 1:
                    self.new.append(known)
        mark = self._places[id(arg)]
        return arg if mark is None else mark


def _is_small(arg: Any) -> bool:
    """Tell, at once, whether an argument is one of the many that are."""
    if type(arg) in _CONTAINERS:
        return len(arg) < MANY
    try:
        size = getattr(arg, "nbytes", FIRST)
    except Exception:  # of code that is not ours
        return True
    return type(size) is int and size < FIRST


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
