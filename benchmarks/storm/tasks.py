"""The function that every task of a storm runs.

It leaves a line in a file before anything else, so that runs are counted by the tasks
themselves and not by what is tested. Cheap to import: every slot does so.
"""

import os
import struct
import time
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

#: One run of a task: the job's serial number, the task, time.monotonic_ns of its start.
RECORD = struct.Struct("<QIq")

_files: dict[str, int] = {}


class Piece(NamedTuple):
    """What a task is, besides its inputs.

    Attributes
    ----------
    folder : str
        Where runs are counted.
    serial, number : int
        Its job, and its place there.
    size : int
        Bytes of its value; 0 for those of a hash alone.
    pause : float
        Seconds that it sleeps.
    """

    folder: str
    serial: int
    number: int
    size: int
    pause: float


def work(piece: Piece, constant: bytes, *inputs: bytes) -> bytes:
    """Note that this runs, sleep, and return the hash of the inputs."""
    note(piece)
    if piece.pause:
        time.sleep(piece.pause)
    return value_of(piece, constant, *inputs)


def value_of(piece: Piece, constant: bytes, *inputs: bytes) -> bytes:
    """Return what the task gives: a hash of what it is and of all that it was given."""
    found = blake2b(b"%d:%d:" % (piece.serial, piece.number), digest_size=16)
    for data in (constant, *inputs):
        found.update(b"%d:" % len(data))
        found.update(data)
    return found.digest() * max(1, piece.size // 16)


def note(piece: Piece) -> None:
    """Append a record to the file of this process: one write, so that it is never a part."""
    name = f"{piece.folder}/{os.getpid()}"
    if name not in _files:
        _files[name] = os.open(Path(name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(_files[name], RECORD.pack(piece.serial, piece.number, time.monotonic_ns()))


def wait_for(piece: Piece, gate: str) -> None:
    """Note that this runs, and wait until there is a file of that name."""
    note(piece)
    while not Path(gate).exists():
        time.sleep(0.005)
