"""`concurrent.futures` on the workers of a queue.

Calls are sent in jobs of as many as keep the slots busy for a moment, no more: what was not sent
can be cancelled. Nothing runs here while there is nothing to do: the threads end with the last.
"""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor as BaseExecutor
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any

from dask_redisq import client_lease
from dask_redisq.amounts import whole
from dask_redisq.body import Caught, Setup, catching
from dask_redisq.calls import Call, call_settings
from dask_redisq.loop import check_callable
from dask_redisq.options import refuse_keywords
from dask_redisq.page import Wait
from dask_redisq.queue import Queue
from dask_redisq.secret import find_secret
from dask_redisq.sending import CallRoom, Work, plan_sound
from dask_redisq.serving import in_slot, job_in_hand, stand_in
from dask_redisq.stream import Arrived, CallJob, Failed
from dask_redisq.wrappers import Chunk, Initializer, chunks_of

__all__ = ["Executor"]

#: Seconds for which calls are gathered: after a job was sent, and while results are handed over.
BRIEF, BURST = 0.01, 0.001


class Executor(BaseExecutor):
    """Runs calls on the workers of a queue: a full `concurrent.futures.Executor`.

    Also a scheduler of Dask, ``x.compute(scheduler=executor)``, though with `redisq.get` values
    need not pass through the client. Inside a task of its queue another slot works in that one's
    place while calls are under way, and has what the task holds of resources; if there are no more
    slots to be had, that is the calls' error.

    Parameters
    ----------
    queue : str or Queue, optional
        By default the setting ``redisq.queue``.
    url : str, optional
        By default the setting ``redisq.url``, or the private server.
    initializer : callable, optional
        Called with `initargs` once in each slot that takes part, before its first call. Functions
        of its module find the global names that it sets.
    initargs : tuple, default ()
        For that.
    max_workers : int, optional
        Calls that run at a time, at most; by default as many as there are slots.
    **kwargs
        Keywords of `Queue.get` that are of a job, for all calls: ``timeout``, ``workers`` ...

    Raises
    ------
    TypeError
        For a keyword that there is not, or an `initializer` that cannot be called.

    Examples
    --------
    >>> import dask_redisq as redisq
    >>> with redisq.Executor("jobs") as executor:  # doctest: +SKIP
    ...     list(executor.map(pow, range(4), [2] * 4))
    [0, 1, 4, 9]
    """

    def __init__(
        self,
        queue: str | Queue | None = None,
        url: str | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_workers: int | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_keywords(
            "an executor", kwargs, lambda: signature(type(self)).parameters,
            "the arguments of a call go to submit",
        )  # fmt: skip
        self.queue = queue if isinstance(queue, Queue) else Queue(queue, url)
        self._words, self._options = call_settings(self.queue.with_defaults(kwargs))
        self._setup = None
        if initializer is not None:
            check_callable("initializer", initializer)
            init = Initializer(initializer, initargs)
            self._setup = Setup(secrets.token_hex(8), worker_init=init, kept_for=initializer)
        self._lock = threading.Condition()
        self._pending: deque[tuple[Future[Any], Call]] = deque()
        self._sent: dict[int, Future[Any]] = {}
        self._under_way: set[Work] = set()
        self._threads: set[threading.Thread] = set()
        self._numbers = itertools.count()
        self._led = False
        self._delivering = 0
        self._sent_at = 0.0
        self._room = CallRoom(None if max_workers is None else whole("max_workers", max_workers, 1))
        #: When to count the slots again.
        self._ask_at = 0.0
        self._shutdown = False

    def __repr__(self) -> str:
        return f"<Executor on queue {self.queue.name}, {len(self._pending)} calls wait>"

    @property
    def _max_workers(self) -> int:
        """How many calls run at a time; Dask asks for it by this name."""
        return self._room.cap or max(1, self.queue.stats()["slots"])

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a function called on a worker; return the future of what it returns.

        Raises
        ------
        RuntimeError
            After `shutdown`.
        """
        future: Future[Any] = Future()
        if type(fn) is Chunk:
            args = tuple(args[0])  # scattered data is looked for among the arguments, and no deeper
        with self._lock:
            if self._shutdown:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if in_slot():  # calls end with the job whose task makes them; threads outlive a task
                job = job_in_hand(self.queue.pool.url, self.queue.keys)
                if job != self._options.parent:
                    self._options = replace(self._options, parent=job)
            if not self._led and not self._pending:
                self._room.begin()  # these may be of another kind
            self._pending.append((future, Call(catching, (self._setup, fn, *args), kwargs)))
            if self._led:
                if len(self._pending) == self._room.most:
                    self._lock.notify_all()
                return future
            try:
                self._start()
            except BaseException:  # there can be no more threads
                self._pending.pop()
                raise
        return future

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """Call a function for the items of iterables; see `concurrent.futures.Executor.map`.

        Parameters
        ----------
        fn : callable
            The function.
        *iterables : iterable
            It is called with an item of each.
        timeout : float, optional
            Seconds for the next result, from this call on.
        chunksize : int, default 1
            Items of one call: a slot takes as many calls as fill its time, so 1 is good mostly.
        **kwargs
            ``buffersize`` of Python 3.14.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout, **kwargs)
        chunks = chunks_of(zip(*iterables, strict=False), chunksize)
        found = super().map(Chunk(fn, len(iterables)), chunks, timeout=timeout, **kwargs)
        return itertools.chain.from_iterable(found)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more calls.

        Parameters
        ----------
        wait : bool, default True
            Whether to return only when all calls are done.
        cancel_futures : bool, default False
            Whether to cancel those that were not sent.
        """
        with self._lock:
            self._shutdown = True
            self._lock.notify_all()
        if cancel_futures:
            self._cancel_pending()
        while wait:
            with self._lock:
                threads = [t for t in self._threads if t is not threading.current_thread()]
            if not threads:
                return
            for thread in threads:
                thread.join()

    def abort(self, reason: str = "the executor was told to abort") -> None:
        """Cancel all calls, also those that run: their futures fail with `JobCancelled`."""
        self._cancel_pending()
        with self._lock:
            under_way = list(self._under_way)
            for work in under_way:
                work.aborted = reason
        for work in under_way:
            job = work.job  # it is over in any moment, and has none then
            if job is not None:
                self.queue.cancel(job.id, reason)

    def _take_back(self) -> list[Future[Any]]:
        """Return the futures of calls that were not sent, which nobody sends then."""
        with self._lock:
            left = [future for future, _ in self._pending]
            self._pending.clear()
            return left

    def _cancel_pending(self) -> None:
        for future in self._take_back():
            future.cancel()
            future.set_running_or_notify_cancel()  # for those who wait with others for it

    # -- threads: one for each job, and a leader, who makes the next one ------------------------

    def _start(self) -> None:
        """Start a thread that leads; called with the lock held, which it takes first."""
        thread = threading.Thread(target=self._serve, name="redisq-executor")
        thread.start()
        self._threads.add(thread)
        self._led = True

    def _serve(self) -> None:
        """Make jobs of calls, and follow each, while another thread makes the next.

        Not one thread that sends, and one for each job: while a generator of calls is drawn, each
        thread that is to begin waits for the interpreter for as long as 5 ms.
        """
        leads = True
        try:
            client_lease.look()
            while leads and (work := self._lead()) is not None:
                leads = False
                self._follow(work)
                with self._lock:
                    if self._pending and not self._led:
                        self._led = leads = True
        except BaseException as error:
            if not leads:
                raise
            self._fail_all(error)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _fail_all(self, error: BaseException) -> None:
        """Fail what waits: nobody leads, since that failed."""
        with self._lock:
            self._led, left = False, self._take_back()
        for future in left:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _lead(self) -> Work | None:
        """Make a job of calls; None if there are no more. The next call finds no leader then."""
        while True:
            if time.monotonic() >= self._ask_at:
                slots = self._count_slots()
                self._room.slots, self._ask_at = slots, time.monotonic() + 1.0
            with self._lock:
                while self._pending and self._room.free(len(self._sent)) <= 0:
                    self._lock.wait()
                self._gather_more()
                calls = self._take(self._room.free(len(self._sent)))
                if not calls and self._pending:
                    continue
                self._led = False
                if not calls:
                    return None
                work = Work(calls)
                self._sent_at = time.monotonic()
                self._under_way.add(work)
                if self._pending:
                    with suppress(RuntimeError):  # no more threads: this one leads again, later
                        self._start()
                return work

    def _gather_more(self) -> None:
        """Wait for more calls, for a moment, while those that were sent just now are to come.

        Not each time one is done: a job of one call costs as much as one of hundreds. As TCP has it
        (RFC 896): a small packet waits for the answer to the one before, a full one goes at once.
        """

        def is_enough() -> bool:
            nothing = not (self._sent or self._delivering)
            return nothing or len(self._pending) >= self._room.most

        patience = self._sent_at + BRIEF - time.monotonic()
        if self._delivering:  # who gets a result may make the next call of it
            patience = max(patience, BURST)
        if patience > 0:
            self._lock.wait_for(is_enough, patience)

    def _count_slots(self) -> int:
        try:
            with self.queue.pool.lend() as link:
                return int(link.command("SCARD", self.queue.keys("slots")))
        except Exception:  # the calls will tell
            return 0

    def _take(self, most: int) -> dict[int, Call]:
        """Return calls that were not cancelled, by number: they run from now on, as futures say."""
        calls: dict[int, Call] = {}
        while self._pending and len(calls) < most:
            future, call = self._pending.popleft()
            if future.set_running_or_notify_cancel():
                number = next(self._numbers)
                calls[number], self._sent[number] = call, future
        return calls

    def _follow(self, work: Work) -> None:
        started = time.monotonic()
        try:
            self._compute(work)
        except BaseException as error:  # it is that of each call which has no result
            self._deliver([(number, Failed(error)) for number in work.calls], 0)
        took = time.monotonic() - started
        with self._lock:
            self._under_way.remove(work)
            work.job = None  # they hold each other, and with them the arguments of all its calls
            self._room.took(took)
            self._lock.notify_all()

    def _compute(self, work: Work) -> None:
        pool, keys = self.queue.pool, self.queue.keys
        plan, failed = plan_sound(work.calls, self._words)
        self._deliver([(number, Failed(error)) for number, error in failed.items()], 0)
        if not len(plan):
            return
        signer = find_secret(pool.url)
        # All the time, and not where a task asks for a result: there are more ways to wait for one
        # than a future's own, `concurrent.futures.wait` say, or joblib's, which looks at a flag.
        with stand_in(pool.url, keys, Wait.FUTURES), pool.lend(keys) as link:
            job = CallJob(link, keys, plan, self._options, signer)
            job.each = job.unrelated = True
            job.deliver = self._deliver
            job.watch = partial(self._watch, work)
            job.check = work.check
            job.compute()

    def _watch(self, work: Work, job: CallJob) -> None:
        """Note which job some calls are; cancel it if it was on its way when all were aborted."""
        with self._lock:
            work.job = job
        if work.aborted is not None:
            self.queue.cancel(job.id, work.aborted)

    def _deliver(self, results: Arrived, _size: int) -> None:
        with self._lock:
            self._delivering += 1
        try:
            self._set_all(results)
        finally:
            with self._lock:
                self._delivering -= 1
                self._lock.notify_all()

    def _set_all(self, results: Arrived) -> None:
        for number, value in results:
            with self._lock:
                future = self._sent.pop(number, None)
                self._lock.notify_all()
            if future is None:
                continue
            if type(value) is Caught:
                value = Failed(value.error(repr(number)))
            if type(value) is Failed:
                future.set_exception(value.error)
            else:
                future.set_result(value)
