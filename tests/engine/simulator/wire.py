"""Sends commands over a link's own connection, and reads their replies; with nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import hiredis
from redis.exceptions import ResponseError

from dask_redisq import scripts
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.refusals import meaning

__all__ = ["Wire"]


class Wire:
    """A connection to a server that does not go away, on this host.

    What a link does besides, lest a call be lost, took half of a world's time.

    Parameters
    ----------
    link : Link
        Its connection is used; it may be used, too, between two calls.
    """

    def __init__(self, link: Link) -> None:
        link.command("PING")
        self._link = link
        self._socket: Any = link._connection._sock
        self._reader = hiredis.Reader(replyError=ResponseError)

    def __repr__(self) -> str:
        return f"<Wire {self._link!r}>"

    def ask(self, *commands: Sequence[Any]) -> list[Any]:
        """Send some commands in one piece, and return the replies; of errors the first is raised."""
        return self._checked(self._ask(commands))

    def call(
        self, name: str, keys: Keys, args: Mapping[str, Any], *more: Sequence[Any]
    ) -> list[Any]:
        """Call a script, and send some commands behind it; return their replies, its own first."""
        script = scripts.load(name)
        words = ("EVALSHA", script.sha, 1, keys("queue"), *script.argv(dict(args)))
        replies = self._ask((words, *more))
        if isinstance(replies[0], ResponseError) and str(replies[0]).startswith("NOSCRIPT"):
            self._link.load(name)
            replies = self._ask((words, *more))
        return self._checked(replies)

    def _checked(self, replies: list[Any]) -> list[Any]:
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise meaning(reply, self._link.url)
        return replies

    def _ask(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        self._socket.sendall(b"".join([hiredis.pack_command(tuple(words)) for words in commands]))
        replies: list[Any] = []
        while len(replies) < len(commands):
            reply = self._reader.gets()
            if reply is False:
                data = self._socket.recv(65536)
                assert data, "the server closed the connection"
                self._reader.feed(data)
            else:
                replies.append(reply)
        return replies
