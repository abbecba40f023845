"""Global generators of random numbers travel by name, and are the worker's own there. No I/O.

``random.random`` and ``numpy.random.rand`` are methods of an object, and pickle with the state that
it has here: each worker would draw from a copy, which no seed reaches, and each block of tasks from
a copy of the same state. By its name it is the worker's own. A generator that a user made is data.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["add_generators"]

_PROTOCOL = 5


def add_generators(table: dict[type, Callable[[Any], Any]]) -> None:
    """Enter how to pickle generators: NumPy's if it is imported; else nothing can hold it."""
    table[random.Random] = _reduce_python
    kind = getattr(sys.modules.get("numpy.random.mtrand"), "RandomState", None)
    if kind is not None:  # as it is while another thread still imports it
        table[kind] = _reduce_numpy


def _global(module: str, name: str) -> Any:
    """Return a global generator, in the process that unpickles."""
    return getattr(import_module(module), name)


def _named(generator: Any, module: str, name: str) -> Any:
    """Reduce the generator of that name to it, and others of its type as ever."""
    if generator is _global(module, name):
        return _global, (module, name)
    return generator.__reduce_ex__(_PROTOCOL)


def _reduce_python(generator: Any) -> Any:
    return _named(generator, "random", "_inst")


def _reduce_numpy(generator: Any) -> Any:
    return _named(generator, "numpy.random.mtrand", "_rand")
