"""What each iteration of a loop does in a slot: set up, seed, call, catch. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import FunctionType
from typing import Any

from dask_redisq.remote_error import pack_error, unpack_error
from dask_redisq.seeding import restored, seeded
from dask_redisq.serving import name_of_slot

__all__ = ["Body", "Caught", "Reduced", "Setup", "catching", "with_globals"]

#: Tokens of the loops whose setup this process has done.
_done: set[str] = set()


@dataclass(frozen=True)
class Setup:
    """What a slot process does once per loop, before the first iteration that it runs.

    Attributes
    ----------
    token : str
        Of this loop, and no other.
    packages : tuple of str
        Modules to import: doRedis's setPackages.
    worker_init : callable, optional
        Called without arguments: doRedis's worker.init; again in a slot that replaced a dead one.
    """

    token: str
    packages: tuple[str, ...] = ()
    worker_init: Callable[[], object] | None = None

    def do(self) -> None:
        """Do it, unless this process did; what it raises is the error of the job."""
        if self.token in _done:
            return
        try:
            for name in self.packages:
                import_module(name)
            if self.worker_init is not None:
                self.worker_init()
        except BaseException as error:
            error.redisq_setup = True  # type: ignore[attr-defined]  # it travels with the error
            raise
        _done.add(self.token)


@dataclass(frozen=True)
class Caught:
    """An exception that an iteration raised, on its way as a value."""

    packed: bytes

    def error(self, name: str) -> BaseException:
        """Return the exception; `name` is what the iteration is called."""
        return unpack_error(self.packed, name)


@dataclass(frozen=True)
class Body:
    """The function of a loop with what is around it; called with an iteration's number first.

    Attributes
    ----------
    fn : callable
        The user's.
    setup : Setup, optional
        What comes before the first one.
    seed : int, optional
        The loop's; see `dask_redisq.seeding`.
    seed_worker : callable, optional
        Called with the iteration's number instead: doRedis's set.seed.worker.
    catch : bool
        Whether an exception is a result.
    export : dict of str to object, optional
        Global names of `fn`, as `with_globals` set them; also those that only a text names.
    """

    fn: Callable[..., Any]
    setup: Setup | None = None
    seed: int | None = None
    seed_worker: Callable[[int], object] | None = None
    catch: bool = False
    export: dict[str, Any] | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.export:
            self.fn.__globals__.update(self.export)

    def __call__(self, i: int, *args: Any) -> Any:
        """Run iteration `i`, from 0."""
        if self.setup is not None:
            self.setup.do()
        if not self.catch:
            return self._run(i, args)
        try:
            return self._run(i, args)
        except Exception as error:
            return Caught(pack_error(error, name_of_slot()))

    def _run(self, i: int, args: tuple[Any, ...]) -> Any:
        if self.seed_worker is not None:
            with restored():
                self.seed_worker(i)
                return self.fn(*args)
        if self.seed is not None:
            with seeded(self.seed, i):
                return self.fn(*args)
        return self.fn(*args)


@dataclass(frozen=True)
class Reduced:
    """Iterations in a row whose results become one where they are made: doRedis's setReduce.

    Attributes
    ----------
    body : Body
        What runs each of them.
    reduce : callable
        Called with the list of their results.
    leave_out : bool
        Whether those that raised are not in it; else their exceptions are.
    """

    body: Body
    reduce: Callable[[list[Any]], Any]
    leave_out: bool = False

    def __call__(self, _: int, first: int, width: int, *args: Any) -> Any:
        """Run iterations from `first` on, each with `width` of the arguments."""
        results = []
        for i, start in enumerate(range(0, len(args), width), first):
            value = self.body(i, *args[start : start + width])
            if type(value) is not Caught:
                results.append(value)
            elif not self.leave_out:
                results.append(value.error(repr(i)))
        return self.reduce(results)


def catching(setup: Setup | None, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function whose exception is a result, though not one of its setup."""
    if setup is not None:
        setup.do()
    try:
        return fn(*args, **kwargs)
    except Exception as error:
        return Caught(pack_error(error, name_of_slot()))


def with_globals(
    fn: Callable[..., Any], export: dict[str, Any], noexport: tuple[str, ...]
) -> Callable[..., Any]:
    """Return `fn` with some global names set, and some that are not sent with it.

    Source: ``.export`` and ``.noexport`` of R's foreach. Names that a function uses are found by
    cloudpickle, as `getexports` does there; so these two are for what it cannot know: a name that
    is used by way of a text, a large object that workers have of their own.

    Parameters
    ----------
    fn : callable
        The function of a loop.
    export : dict of str to object
        Name -> value, as the function sees them on the workers.
    noexport : tuple of str
        Names of its module that workers do not get.

    Raises
    ------
    TypeError
        If there are such names, and `fn` is no plain function.
    """
    if not export and not noexport:
        return fn
    if not isinstance(fn, FunctionType):
        raise TypeError(f"export and noexport are for a function, and {fn!r} is none")
    # Another object than the one that its module has under its name: so it travels by value,
    # with the names that it uses.
    left = {name: value for name, value in fn.__globals__.items() if name not in noexport}
    new = FunctionType(
        fn.__code__, {**left, **export}, fn.__name__, fn.__defaults__, fn.__closure__
    )
    new.__kwdefaults__ = fn.__kwdefaults__
    new.__dict__.update(fn.__dict__)
    new.__module__, new.__qualname__ = fn.__module__, fn.__qualname__
    return new
