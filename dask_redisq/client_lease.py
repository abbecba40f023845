"""Keeps the leases of a client's jobs while the client itself cannot: from beside its GIL.

And lets go of kept jobs when the last that holds their values in this process is garbage, which may
be found anywhere, in the midst of a call to the server too: so another process makes that call.

A client that unpickles gigabytes makes no call for a minute, and no thread of it runs either. So
jobs that live long are told to a small process (`renewer`), one per server, which ends with the
last of them, or with its client.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from dask_redisq.forks import in_forked_child

__all__ = ["Hold", "drop", "hold", "look", "settle"]


class _Helper:
    """The helper process of one server, from its client's side."""

    def __init__(self, url: str) -> None:
        self.url = url
        #: What it holds: job -> the order to do so.
        self.jobs: dict[str, tuple[object, ...]] = {}
        #: Jobs that it was told to let go, still in `jobs`: a finalizer must not take a lock.
        self.released: deque[str] = deque()
        self._line = -1
        self._start()

    def _start(self) -> None:
        safe = ["-P"] if sys.flags.safe_path else []
        environment = {**os.environ, "DASK_REDISQ__URL": self.url}  # not argv: `ps` shows that
        environment.pop("DASK_REDISQ__SECRET", None)  # it reads no payloads
        # The client may have found us by a sys.path of its own.
        here, given = str(Path(__file__).parent.parent), environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{given}{os.pathsep}{here}" if given else here
        theirs, self._line = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, *safe, "-m", "dask_redisq.renewer", "--owner", str(os.getpid())],
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # away from the terminal: Ctrl-C is for the client
        )
        os.close(theirs)

    def restart(self) -> None:
        """Start it again, and tell it all that it held."""
        self.close()
        self._start()
        for order in self.jobs.values():
            self.tell(*order)

    def hold(self, queue: str, job: str, lease: float) -> None:
        """Have it renew the lease of a job."""
        self.jobs[job] = ("hold", queue, job, lease)
        self.tell(*self.jobs[job])

    def __repr__(self) -> str:
        return f"<_Helper pid={self.process.pid}, {len(self.jobs)} jobs>"

    def tell(self, *words: object) -> None:
        """Send an order; one that was killed hears nothing, and `restart` tells its successor."""
        with contextlib.suppress(OSError):
            os.write(self._line, json.dumps(words).encode() + b"\n")

    def forget_released(self) -> None:
        """Take what was let go off the list."""
        while self.released:
            self.jobs.pop(self.released.popleft(), None)

    def close(self) -> None:
        """End it, and wait until it is gone."""
        self.hang_up()
        try:
            self.process.wait(6)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def hang_up(self) -> None:
        """Let it end, once it did what it was told."""
        if self._line >= 0:
            os.close(self._line)
            self._line = -1

    def let_go(self) -> None:
        """Give up a forked child's copies: the helper is its parent's."""
        self.hang_up()
        self.process.returncode = 0  # not ours to wait for


_helpers: dict[str, _Helper] = {}
#: Those that were told to end, and not yet waited for.
_ending: list[_Helper] = []
_lock = threading.Lock()


def hold(url: str, queue: str, job: str, lease: float) -> None:
    """Have the lease of a job, and its keys, renewed until `drop`; starts the helper if need be.

    Parameters
    ----------
    url, queue, job : str
        Which job.
    lease : float
        Seconds; it is renewed at each third of them.
    """
    with contextlib.suppress(OSError):  # no more processes: the client's own calls must do
        _hold(url, queue, job, lease)


def _hold(url: str, queue: str, job: str, lease: float) -> _Helper:
    with _locked():
        # Those that ended are zombies until somebody asks; to wait for one takes longer than this.
        _ending[:] = [helper for helper in _ending if helper.process.poll() is None]
        helper = _living(url) or _Helper(url)
        _helpers[url] = helper
        helper.hold(queue, job, lease)
        return helper


def _living(url: str) -> _Helper | None:
    """Return the helper of a server; one that was killed has a successor, which is told all."""
    helper = _helpers.get(url)
    if helper is None or helper.process.poll() is None:
        return helper
    helper.forget_released()
    helper.restart()
    return helper


def look() -> None:
    """Start helpers again that were killed: nobody else renews what they held."""
    if _helpers:
        with _locked():
            for url in list(_helpers):
                _living(url)


class Hold:
    """The client's hold on a kept job, until this object is garbage.

    Parameters
    ----------
    url, queue, job, lease
        As for `hold`.

    Raises
    ------
    OSError
        If no process can be started: nobody would renew the lease.
    """

    def __init__(self, url: str, queue: str, job: str, lease: float) -> None:
        self.job = job
        helper = _hold(url, queue, job, lease)
        weakref.finalize(self, _release, helper, queue, job)

    def __repr__(self) -> str:
        return f"<Hold on job {self.job}>"


def _release(helper: _Helper, queue: str, job: str) -> None:
    # In a forked child, whose copy is not the last one, the line is closed.
    helper.tell("release", queue, job)
    helper.released.append(job)
    _settle_released()


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    try:
        with _lock:
            yield
    finally:
        _settle_released()


def _settle_released() -> None:
    """End helpers whose last job was let go, unless another thread has the lock: it does so then.

    Garbage is found anywhere, by a thread that holds the lock, too.
    """
    while any(helper.released for helper in list(_helpers.values())):
        if not _lock.acquire(blocking=False):
            return
        try:
            for url in list(_helpers):
                _settle(url)
        finally:
            _lock.release()


def settle() -> None:
    """End the helpers that hold nothing any more."""
    with _locked():
        for url in list(_helpers):
            _settle(url)
        _reap()


def _settle(url: str) -> None:
    helper = _helpers.get(url)
    if helper is not None:
        helper.forget_released()
        if not helper.jobs:
            del _helpers[url]
            _ending.append(helper)
            helper.hang_up()


def _reap() -> None:
    while _ending:
        _ending.pop().close()


def drop(url: str, job: str) -> None:
    """Let the lease of a job be; the helper ends with its last one."""
    with _locked():
        helper = _helpers.get(url)
        if helper is None or job not in helper.jobs:
            return
        del helper.jobs[job]
        helper.tell("drop", job)
        _settle(url)
        _reap()


@in_forked_child
def _begin_anew() -> None:
    """Forget the parent's helpers, in a forked child."""
    global _lock  # noqa: PLW0603 - another thread of the parent may have held it
    _lock = threading.Lock()
    for helper in (*_helpers.values(), *_ending):
        helper.let_go()
    _helpers.clear()
    _ending.clear()
