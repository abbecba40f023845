"""A page of memory that a slot writes and its supervisor reads: what runs now.

The supervisor must know which task was running when a slot died, and a message per task would
cost more than the task. Writing here costs 0.3 us.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from typing import NamedTuple

__all__ = ["Cursor", "Page"]

_SIZE = 4096
_CURSOR = struct.Struct("<qqqqI32s")
_BEGUN = struct.Struct("<qq")
_CALLS_AT = 256
_STOP_AT = 1024
#: Queues that one worker may serve.
MOST_QUEUES = (_STOP_AT - _CALLS_AT) // 8


class Cursor(NamedTuple):
    """Where a slot is.

    Attributes
    ----------
    begun : int
        The running task; -1 for none.
    position : int
        How far down its lease.
    seq : int
        Sequence number of the lease in hand; 0 for none.
    since_ms : int
        When that lease came, by the slot's `time.monotonic`.
    queue : int
        The queue, by its place in the slot's list.
    job : bytes
        The job.
    """

    begun: int
    position: int
    seq: int
    since_ms: int
    queue: int
    job: bytes


class Page:
    """The shared page; made by the supervisor, opened by the slot from the descriptor.

    Parameters
    ----------
    fd : int, optional
        Descriptor of an existing page; a new, unnamed one is made without it.
    """

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            with tempfile.TemporaryFile() as file:
                file.truncate(_SIZE)
                fd = os.dup(file.fileno())
            fresh = True
        else:
            fresh = False
        self.fd = fd
        self._memory = mmap.mmap(fd, _SIZE)
        if fresh:
            self.rest()

    def hold(self, queue: int, job: str, seq: int, since_ms: int) -> None:
        """Write that lease `seq` of a queue is in hand, and nothing of it has begun."""
        _CURSOR.pack_into(self._memory, 0, -1, -1, seq, since_ms, queue, job.encode())

    def begin(self, task: int, position: int) -> None:
        """Write that `task` begins, `position` down the lease."""
        _BEGUN.pack_into(self._memory, 0, task, position)

    def rest(self) -> None:
        """Write that no lease is in hand."""
        _CURSOR.pack_into(self._memory, 0, -1, -1, 0, 0, 0, b"")

    def read(self) -> Cursor:
        """Return where the slot is."""
        begun, position, seq, since, queue, job = _CURSOR.unpack_from(self._memory, 0)
        return Cursor(begun, position, seq, since, queue, job.rstrip(b"\0"))

    def answered(self, queue: int, seq: int) -> None:
        """Write that call `seq` on a queue was answered."""
        struct.pack_into("<q", self._memory, _CALLS_AT + 8 * queue, seq)

    def last_answered(self, queue: int) -> int:
        """Return the number of the last call on a queue that was answered."""
        seq: int = struct.unpack_from("<q", self._memory, _CALLS_AT + 8 * queue)[0]
        return seq

    def stop(self, job: bytes) -> None:
        """Ask the slot to begin no further task of `job`."""
        self._memory[_STOP_AT : _STOP_AT + 32] = job.ljust(32, b"\0")

    def stopped(self, job: bytes) -> bool:
        """Tell whether the slot was asked to begin no further task of `job`."""
        return self._memory[_STOP_AT : _STOP_AT + 32] == job.ljust(32, b"\0")

    def close(self) -> None:
        """Unmap the page and close its descriptor."""
        self._memory.close()
        os.close(self.fd)
