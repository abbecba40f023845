"""Blocks and constants of one job, as they are read from the server, once."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from dask_redisq.codec import LARGE, Block, PackedBlock, loads
from dask_redisq.errors import BadSignature
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.plan import BLOCK
from dask_redisq.task import run_task
from dask_redisq.trust import BLOCK as A_BLOCK
from dask_redisq.trust import Seal
from dask_redisq.versions import differences

__all__ = ["JobEnded", "JobMemory", "UnreadBlock"]

logger = logging.getLogger("dask_redisq.worker")

#: Blocks kept of one job.
BLOCKS = 256
#: How the versions of clients differed that were told of.
_told: set[str] = set()


class JobEnded(Exception):
    """What tasks of a job need is not there: the job ended meanwhile, or lost it.

    Attributes
    ----------
    needs : tuple of str or int
        The command that tells whether it is there.
    """

    def __init__(self, told: str, *needs: str | int) -> None:
        super().__init__(told)
        self.needs = needs


class UnreadBlock(Exception):
    """Something in a block raised, its cause, as it was unpickled.

    Attributes
    ----------
    block : int
        Which block.
    place : int
        Of the task in it that this belongs to; -1 if that was not to be found.
    """

    def __init__(self, block: int, place: int) -> None:
        super().__init__(block, place)
        self.block, self.place = block, place


class JobMemory:
    """Blocks and constants of one job, as read over `link` and passed by its `seal`."""

    def __init__(self, link: Link, keys: Keys, job: str, seal: Seal) -> None:
        self._link = link
        self._keys = keys
        self._job = job
        self.seal = seal
        self.blocks: OrderedDict[int, Block] = OrderedDict()
        #: Bytes of its constants that are here.
        self.size = 0
        self._buffers: dict[str, bytearray] = {}
        self._objects: dict[str, Any] = {}

    def load_blocks(
        self, numbers: list[int], reading: Callable[[int, int], object], *, marked: bool = False
    ) -> None:
        """Fetch those of the blocks that are not here.

        Parameters
        ----------
        numbers : list of int
            The blocks.
        reading : callable
            Called as ``reading(block, -1)`` before a block is unpickled, and with the place of a
            task in it before that task is, if they are told apart.
        marked : bool
            Whether they are, which is slow: something may kill the process.

        Raises
        ------
        JobEnded
            If one is not there.
        BadSignature
            If one is not from who has our secret.
        UnreadBlock
            If unpickling one raises, `ModuleNotFoundError` for instance.
        """
        missing = [n for n in numbers if n not in self.blocks]
        if missing:
            found = self._link.command("HMGET", self._keys("blocks", self._job), *missing)
            for number, payload in zip(missing, found, strict=True):
                if payload is None:
                    told = f"block {number} of job {self._job} is gone"
                    raise JobEnded(told, "HEXISTS", self._keys("blocks", self._job), number)
                packed = PackedBlock.read(self.seal.open(A_BLOCK, b"", number, payload))
                others = differences(packed.made_by)
                if others and others not in _told:
                    _told.add(others)
                    logger.warning("job %s comes from a client with %s", self._job, others)
                try:
                    self.blocks[number] = self._open(packed, number, reading, marked=marked)
                except UnreadBlock as unread:
                    if others and isinstance(unread.__cause__, Exception):
                        unread.__cause__.add_note(f"dask-redisq: its client has {others}")
                    raise
        for number in numbers:
            self.blocks.move_to_end(number)
        while len(self.blocks) > max(BLOCKS, len(numbers)):
            self.blocks.popitem(last=False)

    def read_given(self, task: int, attempt: str) -> tuple[Any, int]:
        """Return what a task gives whose value, by this attempt, is `Given`; and its bytes.

        Raises
        ------
        JobEnded
            If that is gone from the server. Then the value is so, too: whoever is to make it again
            finds that it cannot be made, and why.
        BaseException
            What unpickling it raises.
        """
        number, place = divmod(task, BLOCK)
        try:
            self.load_blocks([number], lambda *_: None)
        except JobEnded:
            self._link.command("UNLINK", self._keys("value", self._job, task, attempt))
            raise
        except UnreadBlock as unread:
            raise unread.__cause__ or unread from None
        return run_task(self.blocks[number].tasks[place], {}).thing, self.given_size()

    def given_size(self) -> int:
        """Return the bytes of its constants that are here: what it was given, if that is large."""
        return max(self.size, LARGE)

    def is_there(self) -> tuple[str, str]:
        """Return the command that tells whether the job is on the server."""
        return ("EXISTS", self._keys("job", self._job))

    def _open(
        self,
        packed: PackedBlock,
        number: int,
        reading: Callable[[int, int], object],
        *,
        marked: bool,
    ) -> Block:
        """Unpickle a block; if that raises, once more with marks, to find the task to blame."""
        place = -1

        def reached(task: int) -> None:
            nonlocal place
            place = task
            reading(number, task)

        reading(number, -1)
        try:
            return packed.open(self._buffer, self._object, reached if marked else None)
        except (JobEnded, BadSignature):
            raise
        except BaseException as error:
            if not marked:
                with suppress(BaseException):  # what it raises now is no better
                    packed.open(self._buffer, self._object, reached)
                    place = -1
            raise UnreadBlock(number, place) from error

    def _buffer(self, digest: str) -> bytearray:
        # Not bytes: an array in it would be read-only, which a small one, inside a pickle, is not.
        # The tasks of the job that run here share it, as threads share the object itself: one copy
        # for each slot and job, 0.1 s for 100 MB.
        if digest not in self._buffers:
            self._buffers[digest] = bytearray(self._fetch(digest))
        return self._buffers[digest]

    def _object(self, digest: str) -> Any:
        if digest not in self._objects:
            self._objects[digest] = loads(self._fetch(digest))
        return self._objects[digest]

    def _fetch(self, digest: str) -> bytes:
        name = self._keys("const", self._job, digest)
        found: bytes | None = self._link.command("GET", name)
        if found is None:
            raise JobEnded(f"constant {digest} of job {self._job} is gone", "EXISTS", name)
        self.seal.check_constant(digest, found)
        self.size += len(found)
        return found
