"""A process that outlives its supervisor by a moment, and ends what the slots' tasks started.

A slot ends with its supervisor, by the kernel's hand. What its task started, a shell or a pool,
would run on: when a supervisor is killed, nobody else knows of it. The guard knows the groups
that the slots lead, and sees the end of the supervisor by the end of its input.

This file also is the guard's program, and imports nothing of the package: it starts in 10 ms.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

__all__ = ["Guard"]


class Guard:
    """The supervisor's end of its guard."""

    def __init__(self) -> None:
        read, self._write = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=read,
            start_new_session=True,  # away from the signals for its supervisor's group
        )
        os.close(read)

    def __repr__(self) -> str:
        return f"<Guard {self._process.pid}>"

    def watch(self, group: int) -> None:
        """End this group when the supervisor ends."""
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """Leave this group alone: it ended, and its number may become another's."""
        self._tell(f"-{group}\n")

    def _tell(self, words: str) -> None:
        with contextlib.suppress(OSError):  # somebody killed it: the slots run without
            os.write(self._write, words.encode())

    def close(self) -> None:
        """End it, and wait until it is gone."""
        os.close(self._write)
        self._process.wait()


def _guard() -> None:
    """Follow what the supervisor tells, to its end; then kill the groups that are left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line[0] == "+":
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    _guard()
