"""How many tasks the slots of one worker may still begin: a number that their processes share.

A task is taken off just before it runs, and never given back: so there are no more of them than
were allowed, whatever dies, and a slot that dies takes none along but the one that it ran.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile

__all__ = ["Allowance"]

_LEFT = struct.Struct("<q")


class Allowance:
    """The number; made by the supervisor, opened by a slot from the descriptor.

    Parameters
    ----------
    tasks : int, optional
        How many, for a new one.
    fd : int, optional
        Descriptor of an existing one.
    """

    def __init__(self, tasks: int = 0, *, fd: int | None = None) -> None:
        fresh = fd is None
        if fd is None:
            with tempfile.TemporaryFile() as file:
                file.truncate(_LEFT.size)
                fd = os.dup(file.fileno())
        self.fd = fd
        self._memory = mmap.mmap(fd, _LEFT.size)
        if fresh:
            _LEFT.pack_into(self._memory, 0, tasks)

    def __repr__(self) -> str:
        return f"<Allowance of {self.left} more tasks>"

    @property
    def left(self) -> int:
        """How many may still begin; once it is 0 it stays 0."""
        left: int = _LEFT.unpack_from(self._memory, 0)[0]
        return left

    def take(self) -> bool:
        """Take one off; false if none is left."""
        if self.left == 0:
            return False
        # A lock of the process and not of the open file, which all of them share. The kernel
        # lets go of it when its process is killed; the number is written at once or not at all.
        os.lockf(self.fd, os.F_LOCK, 0)
        try:
            left = self.left
            if left > 0:
                _LEFT.pack_into(self._memory, 0, left - 1)
            return left > 0
        finally:
            os.lockf(self.fd, os.F_ULOCK, 0)

    def close(self) -> None:
        """Unmap it and close its descriptor."""
        self._memory.close()
        os.close(self.fd)
