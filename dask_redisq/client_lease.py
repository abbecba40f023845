"""Keeps the leases of a client's jobs while the client itself cannot: from beside its GIL.

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
from pathlib import Path

__all__ = ["drop", "hold"]


class _Helper:
    """The helper process of one server, from its client's side."""

    def __init__(self, url: str) -> None:
        safe = ["-P"] if sys.flags.safe_path else []
        environment = {**os.environ, "DASK_REDISQ__URL": url}  # not argv: `ps` shows that to all
        environment.pop("DASK_REDISQ__SECRET", None)  # it reads no payloads
        # The client may have found us by a sys.path of its own.
        here, given = str(Path(__file__).parent.parent), environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{given}{os.pathsep}{here}" if given else here
        self.jobs: set[str] = set()
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

    def __repr__(self) -> str:
        return f"<_Helper pid={self.process.pid}, {len(self.jobs)} jobs>"

    def tell(self, *words: object) -> None:
        """Send an order; a helper that was killed is not missed, the client renews as well."""
        with contextlib.suppress(OSError):
            os.write(self._line, json.dumps(words).encode() + b"\n")

    def close(self) -> None:
        """End it, and wait until it is gone."""
        os.close(self._line)
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def let_go(self) -> None:
        """Give up a forked child's copies: the helper is its parent's."""
        os.close(self._line)
        self.process.returncode = 0  # not ours to wait for


_helpers: dict[str, _Helper] = {}
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
    with _lock:
        helper = _helpers.get(url)
        if helper is None:
            try:
                helper = _helpers[url] = _Helper(url)
            except OSError:  # no more processes: the client's own calls must do
                return
        helper.jobs.add(job)
        helper.tell("hold", queue, job, lease)


def drop(url: str, job: str) -> None:
    """Let the lease of a job be; the helper ends with its last one."""
    with _lock:
        helper = _helpers.get(url)
        if helper is None or job not in helper.jobs:
            return
        helper.jobs.remove(job)
        helper.tell("drop", job)
        if not helper.jobs:
            del _helpers[url]
            helper.close()


def _begin_anew() -> None:
    """Forget the parent's helpers, in a forked child."""
    global _lock  # noqa: PLW0603 - another thread of the parent may have held it
    _lock = threading.Lock()
    for helper in _helpers.values():
        helper.let_go()
    _helpers.clear()


os.register_at_fork(after_in_child=_begin_anew)
