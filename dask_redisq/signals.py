"""Signals as something that a selector waits for, for as long as a block lasts."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, Self

__all__ = ["Signals"]


class Signals:
    """Hears SIGTERM, SIGINT and SIGCHLD; a context manager, which leaves what was there before.

    In a thread that is not the main one it hears none, since Python sets no handlers there.

    Parameters
    ----------
    on_stop : callable
        Called without arguments at SIGTERM and SIGINT.
    """

    def __init__(self, on_stop: Callable[[], None]) -> None:
        self._on_stop = on_stop
        self._read = self._write = self._fd_before = -1
        self._before: dict[int, Any] = {}

    def __repr__(self) -> str:
        return f"<Signals {sorted(self._before)}>"

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        if threading.current_thread() is threading.main_thread():
            self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            self._set(signal.SIGCHLD, lambda *_: None)  # without a handler it wakes nobody
            for number in (signal.SIGTERM, signal.SIGINT):
                self._set(number, lambda *_: self._on_stop())
        return self

    def _set(self, number: int, handler: Callable[..., None]) -> None:
        self._before[number] = signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        if self._before:
            for number, handler in self._before.items():
                if handler is not None:  # else it was set outside of Python, which cannot set it
                    signal.signal(number, handler)
            signal.set_wakeup_fd(self._fd_before)
            self._before = {}
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        """Return the descriptor that can be read once a signal came."""
        return self._read

    def clear(self) -> None:
        """Forget those that came."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)
