"""Settings of the server that matter here: those that lose data, and the most that it holds."""

from __future__ import annotations

import logging
from typing import Any

from redis.exceptions import ResponseError

from dask_redisq.errors import ServerRefused
from dask_redisq.link import Link

__all__ = ["most_bytes", "server_warnings", "warn_about_server"]


#: The most bytes of one string, where the server does not tell.
MOST_BYTES = 512 * 2**20
#: Room for what goes with a value.
ROOM = 1024


def server_warnings(policy: str | None, timeout: str | None) -> list[str]:
    """Return what to say about an eviction policy and a client timeout.

    >>> server_warnings("noeviction", "0")
    []
    """
    said = []
    if policy not in (None, "noeviction"):
        said.append(
            f"the server's maxmemory-policy is {policy}: under memory pressure it drops keys of "
            "running jobs. Set maxmemory-policy noeviction"
        )
    if timeout not in (None, "0"):
        said.append(
            f"the server closes connections that are idle for {timeout} s: waiting workers and "
            "clients will reconnect again and again. Set timeout 0"
        )
    return said


def _config(link: Link, name: str) -> str | None:
    try:
        reply: Any = link.command("CONFIG", "GET", name)
    except (ResponseError, ServerRefused):
        return None  # managed servers forbid CONFIG
    return reply[1].decode() if reply else None


def warn_about_server(link: Link, logger: logging.Logger) -> None:
    """Log a warning for each dangerous setting of the server."""
    for warning in server_warnings(_config(link, "maxmemory-policy"), _config(link, "timeout")):
        logger.warning("%s", warning)


def most_bytes(link: Link) -> int:
    """Return how many bytes one value may have.

    A server hangs up on who sends more. That looks like a server that went away, and the call
    would be repeated for ever; so it is looked at before. The least limit that can be set is 1 MB.
    """
    return int(_config(link, "proto-max-bulk-len") or MOST_BYTES) - ROOM
