"""The functions of a loop on their way to slots: in one piece, which a process reads once. No I/O.

Source: the environment that doRedis exports once per job, in which the functions of a loop are at
home. A body comes with each block of calls. Were it read with each of them, its functions had other
global names each time, and what `worker_init` had set for the first block was gone in the second.
"""

from __future__ import annotations

import dis
import io
import pickle
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from inspect import getattr_static
from types import CodeType, FunctionType, MethodType
from typing import Any

import cloudpickle

from dask_redisq.body import forget_setup
from dask_redisq.codec import LARGE, PROTOCOL, loads
from dask_redisq.pickler import Pickler
from dask_redisq.staying import leave, stay

__all__ = ["Parcel", "functions_in"]

Globals = dict[str, Any]

_opened: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


class Parcel:
    """A callable that is pickled once, with all functions that it calls, and is itself elsewhere.

    Parameters
    ----------
    token : str
        Of this loop, and no other; also that of its `Setup`.
    call : callable
        What slots find in its place.
    functions : sequence of callable
        The user's, in `call`.
    export : Mapping of str to object
        Global names that are set for these functions, and for those of their modules that travel
        with them.
    noexport : sequence of str
        Global names that do not travel with them.
    """

    def __init__(
        self,
        token: str,
        call: Callable[..., Any],
        functions: tuple[Callable[..., Any], ...],
        export: Mapping[str, Any],
        noexport: tuple[str, ...] = (),
    ) -> None:
        self.token = token
        self._call = call
        self._functions = functions
        self._export = dict(export)
        self._noexport = noexport
        #: Whether more jobs may come with it. If not it goes with its blocks: they are of one job,
        #: which slots remember, and what `worker_init` loaded may be large.
        self.further = True
        self._packed: tuple[Any, ...] | None = None

    def __repr__(self) -> str:
        return f"<Parcel of {self._call!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._packed is None:
            self._packed = self._pack()
        return _read, (self.token, self.further, *self._packed)

    def open(self) -> Callable[..., Any]:
        """Return what a slot finds in its place: here, if this process is one."""
        read, args = self.__reduce__()
        found: Callable[..., Any] = read(*args)
        return found

    def _pack(self) -> tuple[Any, ...]:
        buffers: list[pickle.PickleBuffer] = []

        def keep(buffer: pickle.PickleBuffer) -> bool:
            with buffer.raw() as view:
                small = view.nbytes < LARGE
            if not small:
                buffers.append(buffer)  # the block's pickler stores it once, by its content
            return small

        stream = io.BytesIO()
        pickler = _Pickler(stream, protocol=PROTOCOL, buffer_callback=keep)
        pickler.settle(self._functions, {*self._export, *self._noexport})
        pickler.dump((self._call, pickler.anchors(), self._export))
        return (stream.getvalue(), *buffers)


def _read(token: str, further: bool, data: bytes, *buffers: Any) -> Any:  # noqa: FBT001 - pickled
    """Return the callable of a parcel, the same one however often it comes to this process."""
    found = _opened.get(token)
    if found is None:
        found, anchors, export = loads(data, buffers=buffers)
        for anchor in anchors:
            anchor.__globals__.update(export)
        _opened[token] = found
        # Another one would have names of its own, which nothing has set up.
        weakref.finalize(found, forget_setup, token).atexit = False
    if further:
        stay(token, found, time.monotonic())
    else:
        leave(token)
    return found


class _Pickler(Pickler):
    """Leaves some global names out of functions, and sends those that use them by value."""

    def settle(self, functions: tuple[Callable[..., Any], ...], names: set[str]) -> None:
        """Say whose names these are: of some functions, and of all others of their modules."""
        roots = [fn for some in functions for fn in functions_in(some)] if names else []
        self._roots = {id(fn) for fn in roots}
        self._names = names
        self._touched = names.union(*[_names_in(fn.__code__, {"STORE_GLOBAL"}) for fn in roots])
        self._homes = {id(fn.__globals__): fn.__globals__ for fn in roots}
        #: The same without those names. One for each module: functions that share their names here
        #: share them when they are read, too.
        self._left: dict[int, Globals] = {}

    def anchors(self) -> list[FunctionType]:
        """Return a function of each of these modules: where it is read it shows their names."""
        return [FunctionType(_anchor.__code__, home) for home in self._homes.values()]

    def reducer_override(self, thing: Any) -> Any:
        if type(thing) is FunctionType and id(thing.__globals__) in self._homes:
            by_value = id(thing) in self._roots or not _is_found(thing)
            if by_value or self._touches(thing, set()):
                thing = self._without_names(thing)
        return super().reducer_override(thing)

    def _touches(self, fn: FunctionType, seen: set[int]) -> bool:
        """Tell whether a function uses one of the names, itself or through its neighbours."""
        seen.add(id(fn))
        used = _names_in(fn.__code__)
        if used & self._touched:
            return True
        there = [fn.__globals__.get(name) for name in used]
        return any(
            self._touches(other, seen)
            for other in there
            if type(other) is FunctionType
            and other.__globals__ is fn.__globals__
            and id(other) not in seen
        )

    def _without_names(self, fn: FunctionType) -> FunctionType:
        home = fn.__globals__
        if id(home) not in self._left:
            self._left[id(home)] = {k: v for k, v in home.items() if k not in self._names}
        # Another object than the one that its module has under its name: so it travels by value.
        new = FunctionType(
            fn.__code__, self._left[id(home)], fn.__name__, fn.__defaults__, fn.__closure__
        )
        new.__kwdefaults__, new.__annotations__ = fn.__kwdefaults__, fn.__annotations__
        new.__dict__.update(fn.__dict__)
        new.__doc__, new.__module__, new.__qualname__ = fn.__doc__, fn.__module__, fn.__qualname__
        return new


def _anchor() -> None:
    """Do nothing: what counts is where it is at home."""


def functions_in(thing: Any) -> list[FunctionType]:
    """Return the functions of the user that a callable is made of, as far as one can see.

    Those of a bound method, a partial, a decorated function, an object that can be called, a class
    of a script; none for a builtin, and for what travels by its name in any case.
    """
    found: dict[int, FunctionType] = {}
    seen: set[int] = set()
    left = [thing]
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if type(one) is FunctionType and not _is_ours(one.__globals__.get("__name__")):
            found[id(one)] = one
        left += _inside(one)
    return list(found.values())


def _inside(thing: Any) -> list[Any]:
    if type(thing) is FunctionType:
        cells = [_content(cell) for cell in thing.__closure__ or ()]
        return [some for some in cells if isinstance(some, FunctionType | MethodType | partial)]
    if isinstance(thing, MethodType):
        return [thing.__func__]
    if isinstance(thing, partial):
        return [thing.func]
    if isinstance(thing, type):
        return [] if _is_found(thing) else [some for some in vars(thing).values() if callable(some)]
    if _is_ours(type(thing).__module__):
        return [some for some in vars(thing).values() if callable(some)]
    return [] if _is_found(type(thing)) else [getattr_static(type(thing), "__call__", None)]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty yet
        return None


def _is_ours(module: Any) -> bool:
    return str(module).partition(".")[0] == __name__.partition(".")[0]


def _is_found(thing: Any) -> bool:
    """Tell whether cloudpickle sends a function or class by its name."""
    name, registered = thing.__module__ or "__main__", cloudpickle.list_registry_pickle_by_value()
    if name == "__main__" or any(name == one or name.startswith(f"{one}.") for one in registered):
        return False
    found: Any = sys.modules.get(name)
    for part in thing.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is thing


def _names_in(code: CodeType, how: set[str] | None = None) -> set[str]:
    """Return the global names that code may use, in the functions that it holds, too."""
    if how is None:
        names = set(code.co_names)
    else:
        names = {str(step.argval) for step in dis.get_instructions(code) if step.opname in how}
    inside = [const for const in code.co_consts if isinstance(const, CodeType)]
    return names.union(*[_names_in(one, how) for one in inside])
