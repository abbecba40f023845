"""Which queues this process serves; and who takes its place while a task of theirs waits for tasks.

A slot whose task computes on its own queue would wait for itself, with one slot for ever, and with
more as soon as as many tasks do so. So its supervisor starts a stand-in for that time: the secede
of distributed, with processes. There is a most of those; beyond it the task does the work itself.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from dask_redisq.errors import RedisqError
from dask_redisq.forks import in_forked_child
from dask_redisq.keys import Keys
from dask_redisq.page import Page, Wait

__all__ = [
    "in_slot",
    "job_in_hand",
    "name_of_slot",
    "own_slot",
    "serve",
    "served_url",
    "serves",
    "stand_in",
]

#: Seconds for which an answer of the supervisor is waited for.
PATIENCE = 2.0

_served: set[tuple[str, str]] = set()
_page: Page | None = None
_supervisor = 0
_where = ""
#: The slot's start id, and its process: what a task forks is not seen to end.
_slot, _process = "", 0
_lock = threading.Lock()
#: How many calls in this process wait now.
_waiting = 0


def serve(
    url: str, queues: Iterable[str], page: Page | None = None, where: str = "", slot: str = ""
) -> None:
    """Note that this process is a slot of `queues` on the server at `url`, of worker `where`."""
    global _page, _supervisor, _where, _slot, _process  # noqa: PLW0603
    _where, _slot, _process = where, slot, os.getpid()
    _supervisor = os.getppid()  # now: a process that a task forks has another parent
    _served.update((url, queue) for queue in queues)
    _page = page


def in_slot() -> bool:
    """Tell whether this process is a slot."""
    return bool(_served)


def served_url() -> str:
    """Return the URL of the server whose slot this process is; empty if it is none."""
    return next((url for url, _ in _served), "")


def name_of_slot() -> str:
    """Return the name of the worker whose slot this process is; empty if it is none."""
    return _where


def serves(url: str, keys: Keys) -> bool:
    """Tell whether tasks of a queue run in this process."""
    return (url, keys.queue) in _served


def own_slot(url: str, keys: Keys) -> str:
    """Return the start id of the slot of a queue that this very process is; empty if it is none."""
    return _slot if serves(url, keys) and os.getpid() == _process else ""


def job_in_hand(url: str, keys: Keys) -> str:
    """Return the job whose task runs in this process, a slot of that queue; empty for none."""
    return _page.read().job.decode() if _page is not None and serves(url, keys) else ""


@contextmanager
def stand_in(url: str, keys: Keys, what: Wait = Wait.TASKS) -> Iterator[bool]:
    """Have another slot work in this one's place while the block waits for tasks of a queue.

    Gives false if there is none: to wait may be for ever then. For futures that is an error, and
    there may be more of them. Outside of that queue's slots there is nothing to do.

    Raises
    ------
    RedisqError
        If it waits for futures, and there is none.
    """
    global _waiting  # noqa: PLW0603
    if not serves(url, keys):
        yield True
        return
    with _lock:  # a second call waits for the answer to the first one
        granted = _page is not None and (_waiting > 0 or _ask(_page, what))
        _waiting += granted
    try:
        if what == Wait.FUTURES and not granted:
            raise RedisqError(
                "a task waits for a future of its own queue, and so do all the slots that may "
                "stand in for its worker's. Compute with scheduler=redisq.get there, which then "
                "works in place, or start more workers"
            )
        yield granted
    finally:
        with _lock:
            _waiting -= granted
            if _page is not None and not _waiting:
                _page.wait_no_more()


def _ask(page: Page, what: Wait) -> bool:
    page.wait_for(what)
    os.kill(_supervisor, signal.SIGCHLD)  # it looks at its pages at once
    deadline = time.monotonic() + PATIENCE
    while (answer := page.stand_in()) is None and time.monotonic() < deadline:
        time.sleep(0.001)
    return bool(answer)


@in_forked_child
def _begin_anew() -> None:
    """Renew the lock in a forked child, where none of the threads is that waited here."""
    # Story: one thread of a task computes on its queue, and holds the lock until the supervisor
    # answers; another one forks. Nobody would release it in the child, which computes too.
    global _lock, _waiting  # noqa: PLW0603
    _lock = threading.Lock()
    _waiting = 0
