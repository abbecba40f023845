"""Picklers that send the global generators of random numbers by name. No I/O.

``random.random`` and ``numpy.random.rand`` are methods of an object, and pickle with the state that
it has here: each worker would draw from a copy, which no seed reaches, and each block of tasks from
a copy of the same state. By its name it is the worker's own. A generator that a user made is data.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import random
import sys
from collections import ChainMap
from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar

import cloudpickle

__all__ = ["ByName", "CloudByName", "cloud_dumps", "plain_dumps"]

PROTOCOL = 5

#: Type -> how one is pickled; the picklers' C code looks it up, so that it costs others nothing.
_reducers: dict[type, Callable[[Any], Any]] = {}


def _global(module: str, name: str) -> Any:
    """Return a global generator, in the process that unpickles."""
    return getattr(import_module(module), name)


def _named(module: str, name: str) -> Callable[[Any], Any]:
    """Return what pickles the generator of that name by it, and others of its type as ever."""
    its = _global(module, name)

    def reduce(generator: Any) -> Any:
        named = generator is its
        return (_global, (module, name)) if named else generator.__reduce_ex__(PROTOCOL)

    return reduce


def _know_numpy() -> None:
    """Note NumPy's generator, once NumPy is imported: before, nothing to be pickled holds it."""
    numpy = sys.modules.get("numpy.random.mtrand")
    kind = getattr(numpy, "RandomState", None)  # none while another thread still imports it
    if kind is not None and kind not in _reducers:
        _add(kind, _named("numpy.random.mtrand", "_rand"))


def _add(kind: type, reducer: Callable[[Any], Any]) -> None:
    _reducers[kind] = _cloud_reducers[kind] = reducer


_by_cloudpickle = cloudpickle.Pickler.dispatch_table.maps
_cloud_reducers = dict(_by_cloudpickle[0])
_add(random.Random, _named("random", "_inst"))


class ByName(pickle.Pickler):
    """What `pickle.Pickler` is, but for global generators."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _know_numpy()
        self.dispatch_table = {**copyreg.dispatch_table, **_reducers}


class CloudByName(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """What `cloudpickle.Pickler` is, but for global generators."""

    dispatch_table: ClassVar[Any] = ChainMap(_cloud_reducers, *_by_cloudpickle[1:])

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _know_numpy()


def plain_dumps(thing: Any, *, protocol: int = PROTOCOL) -> bytes:
    """Do what `pickle.dumps` does, with `ByName`."""
    return _dumps(ByName, thing, protocol)


def cloud_dumps(thing: Any, *, protocol: int = PROTOCOL) -> bytes:
    """Do what `cloudpickle.dumps` does, with `CloudByName`."""
    return _dumps(CloudByName, thing, protocol)


def _dumps(kind: Callable[..., Any], thing: Any, protocol: int) -> bytes:
    stream = io.BytesIO()
    kind(stream, protocol=protocol).dump(thing)
    return stream.getvalue()
