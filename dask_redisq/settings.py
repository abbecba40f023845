"""Read and check the settings of `redisq.yaml`, from dask's configuration, at each call."""

from __future__ import annotations

from typing import Any

import dask

from dask_redisq._defaults import url_setting
from dask_redisq.amounts import is_number, seconds, whole

__all__ = ["setting"]

_LEAST = {
    "ft-interval": 1.0,
    "alive-expiry": 0.5,
    "client-lease": 1.0,
    "locality-wait": 0.0,
    "no-workers-timeout": 0.0,
    "retry-delay": 0.0,
}
#: Settings that may be null.
_OPTIONAL = ("no-workers-timeout",)
#: Settings that are true or false, and how people write that: Dask reads yes, no, on and off in a
#: variable as text, and any text would count as true.
_SWITCHES = ("allow-disk-shuffle", "allow-memory-store", "allow-unsigned")
_ON, _OFF = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


def setting(name: str, given: Any = None) -> Any:
    """Return the setting ``redisq.NAME``, or `given` where the caller gave one.

    Raises
    ------
    ValueError
        If it is none that is allowed; the message names it, and says what is.
    """
    value = given
    if given is None:
        value = url_setting() if name == "url" else dask.config.get(f"redisq.{name}")
    least = _LEAST.get(name)
    if least is not None and not (value is None and name in _OPTIONAL):
        null = " or null" if name in _OPTIONAL else ""
        value = seconds(f"redisq.{name}", value, least, null)
    if name == "kept-memory" and not (is_number(value) and 0 <= value <= 1):
        raise ValueError(f"redisq.kept-memory is a share, from 0 to 1, not {value!r}")
    if name in _SWITCHES:
        value = _switch(name, value)
    elif name == "allowed-failures":
        value = whole("redisq.allowed-failures", value, 1)
    elif name == "order" and value not in (None, "dask"):
        raise ValueError(f"redisq.order is null or 'dask', not {value!r}")
    elif name == "queue" and not isinstance(value, str):
        raise ValueError(f"redisq.queue is text, not {value!r}; a number goes in quotes: '\"7\"'")
    return value


def _switch(name: str, value: Any) -> bool:
    """Return whether a setting is on; a ValueError if that is not plain."""
    word = str(value).strip().lower()  # of True, 1 and NumPy's as well
    if word not in _ON | _OFF:
        raise ValueError(
            f"redisq.{name} is true or false (yes or no, on or off, 1 or 0), not {value!r}"
        )
    return word in _ON
