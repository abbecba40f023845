"""Read and check the settings of `redisq.yaml`, from dask's configuration, at each call."""

from __future__ import annotations

from typing import Any

import dask

__all__ = ["setting"]

_LEAST = {
    "ft-interval": 1.0,
    "alive-expiry": 0.5,
    "client-lease": 1.0,
    "locality-wait": 0.0,
    "retry-delay": 0.0,
}


def setting(name: str, given: Any = None) -> Any:
    """Return the setting ``redisq.NAME``, or `given` where the caller gave one.

    Raises
    ------
    ValueError
        If an interval is below its least value.
    """
    value = dask.config.get(f"redisq.{name}") if given is None else given
    least = _LEAST.get(name)
    if least is not None:
        value = float(value)
        if value < least:
            raise ValueError(f"redisq.{name} is at least {least:g} s, not {value:g}")
    return value
