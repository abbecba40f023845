"""What an error that a server answers, or the way to it gives, means for a call. No I/O."""

from __future__ import annotations

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as ServerConnectionError
from redis.exceptions import TimeoutError as ServerTimeoutError

from dask_redisq.errors import ServerFull, ServerRefused
from dask_redisq.passwords import redact
from dask_redisq.tls import tls_fault

__all__ = ["AWAY", "REFUSED", "is_busy", "meaning", "refusal"]

#: The server is away, or not in a state to answer: the call is sent again.
AWAY = (ServerConnectionError, ServerTimeoutError, BusyLoadingError, ReadOnlyError, OSError)
#: It does not want us.
REFUSED = (AuthenticationError, AuthorizationError, NoPermissionError)
#: What a script says that its user may not run; else it is a NoPermissionError.
_FORBIDDEN = ("The user executing the script", "ACL failure in script")
_FULL = ("OOM", "command not allowed when used memory")
_BUSY = (
    "MISCONF",
    "NOREPLICAS",
    "CLUSTERDOWN",
    "BUSY",
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "TRYAGAIN",
    "UNBLOCKED",  # a BLPOP, when its server becomes a replica
)


def is_busy(error: ResponseError) -> bool:
    """Tell whether a server that answers this is as good as away, for now."""
    return str(error).startswith(_BUSY)


def meaning(error: ResponseError, url: str) -> Exception:
    """Return what an error reply is to be raised as; one of AWAY and REFUSED is no answer."""
    if isinstance(error, REFUSED + AWAY):
        return error
    if is_busy(error):
        return ServerConnectionError(str(error))
    if str(error).startswith(_FORBIDDEN):
        return NoPermissionError(str(error))
    if str(error).startswith(_FULL):
        return ServerFull(f"the memory of {redact(url)} is full: it takes no more data ({error})")
    return error


def refusal(error: BaseException, url: str, *, tls: bool) -> ServerRefused | None:
    """Return what to raise at once, if to try again would be in vain."""
    where = redact(url)
    if "DB index" in str(error) or "Invalid Database" in str(error):  # redis-py's words
        return ServerRefused(f"{where}: the server has no such database")
    if isinstance(error, NoPermissionError):
        return ServerRefused(
            f"{where} does not let this user do that: {error}. "
            "docs/security.md has ACL rules for each role"
        )
    if isinstance(error, REFUSED):
        return ServerRefused(f"{where} refuses us: {error}")
    fault = tls_fault(error) if tls else None
    return None if fault is None else ServerRefused(f"no TLS with {where}: {fault}")
