"""Which server it is when none is named: that of the settings, or a private one."""

from __future__ import annotations

from collections.abc import Callable

from dask_redisq.errors import NoServerError
from dask_redisq.settings import setting

__all__ = ["serve_unnamed_by", "server_url"]

_start_private: Callable[[str], str] | None = None


def serve_unnamed_by(start: Callable[[str], str]) -> None:
    """Let `start`, queue name -> URL, provide the server for queues without a URL.

    ``import dask_redisq`` does so, for `dask_redisq.embedded`, which is built on queues: they
    cannot import it.
    """
    global _start_private  # noqa: PLW0603
    _start_private = start


def server_url(queue: str) -> str:
    """Return the configured URL, or that of this process's private server."""
    url = setting("url")
    if url:
        return str(url)
    if _start_private is None:
        raise NoServerError("no redisq.url is set: import dask_redisq starts a private server")
    return _start_private(queue)
