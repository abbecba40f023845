"""How a TLS connection is made, and what is wrong with one, in words that say what to do."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

__all__ = ["tls_fault", "tls_hint", "tls_options"]

#: OpenSSL's numbers (X509_V_ERR_...) for a chain that ends at nobody we know, and another host.
_UNKNOWN_AUTHORITY = {2, 18, 19, 20, 21}
_ANOTHER_HOST = {62, 64}
_OUR_CERTIFICATE = "name one with ?ssl_certfile=/PATH/client.crt&ssl_keyfile=/PATH/client.key"


def tls_options(url: str) -> dict[str, Any]:
    """Return what redis-py before 6 must be told, if the URL does not: compare the host's name.

    >>> tls_options("rediss://somewhere:6379/0?ssl_cert_reqs=none")
    {}
    """
    options = dict(parse_qsl(urlsplit(url).query))
    return {} if options.get("ssl_cert_reqs") == "none" else {"ssl_check_hostname": True}


def tls_fault(error: BaseException) -> str | None:
    """Return what is wrong for good, such that trying again does not help; None for all else.

    >>> tls_fault(FileNotFoundError(2, "No such file"))
    'a file that the URL names cannot be read (No such file): ssl_ca_certs, ...'
    >>> tls_fault(ConnectionResetError("reset by peer"))
    """
    for cause in _causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                said = cause.verify_message.rstrip(".")
                return f"its certificate is not accepted ({said}){_what_to_do(cause.verify_code)}"
            case ssl.SSLError():
                if fault := _known_fault(cause):
                    return fault
            case FileNotFoundError() | PermissionError() | IsADirectoryError():
                return _unreadable(str(cause.strerror))
    return None


def _what_to_do(code: int) -> str:
    if code in _UNKNOWN_AUTHORITY:
        return ": name the authority that signed it with ?ssl_ca_certs=/PATH/ca.crt"
    if code in _ANOTHER_HOST:
        return ": the host of the URL is not one that it was made for"
    return ""


def _known_fault(error: ssl.SSLError) -> str | None:
    reason = error.reason or ""
    if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
        return f"it does not accept our certificate, or the lack of one: {_OUR_CERTIFICATE}"
    if reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"}:
        return "that port does not speak TLS: without it the URL begins with redis://"
    if error.library in {"X509", "PEM"} or "PEM lib" in str(error):
        return _unreadable(reason or "PEM")
    return None


def _unreadable(why: str) -> str:
    return (
        f"a file that the URL names cannot be read ({why}): ssl_ca_certs, ssl_certfile, ssl_keyfile"
    )


def tls_hint(error: BaseException) -> str:
    """Return what else may be behind an error that a server which is away gives too.

    >>> tls_hint(TimeoutError())
    ' (does that port speak TLS?)'
    """
    for cause in _causes(error):
        if isinstance(cause, TimeoutError):
            return " (does that port speak TLS?)"
        if isinstance(cause, ssl.SSLEOFError | ConnectionResetError | BrokenPipeError):
            # It ended the connection for want of a certificate, and its reason was overtaken.
            return f" (if it asks its clients for a certificate, {_OUR_CERTIFICATE})"
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it, as redis-py wraps them."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
