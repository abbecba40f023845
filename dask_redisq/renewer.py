"""The helper process of a client: renews the leases of its jobs until the client is gone.

Started by `client_lease`, which tells it by lines of JSON on stdin which jobs to hold and to drop,
and which kept ones nobody in the client wants any more: it lets go of these.
The URL comes by environment. It ends with its stdin, and when its parent is another one: a forked
child of the client may hold the other end of that pipe, long after the client was killed.

It speaks for a client that is busy, not for one that was stopped: that may never go on, and its
job would hold the workers. When it does go on, it submits again what is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass

import psutil

from dask_redisq.errors import ServerRefused, ServerUnavailable
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.monitor import renew_values, sweep

__all__ = ["Held", "Renewer"]

#: Seconds between two looks at who the parent is.
LOOK = 0.5
#: Seconds after the client's end in which kept jobs are let go.
LAST = 5.0


@dataclass
class Held:
    """One job whose lease is kept.

    Attributes
    ----------
    keys : Keys
        Its queue.
    lease : float
        Seconds.
    due, values_due : float
        When the lease, and the keys of large values, are renewed next; by `time.monotonic`.
    """

    keys: Keys
    lease: float
    due: float = 0.0
    values_due: float = 0.0


class Renewer:
    """Renews the leases of some jobs.

    Parameters
    ----------
    link : Link
        The server.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.jobs: dict[str, Held] = {}
        #: Kept jobs that are to be let go.
        self.released: deque[tuple[Keys, str]] = deque()

    def __repr__(self) -> str:
        return f"<Renewer of {len(self.jobs)} jobs>"

    def obey(self, line: bytes | str) -> None:
        """Take an order of the client."""
        verb, *words = json.loads(line)
        if verb == "hold":
            queue, job, lease = words
            self.jobs[job] = Held(Keys(queue), lease)
        elif verb == "drop":
            self.jobs.pop(words[0], None)
        else:
            queue, job = words
            self.jobs.pop(job, None)
            self.released.append((Keys(queue), job))

    def run(self, now: float) -> None:
        """Renew what is due at `now`, and let go; a job that is gone is dropped."""
        while self.released:
            keys, job = self.released[0]
            if self.link.call("let_go", keys, job=job) == 1:
                sweep(self.link, keys, job)
            self.released.popleft()
        for job, held in list(self.jobs.items()):
            if now < held.due:
                continue
            state = self.link.call("renew_client", held.keys, job=job)
            if state == b"":
                self.jobs.pop(job, None)
                continue
            if now >= held.values_due:
                renew_values(self.link, held.keys, job)
                held.values_due = now + held.lease
            held.due = now + held.lease / 3


def _is_stopped(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:  # it is gone
        return False


def main(argv: list[str] | None = None) -> None:
    """Run the helper of the process `--owner`."""
    parser = argparse.ArgumentParser(prog="python -m dask_redisq.renewer")
    parser.add_argument("--owner", type=int, required=True)
    owner = parser.parse_args(argv).owner
    renewer = Renewer(Link(os.environ["DASK_REDISQ__URL"], patience=1.0))
    news, over = threading.Event(), threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            renewer.obey(line)
            news.set()
        if not renewer.released:
            os._exit(0)  # a call that waits for the server must not keep us
        over.set()
        news.set()
        time.sleep(LAST)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    until = math.inf
    while time.monotonic() < until:
        # A client that ended at once may have left orders that are not read yet.
        if os.getppid() != owner and until == math.inf:
            until = time.monotonic() + LAST
        if over.is_set() or not _is_stopped(owner):
            try:
                renewer.run(time.monotonic())
            except ServerRefused:
                return
            except ServerUnavailable:
                pass  # the next turn tries again
        if over.is_set() and not renewer.released:
            os._exit(0)
        news.wait(min(LOOK, 0.2 * min((h.lease for h in list(renewer.jobs.values())), default=9)))
        news.clear()


if __name__ == "__main__":
    main()
