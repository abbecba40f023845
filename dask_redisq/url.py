"""URLs of servers: checked, given a password, and shown without it. No I/O."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, parse_qsl, quote, urlencode, urlsplit

from redis.connection import parse_url

from dask_redisq.errors import BadURL

__all__ = ["check_url", "redact", "with_password"]

#: Options at the end of a URL, and its host without a password.
_OPTIONS = re.compile(r"\w+=[^&?#]*(&\w+=[^&?#]*)*")
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?(/.*)?$")
#: Options that would say again where the server is: redis-py would go there, or fail over them.
_ELSEWHERE = {"host", "port", "path", "connection_class"}
_BAD_URL = (
    "that is not the URL of a server. It is one of redis://[:PASSWORD@]HOST[:PORT][/DB], "
    "rediss://... and unix://PATH; in a password, write %XX for what is special in a URL"
)


def redact(url: str) -> str:
    """Return `url` without its password, for logs and messages; a URL that is none, too.

    >>> redact("redis://:secret@host:6379/0")
    'redis://:***@host:6379/0'
    >>> redact("redis://:sec/ret#@host")
    'redis://:***@host'
    """
    scheme, mark, rest = url.partition("://")
    # What follows a question mark may be the rest of a password: options look like options.
    base, question, query = rest, "", ""
    for at in (i for i, c in enumerate(rest) if c == "?"):
        if _OPTIONS.fullmatch(rest[at + 1 :]):
            base, question, query = rest[:at], "?", rest[at + 1 :]
            break
    before, at_sign, host = base.rpartition("@")
    if base.startswith("/"):  # a path, which may hold an @ itself
        before, at_sign, host = "", "", base
    if at_sign:
        user, colon, _ = before.partition(":")
        base = f"{user}{colon and ':***'}@{host}"
    elif not _HOST.match(base):  # cut off within a password
        base = f"{base.partition(':')[0]}:***"
    # ssl_password too, which opens the file of ssl_keyfile
    options = [(k, "***" if k.endswith("password") or "@" in v else v) for k, v in parse_qsl(query)]
    return scheme + mark + base + question + urlencode(options, safe="*/")


def with_password(url: str, password: str) -> str:
    """Return `url` with `password` in it, replacing one that it had.

    >>> with_password("redis://host:6379/0", "secret")
    'redis://:secret@host:6379/0'
    """
    base, _, query = url.partition("?")
    parts = urlsplit(base)
    if parts.scheme == "unix":
        options = [(k, v) for k, v in parse_qsl(query) if k != "password"]
        return f"{base}?{urlencode([*options, ('password', password)])}"
    host = parts.netloc.rpartition("@")[2]
    secret = f"{parts.username or ''}:{quote(password, safe='')}@{host}"
    scheme, mark, rest = url.partition("://")
    return scheme + mark + secret + rest[len(parts.netloc) :]


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
