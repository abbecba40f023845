"""A loop whose iterations run on the workers of a queue: R's foreach, as doRedis runs it.

Source: doRedis's ``R/doRedis.R`` and its vignette. Iterations are drawn as they are needed, in
windows; each window is a job (`dask_redisq.stream`), and its results are combined as they come,
and let go.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dask.sizeof import sizeof

from dask_redisq import client_lease
from dask_redisq.body import Body, Caught, Reduced, Setup, with_globals
from dask_redisq.calls import Call, plan_calls
from dask_redisq.combine import NOTHING, Combiner
from dask_redisq.keys import Keys
from dask_redisq.loop_progress import Progress
from dask_redisq.options import JobOptions
from dask_redisq.pool import Pool
from dask_redisq.secret import find_secret
from dask_redisq.seeding import check_seed
from dask_redisq.serving import in_slot, stand_in
from dask_redisq.stream import Failed, Stream

__all__ = ["Loop", "names", "run_loop"]

log = logging.getLogger("dask_redisq.foreach")

#: Windows under way at most: a few, each of which may wait for one long iteration; and iterations
#: without a result from which on no further window is sent.
AHEAD, FULL = 16, 2 * 5_000
#: Results that wait here for one before them, and those that may come to them.
MOST_WAITING = 100_000
#: Iterations in a window, unless a lease is to have more, seconds in which they are drawn, and
#: about their bytes: at most.
WINDOW, DRAWING, WINDOW_BYTES = 5_000, 0.02, 2**26
#: Iterations that are reduced together at most, and in so many rows at least, if that is known.
MOST_TOGETHER, ROWS = 100, 64
#: A generator that gives fewer in that time is slow.
FEW = 20

ERRORHANDLING = ("stop", "remove", "pass")


@dataclass
class Loop:
    """A loop as it was asked for.

    Attributes
    ----------
    fn : callable
        Its body.
    iterables : sequence
        What it is called with, one item of each; an int n is range(n).
    combiner : Combiner
        Makes the value of the results.
    when : callable, optional
        Called with the same items, in this process; iterations for which it is false are left out.
    errorhandling : {"stop", "remove", "pass"}
        What an iteration that raises, or loses its process too often, means: "stop" raises that and
        cancels the rest, "remove" leaves it out, "pass" has the exception for its result.
    packages : iterable of str
        Modules that workers import first.
    export : Mapping of str to object
        Global names of `fn`, set on the workers; those that it uses are found without.
    noexport : iterable of str
        Global names that are not sent.
    worker_init : callable, optional
        Called once in each slot that takes part, without arguments: doRedis's ``worker.init``. What
        it raises ends the loop.
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
        submit, lease, fault, resubmission, and drop (of a result that comes twice).
    reduce : callable, optional
        Called on the workers with the list of the results of each `together` iterations in a row:
        what it returns is combined instead of them. doRedis's ``setReduce``.
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
    packages: Iterable[str] = ()
    export: Mapping[str, Any] = field(default_factory=dict)
    noexport: Iterable[str] = ()
    worker_init: Callable[[], object] | None = None
    seed: int | None = None
    seed_worker: Callable[[int], object] | None = None
    progress: bool = False
    verbose: bool = False
    reduce: Callable[[list[Any]], Any] | None = None
    together: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"the body of a loop is a function, not {self.fn!r}")
        if self.errorhandling not in ERRORHANDLING:
            raise ValueError(
                f"errorhandling is one of {', '.join(map(repr, ERRORHANDLING))}, "
                f"not {self.errorhandling!r}"
            )
        if self.seed is not None:
            self.seed = check_seed(self.seed)
        self.packages = names("packages", self.packages)
        self.noexport = names("noexport", self.noexport)

    def iterations(self) -> Iterator[tuple[Any, ...]]:
        """Return the arguments of each; they end with the shortest iterable."""
        if not self.iterables:
            return iter(())
        found = [range(some) if type(some) is int else some for some in self.iterables]
        drawn: Iterator[tuple[Any, ...]] = zip(*found, strict=False)
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
        sizes = [some if type(some) is int else _length(some) for some in self.iterables]
        return (
            None if None in sizes else min((size for size in sizes if size is not None), default=0)
        )

    def body(self, *, retried: bool = False) -> Callable[..., Any]:
        """Return what runs on the workers: called with the number of the iteration first.

        With `retried` an exception stays one, so that the server can have the iteration run again.
        """
        export = dict(self.export)
        fn = with_globals(self.fn, export, tuple(self.noexport))
        setup = None
        if self.packages or self.worker_init is not None:
            setup = Setup(secrets.token_hex(8), tuple(self.packages), self.worker_init)
        catch = self.errorhandling != "stop" and not retried
        body = Body(fn, setup, self.seed, self.seed_worker, catch, export or None)
        if self.reduce is None:
            return body
        return Reduced(body, self.reduce, leave_out=self.errorhandling == "remove")

    @property
    def plain(self) -> bool:
        """Whether its body is the user's function, and nothing more."""
        extras = (
            self.packages, self.worker_init, self.export, self.noexport, self.seed_worker,
            self.reduce,
        )  # fmt: skip
        return not any(extras) and self.seed is None and self.errorhandling == "stop"


def names(what: str, given: Iterable[str]) -> tuple[str, ...]:
    """Return a list of names; a single text, which is one as well, is a TypeError."""
    if isinstance(given, str):
        raise TypeError(f"{what} is a list of names, not {given!r}")
    return tuple(given)


def _length(some: Any) -> int | None:
    try:
        return len(some)
    except TypeError:
        return None


def run_loop(
    pool: Pool, keys: Keys, loop: Loop, options: JobOptions, kwargs: Mapping[str, Any]
) -> Any:
    """Do what `Queue.foreach` promises."""
    with Progress(loop.length(), shown=loop.progress) as progress:
        if not in_slot():  # asked first: the URL of no server may start one
            return _run(pool, keys, loop, options, kwargs, progress)
        with stand_in(pool.url, keys) as free:
            if free:
                return _run(pool, keys, loop, options, kwargs, progress)
        return _in_place(loop, progress)


def _run(
    pool: Pool,
    keys: Keys,
    loop: Loop,
    options: JobOptions,
    kwargs: Mapping[str, Any],
    progress: Progress,
) -> Any:
    client_lease.look()
    # A policy is to see all of it: the iteration that belongs to a slot may be the last one.
    whole = bool(options.get_task) and loop.length() is not None
    most = max(WINDOW, options.chunk_size)  # a lease is of one job
    windows = _windows(loop, most, retried=options.retries > 0, whole=whole)
    signer = find_secret(pool.url)
    combiner, more = loop.combiner, True
    each = loop.errorhandling != "stop"
    with Stream(pool, keys, options, signer, each=each, verbose=loop.verbose) as stream:
        while True:
            while more and _has_room(stream, combiner):
                window = next(windows, None)
                more = window is not None
                if window is not None:
                    stream.send(plan_calls(*window, kwargs))
            if not stream.active:
                return combiner.value()
            arrived = stream.receive()
            for i, value in arrived:
                combiner.add(i, _result(loop, i, value))
            progress.done(len(arrived))


def _has_room(stream: Stream, combiner: Combiner) -> bool:
    """Tell whether to send another window: back-pressure, on what runs and on what waits here."""
    return (
        stream.active < AHEAD
        and stream.outstanding < FULL
        and stream.outstanding + combiner.waiting < MOST_WAITING
    )


def _windows(
    loop: Loop, largest: int, *, retried: bool, whole: bool
) -> Iterator[tuple[list[Call], range]]:
    """Yield calls with their numbers: as many as are there in a moment, or as one job should have.

    Of a generator it is not known how long the next item takes, and what was drawn would wait
    for it. So the first window has one item, each further one twice as many, and after an item
    that took long it is one again. With `whole` it does not matter how long they take to draw.
    """
    body, plain = loop.fn if loop.plain else loop.body(retried=retried), loop.plain
    drawn, first = loop.iterations(), 0
    size = 1 if loop.length() is None else largest
    for args in drawn:
        calls = [Call(body, args if plain else (first, *args))]
        started, slow = time.perf_counter(), False
        most = max(1, min(size, WINDOW_BYTES // max(1, sizeof(args))))
        for args in itertools.islice(drawn, most - 1):
            calls.append(Call(body, args if plain else (first + len(calls), *args)))
            if slow := not whole and time.perf_counter() - started > DRAWING:
                break
        yield calls, range(first, first + len(calls))
        first += len(calls)
        size = 1 if slow and len(calls) < FEW else min(2 * size, largest)


def _result(loop: Loop, i: int, value: Any) -> Any:
    """Return what is combined for iteration `i`."""
    if type(value) is Caught:
        value = Failed(value.error(repr(i)))
    if type(value) is not Failed:
        return value
    if loop.verbose:
        log.info("fault: iteration %d raised %r", i, value.error)
    return NOTHING if loop.errorhandling == "remove" else value.error


def _in_place(loop: Loop, progress: Progress) -> Any:
    """Run the loop in this slot, which would wait for itself otherwise."""
    body = loop.body()
    for i, args in enumerate(loop.iterations()):
        loop.combiner.add(i, _result(loop, i, body(i, *args)))
        progress.done(1)
    return loop.combiner.value()
