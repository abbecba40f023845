"""Marks in the pickle of a block, so that who reads it is told where each task begins. No I/O.

A block is one pickle, and is read at once: what raises as it is read, or kills the process, says
nothing of the task that it belongs to. Only after such a failure it is read with marks, which costs
1 us for each opcode of the pickle to find their places.
"""

from __future__ import annotations

import pickle
import pickletools
import struct

__all__ = ["marked"]

#: Bytes of a FRAME: marks would make the frames longer than they say, and no reader needs them.
_FRAME = 9


def marked(data: bytes) -> bytes:
    """Return the pickle of a tuple that begins with a list, with a mark behind each item of that.

    A mark is the number of the next item as a persistent id; the last one is -1. What it loads is
    dropped.

    Examples
    --------
    >>> class Reader(pickle.Unpickler):
    ...     def persistent_load(self, number):
    ...         print(number, end=" ")
    >>> import io
    >>> Reader(io.BytesIO(marked(pickle.dumps((["a", ("b", "a"), [3]], 4, 5, 6))))).load()
    1 2 -1 (['a', ('b', 'a'), [3]], 4, 5, 6)
    """
    ends, frames = _find(data)
    pieces = [(frame, frame + _FRAME, b"") for frame in frames]
    for number, end in enumerate(ends, 1):
        pieces.append((end, end, _mark(number if number < len(ends) else -1)))
    out, at = bytearray(), 0
    for start, stop, mark in sorted(pieces):
        out += data[at:start] + mark
        at = stop
    return bytes(out + data[at:])


def _mark(number: int) -> bytes:
    return pickle.BININT + struct.pack("<i", number) + pickle.BINPERSID + pickle.POP


def _find(data: bytes) -> tuple[list[int], list[int]]:
    """Return where the items of the list end, and where frames begin; by the opcodes alone.

    The stack holds the list, and above it the items so far and what the next one is made of. So an
    item ends where the stack is as high as it and no higher for the last time.
    """
    ends: list[int] = []
    frames: list[int] = []
    height, marks = 0, list[int]()  # how high the stack was at each MARK that it holds
    found = False
    for opcode, _, position in pickletools.genops(data):
        at = position or 0  # typed as if bytes had none
        name = opcode.name
        if name == "FRAME":
            frames.append(at)
        if found:
            continue
        if height > 1 and marks in ([0], [0, 1]):
            ends[height - 2 :] = [at]  # what was above it were parts of this item
        before, after = opcode.stack_before, opcode.stack_after
        if name == "MARK":
            marks.append(height)
            continue
        if pickletools.markobject in before:
            height = marks.pop() - before.index(pickletools.markobject)
        else:
            height -= len(before)
        height += len(after)
        # One item alone comes without a MARK of its own: then the [0, 1] was a part of it.
        found = name in ("APPEND", "APPENDS") and marks == [0] and height == 1
    return ends if found else [], frames
