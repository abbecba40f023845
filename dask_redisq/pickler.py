"""cloudpickle, and what it leaves out: where a function's code is, files that are open, advice."""

from __future__ import annotations

import io
import threading
from types import CodeType
from typing import Any

import cloudpickle

from dask_redisq.errors import TaskNotSerializable
from dask_redisq.open_files import add_open_files

__all__ = ["Pickler", "dumps"]


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
    """Pickles functions of a script by value, and open files by name."""

    dispatch_table = _table

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        add_open_files(_last)  # their library may have been imported since
        super().__init__(*args, **kwargs)


def dumps(thing: Any, protocol: int, **kwargs: Any) -> bytes:
    """Pickle `thing`."""
    stream = io.BytesIO()
    Pickler(stream, protocol=protocol, **kwargs).dump(thing)
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
