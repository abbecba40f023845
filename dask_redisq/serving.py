"""Which queues this process serves: a slot that waited for its own queue could wait for ever."""

from __future__ import annotations

from collections.abc import Iterable

from dask_redisq.keys import Keys

__all__ = ["serve", "serves"]

_served: set[tuple[str, str]] = set()


def serve(url: str, queues: Iterable[str]) -> None:
    """Note that this process is a slot of `queues` on the server at `url`."""
    _served.update((url, queue) for queue in queues)


def serves(url: str, keys: Keys) -> bool:
    """Tell whether tasks of a queue run in this process."""
    return (url, keys.queue) in _served
