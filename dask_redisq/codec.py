"""Objects to bytes and back: control data, values, blocks of tasks. No I/O here.

Blocks of about 128 tasks are pickled together: 110 bytes a task against 1,420 one by one.
`pickle` first, `cloudpickle` when it fails or when the pickle names ``__main__`` (`pickle`
writes a script's functions by name, and a worker has another ``__main__``).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack

from dask_redisq.marks import marked
from dask_redisq.pickler import dumps_by_value

__all__ = [
    "LARGE",
    "PROTOCOL",
    "Block",
    "KeptValue",
    "PackedBlock",
    "dumps",
    "loads",
    "pack",
    "unpack",
]

#: Bytes from which a constant is stored once, apart from the blocks that use it.
LARGE = 64 * 1024
PROTOCOL = 5


def pack(thing: Any) -> bytes:
    """Return control data (numbers, text, lists) as msgpack that Redis's Lua can read."""
    packed: bytes = msgpack.packb(thing, use_bin_type=False)
    return packed


def unpack(data: bytes | memoryview) -> Any:
    """Return what `pack`, or Redis's Lua, packed; text comes back as bytes."""
    return msgpack.unpackb(data, raw=True, strict_map_key=False)


def dumps(thing: Any, plain: Callable[[Any, int], bytes] = pickle.dumps) -> bytes:
    """Pickle `thing`, by value where `plain` cannot or would name ``__main__``."""
    try:
        data = plain(thing, PROTOCOL)
    except Exception:
        return dumps_by_value(thing, PROTOCOL)
    return dumps_by_value(thing, PROTOCOL) if b"__main__" in data else data


loads = pickle.loads


class KeptValue(NamedTuple):
    """A value of another, kept job that a task reads.

    Attributes
    ----------
    number : int
        Below 0: what the tasks of its user call it.
    job : str
        Which job keeps it.
    task : int
        Its number there.
    epoch : str
        In which it was made, if it would be another one when it is made again; else empty.
    """

    number: int
    job: str
    task: int
    epoch: str = ""


class Block(NamedTuple):
    """What a worker needs to run a block of consecutive tasks; one entry per task.

    Attributes
    ----------
    tasks : list
        As `dask_redisq.task.run_task` takes them.
    inputs : list of tuple of int
        Numbers of the tasks whose values a task needs, each once.
    users : list of tuple of int
        Numbers of the tasks that need its value, each once.
    outputs : frozenset of int
        Numbers of those tasks whose value the client waits for.
    restricted : dict of int to tuple of str
        Task number -> where it may run; see `dask_redisq.annotations`.
    limits : dict of int to tuple
        Task number -> the seconds that it may take, 0 for any; and how often it may fail and run
        again, -1 for what holds for its job. For tasks with limits of their own.
    outer : dict of int to tuple of KeptValue
        Task number -> what it reads of other jobs.
    seeds : dict of int to tuple of int
        Task number -> the seed of its random numbers, and which stream of that.
    kept : bool
        Whether the values of `outputs` stay, for later jobs.
    """

    tasks: list[Any]
    inputs: list[tuple[int, ...]]
    users: list[tuple[int, ...]]
    outputs: frozenset[int]
    restricted: dict[int, tuple[str, ...]]
    limits: dict[int, tuple[float, int]]
    outer: dict[int, tuple[KeptValue, ...]]
    seeds: dict[int, tuple[int, int]]
    kept: bool

    def near(self) -> list[Any]:
        """Return task, kept job and task there, for each value of such a job that it reads."""
        return [x for task, some in self.outer.items() for k in some for x in (task, k.job, k.task)]


class _Unpickler(pickle.Unpickler):
    """Reads what was left out of a block from `constants`."""

    constant: Callable[[str], Any]

    def persistent_load(self, digest: str) -> Any:
        return self.constant(digest)


class _MarkedUnpickler(_Unpickler):
    """Tells `reached` of each mark that it passes; see `dask_redisq.marks`."""

    reached: Callable[[int], object]

    def persistent_load(self, digest: str | int) -> Any:
        return self.reached(digest) if type(digest) is int else self.constant(str(digest))


class PackedBlock(NamedTuple):
    """A block as it came from the server, before anything in it is unpickled."""

    data: bytes
    buffers: list[str]
    made_by: dict[str, str]

    @classmethod
    def read(cls, payload: bytes | memoryview) -> PackedBlock:
        """Split the payload that `BlockEncoder.encode` made."""
        data, buffers, made_by = unpack(payload)
        made_by = {name.decode(): version.decode() for name, version in made_by.items()}
        return cls(data, [digest.decode() for digest in buffers], made_by)

    def open(
        self,
        fetch: Callable[[str], bytearray],
        fetch_object: Callable[[str], Any],
        reached: Callable[[int], object] | None = None,
    ) -> Block:
        """Unpickle the block.

        Parameters
        ----------
        fetch : callable
            Digest -> a constant's buffer; arrays in it are as writable as it is.
        fetch_object : callable
            Digest -> a constant that was pickled by itself.
        reached : callable, optional
            Called with the place of each task in the block, as its reading begins, and with -1 when
            all are read. Far slower with it.
        """
        buffers = [fetch(d) for d in self.buffers]
        if reached is None:
            reader = _Unpickler(io.BytesIO(self.data), buffers=buffers)
        else:
            reader = _MarkedUnpickler(io.BytesIO(marked(self.data)), buffers=buffers)
            reader.reached = reached
            reached(0)
        reader.constant = fetch_object
        return Block(*reader.load())
