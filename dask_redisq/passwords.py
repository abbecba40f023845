"""The password in the URL of a server: put in, taken out, starred. No I/O."""

from __future__ import annotations

import re
from typing import NamedTuple, Self
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

__all__ = ["redact", "with_password", "without_password"]

#: Options at the end of a URL, and its host without a password.
_OPTIONS = re.compile(r"[\w%]+=[^&?#]*(&[\w%]+=[^&?#]*)*")
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?(/.*)?$")


def redact(url: str) -> str:
    """Return `url` without its password, for logs and messages; a URL that is none, too.

    >>> redact("redis://:secret@host:6379/0")
    'redis://:***@host:6379/0'
    >>> redact("redis://:sec/ret#@host")
    'redis://:***@host'
    """
    at = _Parts.of(url)
    options = [(k, "***" if _is_secret(k, v) else v) for k, v in parse_qsl(at.query)]
    query = f"?{urlencode(options, safe='*/')}" if at.query else ""
    return f"{at.scheme}{at.user}{':***' if at.secret else ''}{at.sign}{at.host}{query}"


def without_password(url: str) -> str:
    """Return `url` as it is where no password is needed; as it is if it has none.

    >>> without_password("redis://me:secret@host:6379/0?db=1&ssl_password=secret")
    'redis://me@host:6379/0?db=1'
    """
    at = _Parts.of(url)
    options = at.query.split("&") if at.query else []
    open_ones = [x for x in options if not any(_is_secret(k, v) for k, v in parse_qsl(x))]
    if not at.secret and open_ones == options:
        return url
    query = f"?{'&'.join(open_ones)}" if open_ones else ""
    return f"{at.scheme}{at.user}{at.sign if at.user else ''}{at.host}{query}"


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


class _Parts(NamedTuple):
    """What a URL is made of, as its reader may have meant it: a password may hold anything."""

    scheme: str
    user: str
    #: Whether there is a password.
    secret: bool
    #: The @ before the host.
    sign: str
    #: With all that follows, but for the options.
    host: str
    query: str

    @classmethod
    def of(cls, url: str) -> Self:
        scheme, mark, rest = url.partition("://")
        if not mark:
            scheme, rest = "", url
        # What follows a question mark may be the rest of a password: options look like options.
        base, query = rest, ""
        for at in (i for i, c in enumerate(rest) if c == "?"):
            if _OPTIONS.fullmatch(rest[at + 1 :]):
                base, query = rest[:at], rest[at + 1 :]
                break
        before, sign, host = base.rpartition("@")
        if base.startswith("/"):  # a path, which may hold an @ itself
            before, sign, host = "", "", base
        elif not sign and not _HOST.match(base):  # cut off within a password
            before, host = base, ""
        user, colon, _ = before.partition(":")
        return cls(scheme + mark, user, bool(colon), sign, host, query)


def _is_secret(option: str, value: str) -> bool:
    # ssl_password too, which opens the file of ssl_keyfile; and what may be a piece of one
    return option.endswith("password") or "@" in value
