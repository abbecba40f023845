"""Tests that measure time have the machine for themselves, though two run at a time.

0.05 s became 0.53, of 0.5 that are allowed, while the test beside it started workers.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["end_turns", "turn"]


def _locks() -> list[Path]:
    """Return the files that the processes of one run lock; none if it has one process."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    names = ("door", "room") if run else ()
    return [Path(tempfile.gettempdir(), f"redisq-tests-{run}-{name}") for name in names]


@contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Run with others that are not `alone`, or with nobody.

    Who is alone holds the door while those before it end: else the next ones came in all the time.
    """
    locks = _locks()
    if not locks:
        yield
        return
    with locks[0].open("w") as entering, locks[1].open("w") as inside:
        fcntl.flock(entering, fcntl.LOCK_EX)
        fcntl.flock(inside, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(entering, fcntl.LOCK_UN)
        yield


def end_turns() -> None:
    """Remove the locks. Who is left then is alone in any case."""
    for lock in _locks():
        lock.unlink(missing_ok=True)
