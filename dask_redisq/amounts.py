"""Numbers that a user gives: finite, and within what the engine can count with. No I/O."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["deadline_of", "is_number", "number", "patience", "seconds", "whole"]

#: What a number may be at most: of seconds, thirty years. Larger ones end nobody's wait sooner or
#: later, and a server's clock in ms plus some of them must fit into 14 digits, which Lua writes.
MOST = 1_000_000_000


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number, of whatever library."""
    if isinstance(value, bool | str | bytes):
        return False
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


def number(what: str, value: Any) -> float:
    """Return `value`, which `what` says what it is, if it is a finite number; else a ValueError."""
    if not is_number(value):
        raise ValueError(f"{what} is a number, not {value!r}")
    return float(value)


def seconds(what: str, value: Any, least: float = 0.0, or_else: str = "") -> float:
    """Return `value`, which `what` says what it is, if it is a number of seconds in its range.

    Parameters
    ----------
    what : str
        The name that its user knows it by.
    value
        What was given.
    least : float, default 0
        The lower end of the range; the upper one is `MOST`.
    or_else : str, default ""
        What else may be given, for the message: " or null".

    Raises
    ------
    ValueError
        If it is not; the message names it, and says what may be.
    """
    if not is_number(value) or not least <= value <= MOST:
        raise ValueError(
            f"{what} is a number of seconds, at least {least:g} and at most {MOST:,}{or_else}, "
            f"not {value!r}"
        )
    return float(value)


def patience(timeout: float | None) -> float | None:
    """Return for how many seconds who waits does so; None, which infinity is too: for ever.

    Raises
    ------
    ValueError
        If it is no number. Nothing is later than a moment in nan seconds.
    """
    return None if timeout is None or timeout == math.inf else number("timeout", timeout)


def deadline_of(timeout: float | None, now: float) -> float | None:
    """Return the moment until which who waits from `now` on does so; see `patience`."""
    longest = patience(timeout)
    return None if longest is None else now + longest


def whole(what: str, value: Any, least: int) -> int:
    """Return `value`, which `what` says what it is, if it is whole, and from `least` to `MOST`.

    Raises
    ------
    ValueError
        If it is not.
    """
    if not is_number(value) or value != int(value) or value < least:
        raise ValueError(f"{what} is a whole number, at least {least}, not {value!r}")
    if value > MOST:
        raise ValueError(f"{what} is a whole number, at most {MOST:,}, not {value!r}")
    return int(value)
