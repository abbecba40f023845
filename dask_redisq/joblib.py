"""joblib on the workers of a queue: whatever has an `n_jobs` reaches beyond one machine.

Source: ``joblib.parallel.ParallelBackendBase``, and joblib's backend for distributed.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from inspect import signature
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import cloudpickle
from joblib.disk import memstr_to_bytes
from joblib.parallel import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
    get_active_backend,
    register_parallel_backend,
)

from dask_redisq.executor import Executor
from dask_redisq.large_arguments import ATOMS, Batch, LargeArguments, Mark
from dask_redisq.options import refuse_keywords
from dask_redisq.queue import Queue
from dask_redisq.serving import in_slot

__all__ = ["RedisqBackend", "register_redisq"]

#: Bytes that plain calls of a batch may take together.
MOST_PACKED = 2**20
#: Seconds that a batch may take, by the one before, to which it grows at once; joblib's shortest.
GROWN = 0.2
#: Bytes from which joblib maps an array, by default.
MAPPED = 2**20
#: Slots that are taken for granted while there is none: few machines have more.
EXPECTED = 16
#: What joblib itself tells a backend, besides what `Parallel` was given for it.
_OF_JOBLIB = frozenset(
    ("context", "max_nbytes", "mmap_mode", "prefer", "require", "temp_folder", "verbose")
)


#: Keywords of calls that hold for the jobs that bring their large arguments, too.
_OF_ARGUMENTS = ("priority", "client_lease")


def register_redisq() -> None:
    """Make the backend known to joblib, as "redisq".

    Examples
    --------
    >>> import dask_redisq.joblib, joblib
    >>> dask_redisq.joblib.register_redisq()
    >>> with joblib.parallel_config(backend="redisq", queue="jobs"):  # doctest: +SKIP
    ...     joblib.Parallel()(joblib.delayed(abs)(i) for i in (-1, 2))
    [1, 2]
    """
    register_parallel_backend("redisq", _backend)


def _backend(**kwargs: Any) -> Any:
    """Return what "redisq" names: inside of a call on a worker the backend that holds there."""
    # Who names a backend, inside of a call too, gets that one, and not the sequential one around
    # the call; on a worker it would be as many calls more in the queue for each call.
    active = get_active_backend()[0]
    if in_slot() and isinstance(active, SequentialBackend):
        return SequentialBackend(nesting_level=active.nesting_level)
    # Who names a backend in a library has no idea of the queue that its caller named around it.
    if isinstance(active, RedisqBackend):
        return active.with_words(kwargs)
    return RedisqBackend(**kwargs)


class RedisqBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # no types
    """A backend of joblib; see `register_redisq`.

    Parallel calls inside of a call are sequential. `n_jobs` is how many calls run at a time, at
    most; -1, the default, means all slots. Nothing runs in the caller: without a worker the calls
    wait for one, for `no_workers_timeout` if that is set.

    Parameters
    ----------
    queue : str or Queue, optional
        By default the setting ``redisq.queue``.
    url : str, optional
        By default the setting ``redisq.url``, or the private server.
    nesting_level
        joblib's.
    **kwargs
        Keywords of `Queue.get` that are of a job: ``timeout``, ``workers`` and so on.

    `Parallel` takes these keywords as well, for its own calls. What is not named is as it is in the
    block around it, if that is one of this backend.
    """

    supports_retrieve_callback = True
    default_n_jobs = -1
    _effective_batch_size: int
    _smoothed_batch_duration: float
    MIN_IDEAL_BATCH_DURATION = 0.05
    MAX_IDEAL_BATCH_DURATION = 1.0

    def __init__(
        self,
        queue: str | Queue | None = None,
        url: str | None = None,
        nesting_level: int | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_keywords(
            "joblib's backend", kwargs, lambda: signature(type(self)).parameters,
            "its own are queue and url, and those of a job",
        )  # fmt: skip
        super().__init__(nesting_level=nesting_level)
        self._given, self._url = isinstance(queue, Queue), url
        self.queue = queue if isinstance(queue, Queue) else Queue(queue, url)
        self._words = kwargs
        #: Whether it was made for a `Parallel`, with the keywords of that one.
        self.of_parallel = False
        self._cap: int | None = None
        self._executor: Executor | None = None
        self._large = LargeArguments(
            self.queue, {name: kwargs[name] for name in _OF_ARGUMENTS if name in kwargs}
        )
        self._mapped = MAPPED

    def __repr__(self) -> str:
        return f"<RedisqBackend on {self.queue!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return SequentialBackend, ()  # on a worker

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many calls to make ready for; at least 2, or joblib would make them here."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1  # not of a `Parallel`, whose default is ours
        if n_jobs > 0:
            return max(2, n_jobs)
        slots = self.queue.stats()["slots"] or EXPECTED
        return max(2, slots + 1 + n_jobs)

    def with_words(self, words: dict[str, Any]) -> RedisqBackend:
        """Return such a backend with other keywords, and the rest as it is here."""
        queue, url = words.get("queue"), words.get("url")
        if queue is None and url is None:
            queue = self.queue
        elif queue is None:
            queue = self.queue.name
        elif url is None:
            url = self.queue.url if self._given else self._url  # which none may be named
        return type(self)(**{**self._words, **words, "queue": queue, "url": url})

    def configure(self, n_jobs: int | None = 1, parallel: Any = None, **backend_kwargs: Any) -> int:
        """Get ready for calls of one `Parallel`."""
        words = {name: x for name, x in backend_kwargs.items() if name not in _OF_JOBLIB}
        if words and not self.of_parallel:
            # Another one: this may be that of a block, which has other calls as well.
            own = self.with_words({"nesting_level": self.nesting_level, **words})
            own.of_parallel = True
            raise FallbackToBackend(own)
        self.parallel = parallel
        self._mapped = _mapped(backend_kwargs)
        self._cap = n_jobs if n_jobs is not None and n_jobs > 0 else None
        return self.effective_n_jobs(n_jobs)

    def compute_batch_size(self) -> int:
        """Return how many calls make a batch: as joblib does, but in fewer steps.

        Of a batch of empty calls all time is the way there and back, which takes as long for 64.
        """
        size: int = self._effective_batch_size
        took: float = self._smoothed_batch_duration
        if not 0 < took < self.MIN_IDEAL_BATCH_DURATION:
            return int(super().compute_batch_size())
        size = max(1, min(64 * size, int(size * GROWN / took)))
        self._effective_batch_size = size
        self._smoothed_batch_duration = self._DEFAULT_SMOOTHED_BATCH_DURATION
        return size

    def start_call(self) -> None:
        """Get ready for one call of it."""
        self._executor = Executor(self.queue, max_workers=self._cap, **self._words)

    def stop_call(self) -> None:
        """Let go of what it used: between two calls all may change."""
        self._large.clear()
        if self._executor is not None:
            self._executor.shutdown(wait=False)

    def submit(
        self, func: Any, callback: Callable[[Future[Any]], object] | None = None
    ) -> Future[Any]:
        """Have a batch of calls made on a worker."""
        if self._executor is None:
            self.start_call()
        executor: Any = self._executor
        future: Future[Any]
        packed, batch = _packed(func.items), None
        if packed is not None:
            future = executor.submit(_run_packed, packed)
        else:
            batch = self._large.batch()
            calls = [_marked(batch, *call) for call in func.items]
            future = executor.submit(_run, self._mapped, calls, *batch.parts)
            if batch.parts:
                again = partial(executor.submit, _run, self._mapped, func.items)
                future = _or_again(future, batch.lost, again)
        if callback is not None:
            future.add_done_callback(callback)
        if batch is not None:  # after joblib's, which has the next batch sent: it may use the same
            future.add_done_callback(batch.over)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return the results of a batch, or raise what one of its calls raised."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT001, FBT002 - joblib's
        """Cancel what is under way, on the workers too."""
        if self._executor is not None:
            self._executor.abort()
            self._executor.shutdown(wait=False)
        if ensure_ready:
            self.start_call()

    def terminate(self) -> None:
        """Wait for the threads."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """Return what calls inside of a call use."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None


def _or_again(
    future: Future[Any], lost: Callable[[BaseException], bool], again: Callable[[], Future[Any]]
) -> Future[Any]:
    """Return a future of the same calls, which are made again if what they need was lost."""
    told: Future[Any] = Future()
    told.set_running_or_notify_cancel()

    # It refers neither to itself nor to `future`: a cycle would hold all of the batch.
    def settle(done: Future[Any]) -> None:
        error = None if done.cancelled() else done.exception()
        with suppress(Exception):  # no more calls are taken, or the server is away: the first tells
            if error is not None and lost(error):
                again().add_done_callback(partial(_hand_on, told))
                return
        _hand_on(told, done)

    future.add_done_callback(settle)
    return told


def _hand_on(told: Future[Any], done: Future[Any]) -> None:
    """Give a future the outcome of another."""
    error = CancelledError() if done.cancelled() else done.exception()
    if error is None:
        told.set_result(done.result())
    else:
        told.set_exception(error)


def _marked(batch: Batch, f: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Return a call with marks for its large arguments."""
    if kwargs:
        kwargs = dict(zip(kwargs, batch.marked(kwargs.values()), strict=True))
    return f, batch.marked(args), kwargs


def _packed(calls: list[Any]) -> bytes | None:
    """Return plain calls, pickled; None if there are others.

    Plain are those of functions that a worker finds by name, with small arguments: nothing in them
    is worth to be sent apart, or lasts from one batch to the next. To look for that took 12 us a
    call of 4,000.
    """
    named, alike = calls[0][0] if calls else None, True
    if not _is_named(named):
        return None
    for f, args, kwargs in calls:
        if f is not named:
            if not _is_named(f):
                return None
            named, alike = f, False
        if not ATOMS.issuperset(map(type, args)):
            return None
        if kwargs:
            alike = False
            if not ATOMS.issuperset(map(type, kwargs.values())):
                return None
    if cloudpickle.list_registry_pickle_by_value():
        return None
    packed = (named, [args for _, args, _ in calls]) if alike else (None, calls)
    try:
        data = pickle.dumps(packed, protocol=5)
    except Exception:  # the other way can, or tells which of them it is
        return None
    return data if len(data) <= MOST_PACKED and b"__main__" not in data else None


def _is_named(f: Any) -> bool:
    """Tell whether a callable may be one without a state: no method of an object."""
    kind = type(f)
    if kind is BuiltinFunctionType:
        return type(f.__self__) in (ModuleType, type(None))
    return kind is FunctionType or kind is type


def _mapped(words: dict[str, Any]) -> int:
    """Return the bytes from which joblib maps an array, by what it was told; 0 for none."""
    size = words.get("max_nbytes", MAPPED)
    if size is None or words.get("mmap_mode", "r") != "r":
        return 0
    return int(memstr_to_bytes(size) if isinstance(size, str) else size)


def _read_only(arg: Any, mapped: int) -> Any:
    """Return a view of an array that joblib would map, anything else as it is."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(arg, numpy.ndarray) or arg.dtype.hasobject:
        return arg
    if not 0 < mapped <= arg.nbytes:
        return arg
    view = arg.view()
    view.flags.writeable = False
    return view


def _own(part: Any, mapped: int) -> Any:
    """Return what a batch has of a large argument, of which this slot has one for all of them.

    A copy, as if it had come with the batch; or the same memory, if that is read-only.
    """
    found = _read_only(part, mapped)
    if found is not part or type(part) in (str, bytes):
        return found
    try:
        return pickle.loads(pickle.dumps(part, protocol=5))
    except Exception:  # it came by cloudpickle
        return pickle.loads(cloudpickle.dumps(part, protocol=5))


def _run_packed(packed: bytes) -> list[Any]:
    """Make the calls of `_packed` on a worker."""
    try:
        f, calls = pickle.loads(packed)
    except Exception as error:
        error.add_note(
            "dask-redisq: the worker lacks what these calls name: install it there, as here, or "
            "send a module with `Queue.upload_file`"
        )
        raise
    return _run(0, calls if f is None else [(f, args, {}) for args in calls])


def _run(mapped: int, calls: list[Any], *parts: Any) -> list[Any]:
    """Make the calls of a batch on a worker; arrays of at least `mapped` bytes are read-only."""
    from joblib import parallel_config

    parts = tuple([_own(part, mapped) for part in parts])

    def filled(arg: Any) -> Any:
        return parts[arg.place] if type(arg) is Mark else _read_only(arg, mapped)

    with parallel_config(backend=SequentialBackend(nesting_level=1), n_jobs=None):
        if not (parts or mapped):
            return [f(*args, **kwargs) for f, args, kwargs in calls]
        return [
            f(*map(filled, args), **{name: filled(arg) for name, arg in kwargs.items()})
            for f, args, kwargs in calls
        ]


# Not only by who asks: on a worker a call may name the backend, and has not asked there.
register_redisq()
