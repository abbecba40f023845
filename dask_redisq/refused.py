"""Tells a queue of payloads that were refused here for their signature: `Queue.stats` shows it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from dask_redisq.errors import RedisqError
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.trust import Seal

__all__ = ["count_refused", "counting"]

logger = logging.getLogger("dask_redisq")


def count_refused(link: Link, keys: Keys, seal: Seal) -> None:
    """Tell the queue how many payloads a seal refused, if it was not told.

    A seal does no I/O, and may refuse while replies are under way, so it cannot tell by itself.
    """
    total = seal.refused
    if total == seal.told:
        return
    try:
        link.call("refuse", keys, job=seal.job, who=seal.name, total=total)
    except RedisqError as error:
        # A monitor with the secret reads errors, and may write nothing. What was refused is on its
        # way to the user, and must not be hidden by this.
        logger.debug("the queue was not told of %d refused payloads: %s", total, error)
    seal.told = total


@contextmanager
def counting(link: Link, keys: Keys, seal: Seal) -> Iterator[None]:
    """Have the queue told at the end of what was refused meanwhile."""
    try:
        yield
    finally:
        count_refused(link, keys, seal)
