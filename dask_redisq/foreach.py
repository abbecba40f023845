"""A loop whose iterations run on the workers of a queue: R's foreach, as doRedis runs it.

Source: doRedis's ``R/doRedis.R`` and its vignette. Iterations are drawn as they are needed, in
windows; each window is a job (`dask_redisq.stream`), and its results are combined as they come,
and let go.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from dask_redisq import client_lease
from dask_redisq.body import Caught, Told
from dask_redisq.call_log import heard
from dask_redisq.calls import Call, plan_calls
from dask_redisq.combine import NOTHING, Combiner
from dask_redisq.keys import Keys
from dask_redisq.loop import Loop
from dask_redisq.loop_progress import Progress
from dask_redisq.monitor import server_ms
from dask_redisq.options import JobOptions
from dask_redisq.parcel import Parcel
from dask_redisq.pool import Pool
from dask_redisq.secret import find_secret
from dask_redisq.serving import in_slot, stand_in
from dask_redisq.sizes import bytes_of
from dask_redisq.stream import Failed, Stream

__all__ = ["run_loop"]

log = logging.getLogger("dask_redisq.foreach")

#: Windows under way at most: a few, each of which may wait for one long iteration; and iterations
#: without a result from which on no further window is sent.
AHEAD, FULL = 16, 2 * 5_000
#: Results that wait here for one before them, and those that may come to them.
MOST_WAITING = 100_000
#: Bytes of results that are under way or wait for one before them, unless that is fewer iterations
#: than those that are sent before the first result, which tells how large they are: so many, or two
#: for each slot, and twice as many with each second that it takes.
MOST_BYTES, UNKNOWN = 2**27, 32
#: Iterations in a window, unless a lease is to have more, seconds in which they are drawn, and
#: about their bytes: at most.
WINDOW, DRAWING, WINDOW_BYTES = 5_000, 0.02, 2**26
#: A generator that gives fewer in that time is slow.
FEW = 20


def run_loop(
    pool: Pool, keys: Keys, loop: Loop, options: JobOptions, kwargs: Mapping[str, Any]
) -> Any:
    """Do what `Queue.foreach` promises."""
    listening = heard() if loop.verbose else nullcontext()
    with listening, Progress(loop.length(), shown=bool(loop.progress)) as progress:
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
    signer = find_secret(pool.url)
    combiner, more = loop.combiner, True
    each = loop.errorhandling != "stop"
    told = loop.noun if loop.verbose else ""
    with pool.lend(keys) as link:  # what is removed from now on is the queue of this loop
        options = replace(options, since=server_ms(link))
    with Stream(pool, keys, options, signer, each=each, verbose=told) as stream:
        cautious = not (whole or options.chunk_size or options.num_workers)  # these are of one job
        room = _Room(stream, combiner, partial(_slots, pool, keys), cautious=cautious)
        windows = _windows(loop, most, room, retried=options.retries > 0, whole=whole)
        while True:
            while more and room.left() > 0:
                window = next(windows, None)
                more = window is not None
                if window is not None:
                    stream.send(plan_calls(*window, kwargs))
            if not stream.active:
                return combiner.value()
            arrived = stream.receive(room.patience if more else None)
            for i, value in arrived:
                combiner.add(i, _result(loop, i, value))
            progress.done(len(arrived))


class _Room:
    """How much more may be sent: back-pressure, on what runs and on what waits here.

    If the first of a million iterations takes long, or what combines does, the results of the
    others wait, here or on the server: they have to fit there, whatever their size.
    """

    def __init__(
        self, stream: Stream, combiner: Combiner, slots: Callable[[], int], *, cautious: bool
    ) -> None:
        self._stream = stream
        self._combiner = combiner
        self._slots = slots
        self._cautious = cautious
        self._began = time.monotonic()
        self._least, self._ask_at = 0, self._began

    def left(self) -> int:
        """Return how many iterations may be sent; one at least if none is under way."""
        stream, typical = self._stream, self._stream.typical
        if stream.active >= AHEAD or stream.outstanding >= FULL:
            return 0
        most, now = MOST_WAITING, time.monotonic()
        if typical is not None:
            fitting = int(MOST_BYTES / max(1.0, typical))
            if fitting < most:
                most = max(fitting, self._few(now))
        elif self._cautious:
            most = min(most, self._few(now) * 2 ** min(20, int(now - self._began)))
        left = most - stream.outstanding - self._combiner.waiting
        if not stream.active:
            return max(1, left)
        # Not one by one, as results come: of windows there are a few.
        return left if typical is None or left >= most // 4 else 0

    def _few(self, now: float) -> int:
        """Return how many are sent in any case: the slots are to be busy, also those that join."""
        if now >= self._ask_at:
            self._least, self._ask_at = max(UNKNOWN, 2 * self._slots()), now + 1.0
        return self._least

    @property
    def patience(self) -> float | None:
        """Seconds after which there may be more room, though nothing came."""
        return 0.25 if self._cautious and self._stream.typical is None else None


def _slots(pool: Pool, keys: Keys) -> int:
    """Return how many slots are there."""
    with pool.lend(keys) as link:
        return int(link.command("SCARD", keys("slots")))


def _windows(
    loop: Loop, largest: int, room: _Room, *, retried: bool, whole: bool
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
        most = max(1, min(size, WINDOW_BYTES // max(1, bytes_of(args))))
        most = most if whole else min(most, max(1, room.left()))
        for args in itertools.islice(drawn, most - 1):
            calls.append(Call(body, args if plain else (first + len(calls), *args)))
            if slow := not whole and time.perf_counter() - started > DRAWING:
                break
        if isinstance(body, Parcel):
            body.further = first + len(calls) != loop.length()
        yield calls, range(first, first + len(calls))
        first += len(calls)
        size = 1 if slow and len(calls) < FEW else min(2 * size, largest)


def _result(loop: Loop, i: int, value: Any) -> Any:
    """Return what is combined for iteration `i`."""
    if type(value) is Told:
        for number, error in value.faults:
            log.info("fault: iteration %d raised %s", number, error)
        value = value.value
    if type(value) is Caught:
        value = Failed(value.error(repr(i)))
    if type(value) is not Failed:
        return value
    if loop.verbose:
        log.info("fault: %s %d raised %r", loop.noun, i, value.error)
    return NOTHING if loop.errorhandling == "remove" else value.error


def _in_place(loop: Loop, progress: Progress) -> Any:
    """Run the loop in this slot, which would wait for itself otherwise."""
    body = loop.body()
    body = body.open() if isinstance(body, Parcel) else body
    for i, args in enumerate(loop.iterations()):
        loop.combiner.add(i, _result(loop, i, body(i, *args)))
        progress.done(1)
    return loop.combiner.value()
