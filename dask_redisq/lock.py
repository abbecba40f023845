"""Locks and semaphores over Redis: for what tasks on several hosts must not do at the same time.

Dask gives any scheduler that it does not know a lock that holds within one process: see section 1.8
of its contract. ``da.store(x, target, lock=redisq.Lock("target"))`` holds for all workers, and that
is what Dask's own becomes here (`dask_redisq.shared_locks`).
"""

from __future__ import annotations

import math
import secrets
import threading
import time
import weakref
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

from dask_redisq.amounts import patience, seconds, whole
from dask_redisq.codec import unpack
from dask_redisq.errors import LockLost, NoServerError, ServerUnavailable
from dask_redisq.forks import in_forked_child
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.local import LocalCluster
from dask_redisq.meant import cluster_meant, queue_meant, queue_of
from dask_redisq.page import Wait
from dask_redisq.queue import Queue
from dask_redisq.serving import own_slot, stand_in
from dask_redisq.settings import setting

__all__ = ["Lock", "Semaphore"]


#: Seconds between two looks of one that waits: heals a lost token.
RECHECK = 5.0
#: Seconds after which another slot works in the place of one whose task waits.
SOON = 1.0


class _Place:
    """A place that is held: until it is released, or nobody refers to this any more."""

    def __init__(self, token: str, fence: int) -> None:
        self.token = token
        self.fence = fence
        #: Tells the thread that renews it how it was over: "released", or "forgotten". No
        #: Event, which has a lock: that very thread may hold it as it collects garbage.
        self.over: SimpleQueue[str] = SimpleQueue()

    def __del__(self) -> None:
        self.over.put("forgotten")


#: Those of this process.
_semaphores: weakref.WeakSet[Semaphore] = weakref.WeakSet()


@in_forked_child
def _hold_nothing() -> None:
    """Forget in a forked child what is its parent's, as a pickled copy does."""
    for semaphore in _semaphores:
        semaphore._held = []  # noqa: SLF001 - of this module


class Semaphore:
    """At most so many holders at a time, over all clients and workers of a queue's server.

    It can be pickled: in another process it is the same semaphore, held by nobody there, nor in a
    forked child. It travels without a URL, and is looked for on the server that the other process
    uses. It is as durable as that server: one that came back older, or empty, may give a place
    twice. What an object holds that nobody refers to any more is given back, as that of a task
    which raised before `release`.

    Parameters
    ----------
    max_leases : int, default 1
        How many may hold it at a time.
    name : str, optional
        By which all find it; by default one that nobody else has.
    queue : str, Queue or LocalCluster, optional
        Where its keys are; by default the queue of the settings. Without ``redisq.url`` it is on
        the server of the `LocalCluster` that runs in this process, as for the tasks there.
    expiry : float, default 60
        Seconds after which a place is free again whose holder died. Who lives renews it, from a
        thread: C code that keeps the GIL for longer than this loses it. What a task held on a
        queue of its worker is free at once when that worker sees the task's process end.

    Attributes
    ----------
    fence : int
        Of the place that this object took last, 0 if it has none: a number that is higher for each
        later holder. A store that refuses lower ones than it has seen is safe from a holder that
        was stopped, lost its place and went on.

    Raises
    ------
    ValueError
        If nobody could hold it, or only for less than a second.
    NoServerError
        When it is to be taken, and no server is named, but several clusters run in this process.

    See Also
    --------
    distributed.Semaphore, distributed.Lock : whose words these are

    Examples
    --------
    >>> import dask_redisq as redisq
    >>> with redisq.Semaphore(2, "licences"):  # doctest: +SKIP
    ...     solve()
    """

    def __init__(
        self,
        max_leases: int = 1,
        name: str | None = None,
        queue: str | Queue | LocalCluster | None = None,
        expiry: float = 60.0,
    ) -> None:
        self.max_leases = whole("max_leases, how many may hold it,", max_leases, 1)
        self.name = secrets.token_hex(16) if name is None else name
        self.expiry = seconds("expiry", expiry, 1)
        self._held: list[_Place] = []
        _semaphores.add(self)
        self._queue = queue_of(queue) if isinstance(queue, Queue | LocalCluster) else None
        self._queue_name = setting("queue", queue) if self._queue is None else self._queue.name
        #: Whether it stays that name, whatever cluster runs when this is first used, or sent.
        self._settled = queue is not None

    def __repr__(self) -> str:
        held = f", held with fence {self.fence}" if self._held else ""
        return f"<{type(self).__name__} {self.name} of queue {self._queue_name}{held}>"

    def __getstate__(self) -> dict[str, Any]:
        with suppress(NoServerError):  # it is only here that it could be several
            self._settle()
        kept = "max_leases", "name", "expiry", "_queue_name"
        return {word: getattr(self, word) for word in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._queue, self._held, self._settled = None, [], True
        _semaphores.add(self)

    def _settle(self) -> None:
        """Take the queue of the one cluster that runs here: it is the default of its tasks."""
        if not self._settled:
            cluster = cluster_meant(self._queue_name)
            self._queue_name = self._queue_name if cluster is None else cluster.queue
            self._settled = True

    @property
    def fence(self) -> int:
        """The number of the last place taken; see the class."""
        return self._held[-1].fence if self._held else 0

    def acquire(self, blocking: bool = True, timeout: float | None = -1) -> bool:  # noqa: FBT001, FBT002 - as threading.Lock
        """Take it, or wait until it is free.

        Parameters
        ----------
        blocking : bool, default True
            False: return at once.
        timeout : float, optional
            Seconds to wait at most; by default, below 0 and None, for ever: threading's word for it
            and distributed's.

        Returns
        -------
        bool
            Whether it was taken.
        """
        queue, token = self._find_queue(), secrets.token_hex(8)
        timeout = patience(timeout)
        wait = math.inf if timeout is None or timeout < 0 else timeout
        if not blocking:
            wait = 0.0
        with queue.pool.lend() as link:
            fence = 0
            try:
                fence = self._wait(link, queue.keys, token, time.monotonic() + wait)
            finally:
                if not fence:
                    # Interrupted, it may be taken; and a copy of a call may come late. Neither may
                    # take what nobody would give back.
                    link.call("release", queue.keys, name=self.name, token=token)
        if fence:
            place = _Place(token, fence)
            self._held.append(place)
            words = {"name": self.name, "token": token}
            threading.Thread(
                target=_renew, args=(queue, place.over, words, self.expiry),
                name="lock", daemon=True,
            ).start()  # fmt: skip
        return fence > 0

    def _wait(self, link: Link, keys: Keys, token: str, deadline: float) -> int:
        """Return the fence, 0 if there was no place in time."""
        fence = self._try(link, keys, token, min(deadline, time.monotonic() + SOON))
        if fence or time.monotonic() >= deadline:
            return fence
        # Who holds it may compute, with tasks on this very queue, and all its slots may wait here.
        with stand_in(link.url, keys, Wait.LOCK):
            return self._try(link, keys, token, deadline)

    def _try(self, link: Link, keys: Keys, token: str, deadline: float) -> int:
        while True:
            answer = link.call(
                "acquire", keys, name=self.name, token=token,
                places=self.max_leases, expiry=int(self.expiry * 1000),
                slot=own_slot(link.url, keys),
            )  # fmt: skip
            fence, again = unpack(answer)
            left = min(again / 1000, RECHECK, deadline - time.monotonic())
            if fence or left <= 0:
                return int(fence)
            link.command("BLPOP", keys("freed", self.name), max(0.01, left))

    def release(self) -> None:
        """Give it back.

        Raises
        ------
        RuntimeError
            If this object does not hold it, or its parent does, in a forked child.
        LockLost
            If it was not renewed for longer than `expiry`: somebody else may have had it meanwhile.
            Or if its server has ended, as that of a `LocalCluster` that was closed.
        """
        if not self._held:
            raise RuntimeError(f"{self!r} is not held here: it cannot be released")
        place = self._held.pop()
        place.over.put("released")
        queue = self._find_queue()
        try:
            with queue.pool.lend() as link:
                held = link.call("release", queue.keys, name=self.name, token=place.token)
        except NoServerError as ended:
            raise LockLost(f"{self!r} is lost: {ended}") from None
        if not held:
            raise LockLost(
                f"{self!r} was not renewed for {self.expiry:g} s, and somebody else may have "
                "had it: what it guards may have been changed by both"
            )

    def locked(self) -> bool:
        """Tell whether this object holds it."""
        return bool(self._held)

    def _find_queue(self) -> Queue:
        if self._queue is None:
            self._settle()
            self._queue = queue_meant(self._queue_name)
        return self._queue

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        _: type[BaseException] | None,
        __: BaseException | None,
        ___: TracebackType | None,
    ) -> None:
        self.release()


def _renew(queue: Queue, over: SimpleQueue[str], words: dict[str, str], expiry: float) -> None:
    """Renew a place until it is over; give it back if nobody else will.

    This knows neither the place nor its semaphore: it would keep them from being garbage.
    """

    def call(script: str, **more: int) -> bool:
        try:
            with queue.pool.lend() as link:
                return bool(link.call(script, queue.keys, **words, **more))
        except NoServerError:
            return False  # the server has ended, and the lock with it: `release` says so
        except ServerUnavailable:
            return True

    while True:
        try:
            end = over.get(timeout=expiry / 3)
        except Empty:
            if not call("hold", expiry=int(expiry * 1000)):
                return  # `release` says so
        else:
            if end == "forgotten":
                call("release")
            return


class Lock(Semaphore):
    """A lock that one at a time can hold, over all clients and workers of a queue's server.

    See `Semaphore`, whose other parameters it has.

    Parameters
    ----------
    name : str, optional
        By which all find it; by default one that nobody else has.

    Examples
    --------
    >>> import dask_redisq as redisq
    >>> da.store(x, target, lock=redisq.Lock("target"))  # doctest: +SKIP
    """

    def __init__(
        self,
        name: str | None = None,
        queue: str | Queue | LocalCluster | None = None,
        expiry: float = 60.0,
    ) -> None:
        super().__init__(1, name, queue, expiry)
