"""pickle and cloudpickle, as graphs need them: with what these two leave out.

Where a function's code is, files that are open, the global generators; and advice.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import threading
from types import CodeType
from typing import Any

import cloudpickle

from dask_redisq.errors import TaskNotSerializable
from dask_redisq.generators import add_generators
from dask_redisq.open_files import add_open_files

__all__ = ["Pickler", "PlainPickler", "dumps_by_value", "dumps_plain"]


class _Table(dict[type, Any]):
    """How what is not of Python's basic types is pickled."""

    def __missing__(self, kind: type) -> Any:
        # Asked of each object. A ChainMap, which cloudpickle has, takes twice as long to say no.
        for some in _further:
            if kind in some:
                return some[kind]
        raise KeyError(kind)


#: In place of what cloudpickle does.
_table = _Table()
#: Where nobody registered anything.
_last: dict[type, Any] = {}
#: Cloudpickle's own and what users register, at any time; then that.
_further: list[dict[type, Any]] = [*cloudpickle.Pickler.dispatch_table.maps, _last]


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """Pickles functions of a script by value, open files and global generators by name."""

    dispatch_table = _table

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        add_generators(_table)  # NumPy may have been imported since,
        add_open_files(_last)  # or the library of a file
        super().__init__(*args, **kwargs)


class PlainPickler(pickle.Pickler):
    """Pickles functions by name, and global generators."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dispatch_table = dict(copyreg.dispatch_table)
        add_generators(self.dispatch_table)


def dumps_by_value(thing: Any, protocol: int, **kwargs: Any) -> bytes:
    """Pickle `thing` with `Pickler`."""
    return _dumps(Pickler, thing, protocol, kwargs)


def dumps_plain(thing: Any, protocol: int, **kwargs: Any) -> bytes:
    """Pickle `thing` with `PlainPickler`."""
    return _dumps(PlainPickler, thing, protocol, kwargs)


def _dumps(kind: type[Any], thing: Any, protocol: int, kwargs: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    kind(stream, protocol=protocol, **kwargs).dump(thing)
    return stream.getvalue()


def _reduce_code(code: CodeType) -> tuple[Any, tuple[Any, ...]]:
    # cloudpickle 3.1.3 names all files "<dynamic-code>", so that pickles of two sessions are equal
    # byte for byte. A traceback shows lines of the file that it names.
    make, args = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return _make_code, (code.co_filename, make, args)


def _make_code(file: str, make: Any, args: tuple[Any, ...]) -> CodeType:
    code: CodeType = make(*args)
    return code.replace(co_filename=file)


def _refuse_lock(lock: Any) -> Any:
    kind = type(lock)
    raise TaskNotSerializable(
        f"cannot pickle '{kind.__module__}.{kind.__qualname__}' object, a lock that holds within "
        "this process. If tasks are to take it, give them redisq.Lock(name) instead, which holds "
        "for all workers"
    )


_table[CodeType] = _reduce_code
_last[type(threading.Lock())] = _last[type(threading.RLock())] = _refuse_lock
