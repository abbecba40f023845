"""What each iteration of a loop does in a slot: set up, seed, call, catch. No I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

from dask_redisq.remote_error import pack_error, unpack_error
from dask_redisq.seeding import restored, seeded
from dask_redisq.serving import name_of_slot

__all__ = [
    "Body",
    "Caught",
    "Reduced",
    "Setup",
    "Told",
    "catching",
    "forget_setup",
    "is_of_the_job",
]

Globals = dict[str, Any]

#: What an error has that is no iteration's: a note, since no attribute travels with each error.
OF_THE_JOB = (
    "dask-redisq: raised by packages, worker_init or reduce, which are of all iterations, and no "
    "error of one of them"
)
#: Setups with names to show that a process remembers, those that were lately asked for: they may be
#: of models, and large. Of more executors in use at once each is set up again and again.
MOST_KEPT = 4
#: Tokens of the loops whose setup this process has done -> where it set names, if they are kept,
#: and which.
_done: OrderedDict[str, tuple[Globals, Globals]] = OrderedDict()
#: Among global names: the setup whose names are there, and the names that one has set.
_SHOWN, _SET = "__redisq_setup__", "__redisq_set__"


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
    kept_for : callable, optional
        The function in `worker_init` whose global names `show` is to show to others.
    """

    token: str
    packages: tuple[str, ...] = ()
    worker_init: Callable[[], object] | None = None
    kept_for: Callable[..., object] | None = None

    def do(self) -> None:
        """Do it, unless this process did; what it raises is the error of the job."""
        if self.token in _done:
            if self.kept_for is not None:
                _done.move_to_end(self.token)
            return
        names = _names_of(self.kept_for)
        # What it set here before it was forgotten is its own, also if it sets the same once more.
        before = {k: v for k, v in names.items() if k not in names.get(_SET, ())}
        with _of_the_job():
            for name in self.packages:
                import_module(name)
            if self.worker_init is not None:
                self.worker_init()
        new = {k: v for k, v in names.items() if k not in before or before[k] is not v}
        if new:
            names[_SET] = frozenset(new)
        _done[self.token] = names, new
        kept = [token for token, (home, _) in _done.items() if home]
        for token in kept[:-MOST_KEPT]:
            del _done[token]

    def show(self, fn: Callable[..., Any]) -> None:
        """Set the names that it set for a function that came later, with names of its own.

        Functions of a script are read anew with each block of calls, each time into new names.
        """
        home, names = _done[self.token]
        theirs = _names_of(fn) if names else home
        if theirs is home or theirs.get("__name__") != home.get("__name__", ""):
            return
        if theirs.get(_SHOWN) != self.token:  # once: it may be told something else since
            theirs.update(names, **{_SHOWN: self.token})


@contextmanager
def _of_the_job() -> Iterator[None]:
    """Mark what is raised as an error of the job: not of an iteration, which may be left out."""
    try:
        yield
    except BaseException as error:
        notes = error.__dict__.get("__notes__")
        others = notes if isinstance(notes, list) else []
        if OF_THE_JOB not in others:  # first: of many notes not all travel
            error.__dict__["__notes__"] = [OF_THE_JOB, *others]
        raise


def is_of_the_job(error: BaseException) -> bool:
    """Tell whether an error is of what all iterations have in common."""
    return OF_THE_JOB in getattr(error, "__notes__", ())


def _names_of(fn: Any) -> Globals:
    """Return the global names of a function, or of the one in a partial, a method, an object."""
    while not hasattr(fn, "__globals__"):
        inner = getattr(fn, "func", None) or getattr(fn, "__func__", None)
        if inner is None:
            return getattr(vars(type(fn)).get("__call__"), "__globals__", {})
        fn = inner
    found: Globals = fn.__globals__
    return found


def forget_setup(token: str) -> None:
    """Have a loop set up again, if it comes again: what the setup was done for is gone."""
    _done.pop(token, None)


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
        Whether an exception is a result; so is the `SystemExit` of an iteration that gives up.
    """

    fn: Callable[..., Any]
    setup: Setup | None = None
    seed: int | None = None
    seed_worker: Callable[[int], object] | None = None
    catch: bool = False

    def __call__(self, i: int, *args: Any) -> Any:
        """Run iteration `i`, from 0."""
        if self.setup is not None:
            self.setup.do()
        if not self.catch:
            return self._run(i, args)
        try:
            return self._run(i, args)
        except (Exception, SystemExit) as error:
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


class Told(NamedTuple):
    """A result, and what is to be told of it: iterations that raised, each with its exception."""

    value: Any
    faults: list[tuple[int, str]]


@dataclass(frozen=True)
class Reduced:
    """Iterations in a row whose results become one where they are made: doRedis's setReduce.

    What `reduce` raises is the error of the loop, as that of a `combine` is: were it left out as
    that of an iteration, good results would be lost with it, and nobody told.

    Attributes
    ----------
    body : Body
        What runs each of them.
    reduce : callable
        Called with the list of their results.
    leave_out : bool
        Whether those that raised are not in it; else their exceptions are.
    tell : bool
        Whether to tell which raised.
    """

    body: Body
    reduce: Callable[[list[Any]], Any]
    leave_out: bool = False
    tell: bool = False

    def __call__(self, _: int, first: int, width: int, *args: Any) -> Any:
        """Run iterations from `first` on, each with `width` of the arguments."""
        results, faults, left_out = [], [], None
        for i, start in enumerate(range(0, len(args), width), first):
            value = self.body(i, *args[start : start + width])
            if type(value) is not Caught:
                results.append(value)
                continue
            error = value.error(repr(i))
            if self.tell:
                faults.append((i, repr(error)))
            if self.leave_out:
                left_out = value
            else:
                results.append(error)
        if left_out is not None and not results:  # with nothing to reduce the chunk has raised
            return Told(left_out, faults) if faults else left_out
        with _of_the_job():
            reduced = self.reduce(results)
        return Told(reduced, faults) if faults else reduced


def catching(setup: Setup | None, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function whose exception is a result, though not one of its setup."""
    if setup is not None:
        setup.do()
        setup.show(fn)
    try:
        return fn(*args, **kwargs)
    except Exception as error:
        return Caught(pack_error(error, name_of_slot()))
