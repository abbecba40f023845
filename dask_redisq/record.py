"""What the hash `values` holds of a task: a letter, the attempt that made its value, the value.

The letter is ``i`` for a value that is right there, ``e`` for one that lies in a key of its own;
then its size follows instead. `lua/lib/finish.lua` writes it.
"""

from __future__ import annotations

__all__ = ["read_record", "size_of"]

#: Characters of an attempt's name: a slot's id and a sequence number.
_ATTEMPT = 24


def read_record(record: bytes) -> tuple[bytes | None, str]:
    """Return the value, None for one in a key of its own, and the attempt that made it.

    >>> read_record(b"i" + b"0123456789abcdef00000007" + b"value")
    (b'value', '0123456789abcdef00000007')
    >>> read_record(b"e" + b"0123456789abcdef00000007" + b"70000")
    (None, '0123456789abcdef00000007')
    """
    attempt = record[1 : 1 + _ATTEMPT].decode()
    return (record[1 + _ATTEMPT :] if record[:1] == b"i" else None), attempt


def size_of(record: bytes | None) -> int:
    """Return how many bytes a value takes on the server; 0 for one that is lost.

    >>> size_of(b"e" + b"0123456789abcdef00000007" + b"70000")
    70000
    """
    if not record:
        return 0
    return len(record) if record[:1] == b"i" else int(record[1 + _ATTEMPT :])
