"""The functions that the measured tasks run.

They have a module of their own, without imports that cost anything, because every peer's
processes import it to unpickle them by name.
"""

import os
import time
import uuid
from typing import NamedTuple

#: Names this process beyond its pid, which the system may give away again.
START_ID = uuid.uuid4().hex


class Origin(NamedTuple):
    """The process that made a value."""

    pid: int
    start_id: str


class Block(NamedTuple):
    """A value of some size, and who made it."""

    origin: Origin
    data: bytes


def inc(x: int) -> int:
    """Return x + 1: the empty task of Dask's own tests."""
    return x + 1


def total(*xs: int) -> int:
    """Return the sum of any number of arguments."""
    return sum(xs)


def clamp(*xs: int) -> int:
    """Return the sum within 16 bits: over many full layers a true sum would grow without end."""
    return sum(xs) & 0xFFFF


def now(_: int) -> float:
    """Return the wall clock at the task's first line."""
    return time.time()


def nap(seconds: float) -> float:
    """Sleep, and return for how long in truth."""
    start = time.perf_counter()
    time.sleep(seconds)
    return time.perf_counter() - start


def here() -> Origin:
    """Name the process that runs this."""
    return Origin(os.getpid(), START_ID)


def make_block(size: int) -> Block:
    """Make a value of `size` bytes."""
    return Block(here(), bytes(size))


def compare_origin(block: Block) -> bool:
    """Tell whether this process made the block."""
    return block.origin == here()
