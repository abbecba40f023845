"""A page of memory that a slot writes and its supervisor reads: what runs now.

The supervisor must know which task was running when a slot died, and a message per task would
cost more than the task. Writing here costs 0.3 us; the clock is read for tasks with a limit only.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from enum import IntEnum
from typing import NamedTuple

__all__ = ["Cursor", "Limit", "Page", "Wait"]

_SIZE = 4096
_CURSOR = struct.Struct("<qqqqII32s")
_BEGUN = struct.Struct("<qq")
_LIMIT = struct.Struct("<qqqqq")
_LIMIT_AT = 256
_CALLS_AT = 512
_GIVEN = struct.Struct("<q")
_STOP = struct.Struct("<32sq")
_TOLD_AT, _STOP_AT, _GIVEN_AT = 1023, 1024, 1088
#: Whether the task in hand waits for other tasks, and what the supervisor says to that.
_WAITS_AT, _STAND_IN_AT = 1100, 1101
#: How many leases the slot has had.
_LEASES_AT = 1104
#: The first and the last of the tasks that are being read, and 1 more, so that 0 is none.
_READ = struct.Struct("<qq")
_READ_AT = 1112
#: Why the slot gave up before it was ready: how long that is, and the text.
_WHY = struct.Struct("<I")
_WHY_AT = 1128
_UNANSWERED, _GRANTED, _REFUSED = 0, 1, 2
#: Queues that one worker may serve.
MOST_QUEUES = (_TOLD_AT - _CALLS_AT) // 8


class Cursor(NamedTuple):
    """Where a slot is.

    Attributes
    ----------
    begun : int
        The task in hand; -1 for none.
    position : int
        How far down its lease; -1 while what it needs is read, `tasks` while its result is pickled.
    seq : int
        Sequence number of the lease in hand; 0 for none.
    since_ms : int
        When that lease came, by the slot's `time.monotonic`.
    queue : int
        The queue, by its place in the slot's list.
    tasks : int
        How many tasks the lease has.
    job : bytes
        The job.
    """

    begun: int
    position: int
    seq: int
    since_ms: int
    queue: int
    tasks: int
    job: bytes

    @property
    def runs(self) -> bool:
        """Whether the user's function of a task runs, and not what surrounds it."""
        return self.seq > 0 and self.begun >= 0 and 0 <= self.position < self.tasks

    @property
    def doing(self) -> str:
        """What is done for the task in hand, for who reads of its death."""
        if self.position < 0:
            return "while what it needs was read"
        return "while it ran" if self.position < self.tasks else "while its result was pickled"


class Wait(IntEnum):
    """For what a task waits."""

    NOTHING = 0
    #: Tasks whose work it can do itself.
    TASKS = 1
    #: Tasks of others: it cannot go on without them.
    FUTURES = 2
    #: A lock, which who holds it may keep until tasks of this queue are done.
    LOCK = 3


class Limit(NamedTuple):
    """What holds for the running task.

    Attributes
    ----------
    since_ms : int
        When it began, by the slot's `time.monotonic`, which all processes of a host share.
    most_ms : int
        How long it may take; 0 for any time.
    retries : int
        How often it may fail and run again; -1 for what holds for its job.
    """

    since_ms: int
    most_ms: int
    retries: int


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
        self._leases = 0
        if fresh:
            self.rest()

    def hold(self, queue: int, job: str, seq: int, since_ms: int, tasks: int) -> None:
        """Write that lease `seq` of a queue is in hand, and nothing of it has begun."""
        _CURSOR.pack_into(self._memory, 0, -1, -1, seq, since_ms, queue, tasks, job.encode())
        self._leases += 1
        struct.pack_into("<q", self._memory, _LEASES_AT, self._leases)

    def begin(self, task: int, position: int) -> None:
        """Write that `task` begins, `position` down the lease; see `Cursor` for what is around."""
        _BEGUN.pack_into(self._memory, 0, task, position)

    def reading(self, first: int, last: int) -> None:
        """Write that tasks from `first` to `last` are read, in one piece; -1 and -1 for none."""
        _READ.pack_into(self._memory, _READ_AT, first + 1, last + 1)

    def being_read(self) -> tuple[int, int]:
        """Return the first and the last of the tasks that are being read; -1 and -1 for none."""
        first, last = _READ.unpack_from(self._memory, _READ_AT)
        return first - 1, last - 1

    def limit(self, task: int, seq: int, limit: Limit) -> None:
        """Write what holds for `task`, which is about to run.

        It names the task and the lease, so that it needs no removal: it holds for no other.
        """
        _LIMIT.pack_into(self._memory, _LIMIT_AT, task, seq, *limit)

    def rest(self) -> None:
        """Write that no lease is in hand."""
        _CURSOR.pack_into(self._memory, 0, -1, -1, 0, 0, 0, 0, b"")

    def read(self) -> Cursor:
        """Return where the slot is."""
        begun, position, seq, since, queue, tasks, job = _CURSOR.unpack_from(self._memory, 0)
        return Cursor(begun, position, seq, since, queue, tasks, job.rstrip(b"\0"))

    def read_limit(self, cursor: Cursor) -> Limit:
        """Return what holds for the task that runs by `cursor`."""
        task, seq, *rest = _LIMIT.unpack_from(self._memory, _LIMIT_AT)
        return Limit(*rest) if (task, seq) == (cursor.begun, cursor.seq) else Limit(0, 0, -1)

    def leases(self) -> int:
        """Return how many leases the slot has had."""
        count: int = struct.unpack_from("<q", self._memory, _LEASES_AT)[0]
        return count

    def answered(self, queue: int, seq: int) -> None:
        """Write that call `seq` on a queue was answered."""
        struct.pack_into("<q", self._memory, _CALLS_AT + 8 * queue, seq)

    def last_answered(self, queue: int) -> int:
        """Return the number of the last call on a queue that was answered."""
        seq: int = struct.unpack_from("<q", self._memory, _CALLS_AT + 8 * queue)[0]
        return seq

    def give_up(self, why: str) -> None:
        """Write why the slot ends before it is ready; of a long text the end."""
        data, room = why.encode(errors="backslashreplace"), _SIZE - _WHY_AT - _WHY.size
        if len(data) > room:
            data = b"[...] " + data[6 - room :]
        at = _WHY_AT + _WHY.size
        self._memory[at : at + len(data)] = data
        _WHY.pack_into(self._memory, _WHY_AT, len(data))

    def given_up(self) -> str:
        """Return that; empty if it did not."""
        length, at = _WHY.unpack_from(self._memory, _WHY_AT)[0], _WHY_AT + _WHY.size
        return self._memory[at : at + length].decode(errors="replace")

    def stop(self, job: bytes, seq: int) -> None:
        """Ask the slot to begin no further task of `job` in its leases up to number `seq`."""
        _STOP.pack_into(self._memory, _STOP_AT, job, seq)
        self._memory[_TOLD_AT] = 1

    def give_back(self, seq: int) -> None:
        """Tell the slot to begin no further task of lease `seq`: others get them; 0: go on."""
        _GIVEN.pack_into(self._memory, _GIVEN_AT, seq)
        self._memory[_TOLD_AT] = 1

    def stopped(self, job: bytes, seq: int) -> bool:
        """Tell whether the slot was asked to begin no further task of a job, or of a lease."""
        if not self._memory[_TOLD_AT]:  # the slot asks before each task
            return False
        given = _GIVEN.unpack_from(self._memory, _GIVEN_AT)[0]
        if given == seq:
            return True
        stopped, last = _STOP.unpack_from(self._memory, _STOP_AT)
        return bool(stopped.rstrip(b"\0") == job and seq <= last)

    # -- a task that waits for tasks; see `dask_redisq.serving`

    def wait_for(self, what: Wait) -> None:
        """Write for what the task in hand waits: it asks for a slot in its place."""
        self._memory[_STAND_IN_AT] = _UNANSWERED
        self._memory[_WAITS_AT] = what

    def wait_no_more(self) -> None:
        """Write that it goes on."""
        self._memory[_WAITS_AT] = 0

    def waits(self) -> bool:
        """Tell whether the task in hand waits, and was not refused."""
        return bool(self._memory[_WAITS_AT] and self._memory[_STAND_IN_AT] != _REFUSED)

    def waits_for(self) -> Wait:
        """Tell for what the task in hand waits, also if nobody works in its place."""
        return Wait(self._memory[_WAITS_AT])

    def answer_wait(self, *, granted: bool) -> None:
        """Say whether there will be another slot meanwhile."""
        self._memory[_STAND_IN_AT] = _GRANTED if granted else _REFUSED

    def stand_in(self) -> bool | None:
        """Return the answer; None as long as there is none."""
        said = self._memory[_STAND_IN_AT]
        return None if said == _UNANSWERED else said == _GRANTED

    def close(self) -> None:
        """Unmap the page and close its descriptor."""
        self._memory.close()
        os.close(self.fd)
