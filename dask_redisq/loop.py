"""A loop as its user asked for it: what is wrong with it, what it draws, what it sends. No I/O."""

from __future__ import annotations

import itertools
import operator
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask_redisq.body import Body, Reduced, Setup
from dask_redisq.combine import Combiner
from dask_redisq.parcel import Parcel, functions_in
from dask_redisq.seeding import check_seed

__all__ = ["Loop", "check_callable", "named", "names"]

#: Iterations that are reduced together at most, and in so many rows at least, if that is known.
MOST_TOGETHER, ROWS = 100, 64

ERRORHANDLING = ("stop", "remove", "pass")


@dataclass
class Loop:
    """A loop as it was asked for.

    Attributes
    ----------
    fn : callable
        Its body.
    iterables : sequence
        What it is called with, one item of each; an int n, of NumPy as well, is range(n).
    combiner : Combiner
        Makes the value of the results.
    when : callable, optional
        Called with the same items, in this process; iterations for which it is false are left out.
    errorhandling : {"stop", "remove", "pass"}
        What an iteration that raises, or loses its process too often, means: "stop" raises that and
        cancels the rest, "remove" leaves it out, "pass" has the exception for its result. So with
        the `SystemExit` of a ``sys.exit``; what `worker_init`, `reduce` and `combine` raise always
        ends the loop.
    packages : iterable of str
        Modules that workers import first.
    export : Mapping of str to object
        Global names, set on the workers for `fn`, `worker_init`, `seed_worker` and `reduce`, and
        for the functions of their modules that these call; names that they use are found without.
    noexport : iterable of str
        Global names that are not sent with them.
    worker_init : callable, optional
        Called once in each slot that takes part, without arguments: doRedis's ``worker.init``.
        Global names that it sets are there for `fn`. What it raises ends the loop.
    seed : int, optional
        Of the random numbers: iteration i, from 0, draws from
        ``numpy.random.SeedSequence(seed, spawn_key=(i,))``, wherever it runs; so do `random` and
        ``numpy.random``.
    seed_worker : callable, optional
        Called with i instead, before each iteration: doRedis's ``set.seed.worker``.
    progress : bool
        Whether to draw a bar.
    verbose : bool
        Whether to log what happens, one line each, as INFO of the logger ``dask_redisq.foreach``:
        submit, lease, fault, resubmission, and drop (of a result that comes twice). Where that
        would be dropped, as in a script that sets up no logging, the lines go to stderr.
    reduce : callable, optional
        Called on the workers with the list of the results of each `together` iterations in a row:
        what it returns is combined instead of them. doRedis's ``setReduce``. It is given what
        `errorhandling` leaves of these; but one that kills its process, or raises to the last of
        its `retries`, takes the other results of its row with it, and stands for all of them.
    together : int, optional
        How many; by default a 64th of those that there are, 100 at most.

    Raises
    ------
    TypeError, ValueError
        For arguments that are none of these.
    """

    fn: Callable[..., Any]
    iterables: Sequence[Any]
    combiner: Combiner
    when: Callable[..., Any] | None = None
    errorhandling: str = "stop"
    packages: Iterable[str] | None = None
    export: Mapping[str, Any] | None = None
    noexport: Iterable[str] = ()
    worker_init: Callable[[], object] | None = None
    seed: int | None = None
    seed_worker: Callable[[int], object] | None = None
    progress: bool | None = None
    verbose: bool = False
    reduce: Callable[[list[Any]], Any] | None = None
    together: int | None = None

    def __post_init__(self) -> None:
        check_callable("the body of a loop", self.fn)
        for name in ("when", "worker_init", "seed_worker", "reduce"):
            if (fn := getattr(self, name)) is not None:
                check_callable(name, fn)
        if self.errorhandling not in ERRORHANDLING:
            raise ValueError(
                f"errorhandling is one of {', '.join(map(repr, ERRORHANDLING))}, "
                f"not {self.errorhandling!r}"
            )
        if self.seed is not None:
            self.seed = check_seed(self.seed)
        self.iterables = [_ranged(some) for some in self.iterables]
        self.noexport = names("noexport", self.noexport)
        if self.packages is not None:
            self.packages = names("packages", self.packages)
        if self.export is not None:
            self.export = named("export", self.export)
        if (self.export or self.noexport) and not any(map(functions_in, self.functions)):
            raise TypeError(f"export and noexport are for a function, and {self.fn!r} is none")

    def fill_in(self, defaults: Mapping[str, Any]) -> None:
        """Take for what was not said, None, what holds where nothing is said."""
        for name in ("packages", "export", "progress"):
            if getattr(self, name) is None:
                setattr(self, name, defaults.get(name))

    def iterations(self) -> Iterator[tuple[Any, ...]]:
        """Return the arguments of each; they end with the shortest iterable."""
        if not self.iterables:
            return iter(())
        drawn: Iterator[tuple[Any, ...]] = zip(*self.iterables, strict=False)
        when = self.when
        if when is not None:
            drawn = (args for args in drawn if when(*args))
        return drawn if self.reduce is None else self._in_rows(drawn)

    def _in_rows(self, drawn: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """Yield what `Reduced` takes: the arguments of some iterations in a row, one after another.

        Not a list of them: what stands for scattered data is looked for among the arguments.
        """
        first, width, many = 0, len(self.iterables), self._together()
        while row := list(itertools.islice(drawn, many)):
            yield (first, width, *itertools.chain.from_iterable(row))
            first += len(row)

    def _together(self) -> int:
        if self.together is not None:
            return self.together
        n = self._iterations()
        return MOST_TOGETHER if n is None else max(1, min(MOST_TOGETHER, n // ROWS))

    def length(self) -> int | None:
        """Return how many results there are to combine, if that is known."""
        n = self._iterations()
        return n if n is None or self.reduce is None else -(-n // self._together())

    def _iterations(self) -> int | None:
        if self.when is not None:
            return None
        sizes = [_length(some) for some in self.iterables]
        return (
            None if None in sizes else min((size for size in sizes if size is not None), default=0)
        )

    @property
    def noun(self) -> str:
        """What a call of `body` runs, for the log."""
        return "iteration" if self.reduce is None else "chunk"

    def body(self, *, retried: bool = False) -> Any:
        """Return what runs on the workers: called with the number of the iteration first.

        With `retried` an exception stays one, so that the server can have the iteration run again.
        """
        token, setup = secrets.token_hex(8), None
        if self.packages or self.worker_init is not None:
            setup = Setup(token, tuple(self.packages or ()), self.worker_init)
        catch = self.errorhandling != "stop" and not retried
        body = Body(self.fn, setup, self.seed, self.seed_worker, catch)
        call: Callable[..., Any] = body
        if self.reduce is not None:
            call = Reduced(body, self.reduce, self.errorhandling == "remove", self.verbose)
        if self.worker_init is None and not self.export and not self.noexport:
            return call
        return Parcel(token, call, self.functions, self.export or {}, tuple(self.noexport))

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        """What workers call of the user's."""
        theirs = (self.fn, self.worker_init, self.seed_worker, self.reduce)
        return tuple([fn for fn in theirs if fn is not None])

    @property
    def plain(self) -> bool:
        """Whether its body is the user's function, and nothing more."""
        extras = (
            self.packages, self.worker_init, self.export, self.noexport, self.seed_worker,
            self.reduce,
        )  # fmt: skip
        return not any(extras) and self.seed is None and self.errorhandling == "stop"


def names(what: str, given: Any) -> tuple[str, ...]:
    """Return a list of names; a single text, which is one as well, is a TypeError."""
    found = tuple(given) if isinstance(given, Iterable) else (None,)
    if isinstance(given, str) or not all(isinstance(name, str) for name in found):
        raise TypeError(f"{what} is a list of names, not {given!r}")
    return found


def named(what: str, given: Any) -> dict[str, Any]:
    """Return values by their names; a list of names, which R has here, is a TypeError."""
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise TypeError(
            f"{what} is a dict of names and values, not {given!r}; names that functions use are "
            "found without"
        )
    return dict(given)


def check_callable(what: str, given: Any) -> None:
    """Raise a TypeError for what cannot be called."""
    if not callable(given):
        raise TypeError(f"{what} is a function, not {given!r}")


def _ranged(some: Any) -> Any:
    """Return the range of a whole number, of whatever library, and anything else as it is."""
    if isinstance(some, bool) or hasattr(type(some), "__iter__"):
        return some
    try:
        n = operator.index(some)
    except TypeError:
        return some  # who draws from it will tell
    if n < 0:
        raise ValueError(f"a loop has a whole number of iterations, at least 0, not {some!r}")
    return range(n)


def _length(some: Any) -> int | None:
    try:
        return len(some)
    except TypeError:
        return None
