"""Settings of the server that matter here: those that lose data, and the most that it holds."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

from redis import ConnectionPool
from redis.exceptions import RedisError, ResponseError

from dask_redisq.errors import ServerRefused
from dask_redisq.link import Link, redis_options
from dask_redisq.passwords import redact
from dask_redisq.url import check_url

__all__ = ["most_bytes", "server_warnings", "warn_about_server"]

logger = logging.getLogger("dask_redisq")

#: The most bytes of one string, where the server does not tell.
MOST_BYTES = 512 * 2**20
MB = 2**20
#: Seconds within which the second of two replies comes that a server sends at once.
SOON = 0.05
#: A question that each role may ask, and the beginning of one that never ends.
_ASK = b"*1\r\n$4\r\nTIME\r\n*2\r\n$4\r\nECHO\r\n$%d\r\n"
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


def most_bytes(link: Link, size: int) -> int:
    """Return how many bytes one value may have: at least `size`, if that many are taken.

    A server hangs up on who sends more. That looks like a server that went away, and the call
    would be repeated for ever; so it is looked at before. The least limit that can be set is 1 MB.

    To read the limit takes the right to read all settings, passwords among them, which the rules
    of docs/security.md give to nobody. Without, the server is asked about sizes. About none above
    `size`: it sets memory apart for what it is told to expect.
    """
    if size + ROOM <= link.takes:
        return link.takes - ROOM
    told = _config(link, "proto-max-bulk-len")
    if told:
        return int(told) - ROOM
    if size + ROOM <= MOST_BYTES:
        if not _would_take(link.url, size + ROOM):
            return _most_megabytes(link.url, size + ROOM) * MB - ROOM
        link.takes = size + ROOM
    return MOST_BYTES - ROOM


def _most_megabytes(url: str, refused: int) -> int:
    """Return how many whole megabytes the server takes, which does not take `refused` bytes."""
    taken, more = 1, -(-refused // MB)
    while more - taken > 1:
        middle = (taken + more) // 2
        if _would_take(url, middle * MB):
            taken = middle
        else:
            more = middle
    return taken


def _would_take(url: str, size: int) -> bool:
    """Ask a server whether it takes a string of so many bytes; True if it gives no answer.

    Only a length is sent, over a connection of its own, behind another question: a server for which
    it is too long answers both at once, and hangs up. Once the string is on its way nobody can
    tell: the connection breaks as on a bad network, where to send again is right, and what the
    server answered may be lost with it.
    """
    pool = ConnectionPool.from_url(check_url(url), protocol=2, **redis_options(url))
    connection: Any = pool.make_connection()
    try:
        connection.connect()
        connection.send_packed_command([_ASK % size])
        with suppress(ResponseError):  # it is busy, say: that is an answer as well
            connection.read_response(disconnect_on_error=False)
        if connection.can_read(SOON):
            connection.read_response()
    except ResponseError as error:
        return "bulk length" not in str(error)
    except (RedisError, OSError) as error:
        logger.debug("nobody knows whether %s takes %d bytes: %s", redact(url), size, error)
    finally:
        connection.disconnect()
    return True
