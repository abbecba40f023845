"""What makes an answer of a job's outputs: in its client, or in another process that attaches.

For a detached job it is stored with the job: pickled, signed, checked and unpickled here only.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dask._task_spec import GraphNode
from dask.typing import Key

from dask_redisq.codec import dumps, loads
from dask_redisq.trust import Seal

__all__ = ["Answer", "assemble", "pack_names", "unpack_names"]

#: What is signed, in the words of `Seal`.
ANSWER, NAMES = "answer", "names"


def assemble(
    keys: Any,
    values: dict[Key, Any],
    local: Mapping[Key, GraphNode],
    around: Callable[[Key, Callable[[], Any]], Any] = lambda _, compute: compute(),
) -> Any:
    """Return what a Dask scheduler returns for `keys`: a value, or for a list a tuple of such.

    Parameters
    ----------
    keys : hashable, or nested list of hashable
        What was asked for.
    values : dict
        Key -> value, of outputs and constants; it gets those of `local` too.
    local : Mapping
        Key -> node that is computed here from `values`, such as the last step of an array.
    around : callable, optional
        Called as ``around(key, compute)`` for each of these; returns what ``compute()`` does.
    """
    for key, node in local.items():
        needs = {k: values[k] for k in node.dependencies}
        values[key] = around(key, partial(node, needs))
    return _nested(keys, values)


def _nested(keys: Any, values: Mapping[Key, Any]) -> Any:
    if isinstance(keys, list):
        return tuple(_nested(key, values) for key in keys)
    return values[keys]


@dataclass
class Answer:
    """The way from a detached job's outputs to what its user asked for.

    Attributes
    ----------
    keys : list of hashable
        One requested key per collection.
    outputs : dict of hashable to int
        Requested key -> its task.
    constants : dict of hashable to object
        Requested key -> its value, where the graph held that value itself.
    local : dict of hashable to GraphNode
        Requested keys that the reader computes itself.
    repack : callable
        Puts the values of the collections where these stood in the arguments; gives a tuple.
    single : bool
        Whether there was one argument: its value alone is the answer then.
    """

    keys: list[Key]
    outputs: dict[Key, int]
    constants: dict[Key, Any]
    local: dict[Key, GraphNode]
    repack: Callable[[Any], tuple[Any, ...]]
    single: bool

    def encode(self, seal: Seal) -> bytes:
        """Return it as the bytes that are stored."""
        parts = self.keys, self.outputs, self.constants, self.local, self.repack, self.single
        return seal.sign(ANSWER, b"", 0, dumps(parts))

    @classmethod
    def decode(cls, data: bytes, seal: Seal) -> Answer:
        """Return what `encode` made bytes of.

        Raises
        ------
        BadSignature
            If that was somebody without our secret.
        """
        return cls(*loads(seal.open(ANSWER, b"", 0, data)))

    def value(self, received: Mapping[int, Any]) -> Any:
        """Return the answer; `received` is task -> value, for all outputs."""
        values = {key: received[task] for key, task in self.outputs.items()}
        found = assemble(self.keys, {**self.constants, **values}, self.local)
        repacked = self.repack(found)
        return repacked[0] if self.single else repacked


def pack_names(keys: Sequence[Key], seal: Seal) -> bytes:
    """Return the graph key of each task as bytes; only an error's message needs them."""
    return seal.sign(NAMES, b"", 0, zlib.compress(dumps(list(keys)), 1))


def unpack_names(data: bytes, seal: Seal) -> list[Key]:
    """Return what `pack_names` packed.

    Raises
    ------
    BadSignature
        As for `Answer.decode`.
    """
    names: list[Key] = loads(zlib.decompress(seal.open(NAMES, b"", 0, data)))
    return names
