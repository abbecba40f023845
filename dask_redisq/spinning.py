"""Waits awake for a reply, for a moment: to fall asleep and be woken may take longer than the wait.

A slot whose tasks are short asks the server thousands of times a second, and a reply takes 0.1 ms.
A core that has nothing to do halts meanwhile, and comes back late, with cold caches: 20 us of 134
for each iteration of an empty loop in chunks of one. With more slots than cores it is the other way
round, 143 us and not 127: others need the core.
"""

from __future__ import annotations

import os
import select
import time
from functools import partial

__all__ = ["SPIN", "spin"]

#: Seconds for which to wait so, at most.
SPIN = 0.0002
#: Seconds after which, if it took as long to come back, others need the core.
NEEDED = 0.00002

_give_way = getattr(os, "sched_yield", partial(time.sleep, 0))


def spin(fd: int, seconds: float = SPIN) -> None:
    """Return once a descriptor can be read, after some seconds, or as soon as others need the core.

    Where there is no `select.poll`, on Windows, return at once.
    """
    if not hasattr(select, "poll"):
        return
    found = select.poll()
    found.register(fd, select.POLLIN)
    now = time.perf_counter()
    deadline = now + seconds
    while now < deadline and not found.poll(0):
        _give_way()
        before, now = now, time.perf_counter()
        if now - before > NEEDED:
            return
