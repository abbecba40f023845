"""Pickles blocks of tasks, around the large constants in them. No I/O here.

A constant above 64 kB (an array passed to a function, data in a closure) is pulled out of its
block and stored once, by the digest of its content, for each slot to fetch once: doRedis's job
environment, which a worker downloads once per job.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle

from dask_redisq.alike import Alike, may_be_part
from dask_redisq.codec import LARGE, PROTOCOL, Block, dumps, pack
from dask_redisq.errors import ValueTooLarge
from dask_redisq.pickler import Pickler, PlainPickler, dumps_by_value, dumps_plain
from dask_redisq.versions import versions

__all__ = ["BlockEncoder"]

#: Containers with fewer items, and less text in them, are not looked at as constants of their own,
#: unless several tasks of a block share them.
MANY_ITEMS = 1024
FEW_ITEMS = 8
_TEXT = (str, bytes, bytearray)
_CONTAINERS = (list, tuple, dict, set, frozenset)
#: Not worth a look, however often they come.
_ATOMS = frozenset((int, float, bool, complex, type(None), type(...)))

Namer = Callable[[bytes | memoryview], str]


class _Constants:
    """The large constants of one job, each stored once by its content."""

    def __init__(self, store: Callable[[str, bytes], None], name: Namer) -> None:
        self._store = store
        self._name = name
        self._stored: set[str] = set()
        # id -> (the object, so that its id is not used again; digest). Hashing 100 MB takes
        # 0.1 s, and the same array comes in every block.
        self._known: dict[tuple[int, int], tuple[Any, str]] = {}
        #: Key of a container, by `Alike` -> the first one, and its digest, if it is large.
        self._alike: dict[Any, tuple[Any, str | None]] = {}
        #: By id, what several tasks share and a container of theirs may hold.
        self.parts: dict[int, Any] = {}

    def keep_buffer(self, buffer: pickle.PickleBuffer) -> str:
        """Store a buffer's bytes; return their digest."""
        with buffer.raw() as view:
            who = (id(view.obj), view.nbytes)
            if who not in self._known:
                self._known[who] = (view.obj, self._keep(view))
            return self._known[who][1]

    def keep_object(self, thing: Any) -> str | None:
        """Store the pickle of `thing` if that is large; return its digest, else None."""
        who = (id(thing), -1)
        if who not in self._known:
            try:
                by_value = cloudpickle.list_registry_pickle_by_value()
                data = dumps_by_value(thing, PROTOCOL) if by_value else dumps(thing, dumps_plain)
                if len(data) > LARGE and not _is_large_beside_buffers(thing):
                    data = b""
            except Exception:  # only as a part of what is around it, if at all
                data = b""
            self._known[who] = (thing, self._keep(data) if len(data) > LARGE else "")
        return self._known[who][1] or None

    def keep_alike(self, thing: Any, key: Any) -> str | None:
        """Do so once for all containers with the same `key`, if it has one."""
        if key is None:
            return self.keep_object(thing)
        if key not in self._alike:
            self._alike[key] = (thing, self.keep_object(thing))
        return self._alike[key][1]

    def is_small(self, thing: Any) -> bool:
        """Tell whether `keep_object` found `thing` to be too small, before."""
        return self._known.get((id(thing), -1), (None, None))[1] == ""

    def _keep(self, data: bytes | memoryview) -> str:
        digest = self._name(data)
        if digest not in self._stored:
            self._store(digest, bytes(data))
            self._stored.add(digest)  # not before: a refused one would be taken for stored
        return digest


def _is_large_beside_buffers(thing: Any) -> bool:
    """Tell whether a pickle is large without the buffers that are stored by themselves.

    Ten lists of one array, and of something small of their own, would be stored with it ten times.
    """
    rest = dumps_by_value(
        thing, PROTOCOL, buffer_callback=lambda buffer: buffer.raw().nbytes < LARGE
    )
    return len(rest) > LARGE


def _may_be_large(thing: Any) -> bool:
    kind = type(thing)
    if kind in _TEXT:
        return len(thing) > LARGE
    if kind not in _CONTAINERS or len(thing) < FEW_ITEMS:
        return False
    return len(thing) >= MANY_ITEMS or _text_in(thing) > LARGE


def _text_in(things: Any) -> int:
    """Return the length of the text right inside a container."""
    text = sum(len(x) for x in things if type(x) in _TEXT)
    return text + _text_in(things.values()) if type(things) is dict else text


class _Around:
    """Leaves large objects out of a pickle; for blocks that are large without them.

    What an object takes is only known once it is pickled. That is tried with those that look
    large, and with those that the block has several times: an instance, a data frame, a function
    with data in its closure, in the arguments of each task.
    """

    constants: _Constants
    left_out: list[str]
    #: By id, what was seen once (held, or its id would come again), and what came again.
    seen: dict[int, Any]
    again: dict[int, Any]
    #: What came again the last time.
    shared: dict[int, Any]
    keys: dict[int, Any]  # of `Alike`

    def persistent_id(self, thing: Any) -> str | None:
        if type(thing) in _ATOMS:
            return None
        who = id(thing)
        if who in self.shared or _may_be_large(thing):
            digest = self.constants.keep_alike(thing, self.keys.get(who))
            if digest is not None:
                self.left_out.append(digest)
            return digest
        if who in self.seen:
            if type(thing) not in _TEXT and not self.constants.is_small(thing):
                self.again[who] = thing
        else:
            self.seen[who] = thing
        return None


class _PickleAround(_Around, PlainPickler):
    pass


class _CloudPickleAround(_Around, Pickler):
    pass


class BlockEncoder:
    """Pickle the blocks of one job, and store its large constants on the way.

    Parameters
    ----------
    store : callable
        Called as ``store(digest, data)`` once for each constant, before the block that uses it
        is returned.
    name : callable
        Content -> its digest, `Seal.name_constant` for instance.
    """

    def __init__(self, store: Callable[[str, bytes], None], name: Namer) -> None:
        self._constants = _Constants(store, name)
        # pickle would write what is of a module registered for that by its name.
        self._by_cloudpickle = bool(cloudpickle.list_registry_pickle_by_value())
        self._keys: dict[int, Any] = {}

    def encode(self, block: Block) -> tuple[bytes, list[str]]:
        """Return the payload of `block`, and the digests of the constants that it uses.

        Raises
        ------
        Exception
            Whatever pickling raises, `TypeError` for a lock for instance.
        """
        data, buffers, objects = self._pickle(block)
        if len(data) > LARGE:
            # Something without a buffer of its own is large: text, a list, an object. Looking at
            # every object costs a Python call for each; only blocks of this size pay for it.
            # Most of them pay once: a second look is for what several of its tasks share.
            shared: dict[int, Any] = {}
            data, buffers, objects = self._pickle(block, shared)
            parts = self._constants.parts
            parts.update({who: x for who, x in shared.items() if may_be_part(x)})
            if len(data) > LARGE and parts:
                alike = Alike(block.tasks, parts)
                shared.update(alike.found)
                self._keys = alike.keys
            if len(data) > LARGE and shared:
                data, buffers, objects = self._pickle(block, shared)
            self._keys = {}
        return pack([data, buffers, versions()]), buffers + objects

    def _pickle(
        self, block: Block, shared: dict[int, Any] | None = None
    ) -> tuple[bytes, list[str], list[str]]:
        """Pickle a block, around what is large if `shared` is given, and add to that."""
        around = shared is not None
        if not self._by_cloudpickle:
            try:
                kind = _PickleAround if around else PlainPickler
                packed = self._pickle_by(kind, block, shared)
            except ValueTooLarge:
                raise
            except Exception:
                # cloudpickle can, or its error says why not. A lambda comes again in
                # each block, so pickle is not tried again for this job.
                self._by_cloudpickle = True
            else:
                if b"__main__" not in packed[0]:
                    return packed
                self._by_cloudpickle = True
        return self._pickle_by(_CloudPickleAround if around else Pickler, block, shared)

    def _pickle_by(
        self, kind: Any, block: Block, shared: dict[int, Any] | None
    ) -> tuple[bytes, list[str], list[str]]:
        buffers: list[str] = []
        objects: list[str] = []

        def keep(buffer: pickle.PickleBuffer) -> bool:
            with buffer.raw() as view:
                small = view.nbytes < LARGE
            if not small:
                buffers.append(self._constants.keep_buffer(buffer))
            return small  # true: it stays inside the pickle

        stream = io.BytesIO()
        pickler = kind(stream, protocol=PROTOCOL, buffer_callback=keep)
        if isinstance(pickler, _Around):
            pickler.constants, pickler.left_out = self._constants, objects
            pickler.seen, pickler.again, pickler.shared = {}, {}, shared or {}
            pickler.keys = self._keys
        pickler.dump(tuple(block))
        if isinstance(pickler, _Around) and shared is not None:
            shared.update(pickler.again)
        return stream.getvalue(), buffers, objects
