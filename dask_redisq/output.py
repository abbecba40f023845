"""What slots print: it goes where their worker's own output goes, and the last of it is kept.

A thread copies, not the supervisor's loop: that waits while the server is away, and a task that
prints would wait with it.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import threading
import time
from collections.abc import Iterable

__all__ = ["Outputs", "Tail"]

#: What is kept of one slot's output.
LINES, BYTES = 20, 4096
#: Seconds to wait for the end of an output: a process that left the slot's group may hold it open.
PATIENCE = 0.2


class Tail:
    """The end of one slot's output, stdout and stderr in the order in which they came."""

    def __init__(self) -> None:
        self._text = b""
        self._lock = threading.Lock()
        self._open = 2
        self._ended = threading.Event()

    def __repr__(self) -> str:
        return f"<Tail of {len(self._text)} bytes, {self._open} open>"

    def add(self, data: bytes) -> None:
        """Note what came."""
        with self._lock:
            self._text = (self._text + data)[-BYTES:]

    def end(self) -> None:
        """Note the end of one of the two streams."""
        self._open -= 1
        if self._open == 0:
            self._ended.set()

    @property
    def ended(self) -> bool:
        """Whether both streams ended."""
        return self._ended.is_set()

    def wait(self, seconds: float = PATIENCE) -> None:
        """Wait until both streams ended, but not longer than that."""
        self._ended.wait(seconds)

    def lines(self) -> str:
        """Return the last lines."""
        with self._lock:
            text = self._text.decode(errors="replace")
        return "\n".join(text.rstrip().splitlines()[-LINES:])


class Outputs:
    """The output of all slots of a worker, copied to its own stdout and stderr."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._tails: set[Tail] = set()
        self._thread: threading.Thread | None = None
        #: What is written here ends the thread.
        self._end_read, self._end_write = os.pipe()
        self._selector.register(self._end_read, selectors.EVENT_READ)

    def __repr__(self) -> str:
        return f"<Outputs of {len(self._tails)} slots>"

    def open(self) -> tuple[Tail, int, int]:
        """Return where the last of a new slot's output is kept, its stdout and its stderr.

        The caller closes the two once the slot has them: their end is how its end is seen.
        """
        tail, writers = Tail(), []
        self._tails.add(tail)
        for target in (1, 2):
            read, write = os.pipe()
            self._selector.register(read, selectors.EVENT_READ, (target, tail))
            writers.append(write)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="output", daemon=True)
            self._thread.start()
        return tail, writers[0], writers[1]

    def close(self, seconds: float = 1.0) -> None:
        """Wait until all that ended slots printed is copied, at most that long; then stop."""
        deadline = time.monotonic() + seconds
        for tail in list(self._tails):
            tail.wait(max(0.0, deadline - time.monotonic()))
        if self._thread is not None:
            os.write(self._end_write, b"\0")
            self._thread.join(seconds)
            if self._thread.is_alive():  # nobody reads what it writes: it ends with this process
                return
        # A process that left its slot's group may still hold one open.
        for registered in list(self._selector.get_map().values()):
            os.close(registered.fd)
        self._selector.close()
        os.close(self._end_write)

    def _run(self) -> None:
        # A signal that this thread took would not interrupt what the main thread waits for.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while self._copy([key for key, _ in self._selector.select()]):
            pass

    def _copy(self, ready: Iterable[selectors.SelectorKey]) -> bool:
        """Copy what can be read; false once it is over."""
        for key in ready:
            if key.data is None:
                return False
            target, tail = key.data
            data = os.read(key.fd, 65_536)
            if data:
                tail.add(data)
                _write(target, data)
                continue
            self._selector.unregister(key.fd)
            os.close(key.fd)
            tail.end()
            if tail.ended:
                self._tails.discard(tail)
        return True


def _write(target: int, data: bytes) -> None:
    """Write all of it; what cannot be written is lost, and the slot goes on."""
    with contextlib.suppress(OSError):
        while data:
            try:
                data = data[os.write(target, data) :]
            except BlockingIOError:
                select.select([], [target], [], 1.0)
