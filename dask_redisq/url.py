"""Whether a text is the URL of a server. No I/O."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

from redis.connection import parse_url

from dask_redisq.errors import BadURL
from dask_redisq.passwords import redact

__all__ = ["check_url"]

#: Options that would say again where the server is: redis-py would go there, or fail over them.
_ELSEWHERE = {"host", "port", "path", "connection_class"}
_BAD_URL = (
    "that is not the URL of a server. It is one of redis://[:PASSWORD@]HOST[:PORT][/DB], "
    "rediss://... and unix://PATH; in a password, write %XX for what is special in a URL"
)


def check_url(url: str) -> str:
    """Return `url` if it is that of a server.

    Raises
    ------
    BadURL
        If it is not; the message shows no password.
    """
    try:
        parse_url(url)
        parts = urlsplit(url)
        bad = bool(parts.fragment) or not _ELSEWHERE.isdisjoint(parse_qs(parts.query))
        if parts.scheme == "unix":
            bad = bad or not parts.path
        else:  # redis-py ignores what is no number, and takes what follows a slash for a path
            bad = bad or not re.fullmatch(r"/?\d*/?", parts.path)
    except (ValueError, TypeError, AttributeError):  # whose text may hold a piece of the password
        bad = True
    if bad:
        raise BadURL(f"{redact(url)}: {_BAD_URL}")
    return url
