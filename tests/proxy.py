"""Proxies between a worker, or a client, and its server: they lose what passes, or hold it up."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Self

__all__ = ["LossyProxy", "Relay"]


class LossyProxy:
    """Passes everything on, but for the first reply that holds certain bytes.

    Parameters
    ----------
    path : Path
        Where it listens.
    server : str
        URL of the server behind it, ``unix://PATH``.
    lost : sequence of bytes
        What the reply that is lost holds, each of them.
    silently : bool, default False
        Leave that connection open, and let nothing more through, as a firewall does that
        forgot it; otherwise it is closed.
    """

    def __init__(
        self, path: Path, server: str, lost: Sequence[bytes], *, silently: bool = False
    ) -> None:
        self.url = f"unix://{path}"
        #: How many replies were lost.
        self.losses = 0
        self._server = server.removeprefix("unix://")
        self._lost, self._silently = lost, silently
        self._peers: dict[socket.socket, socket.socket] = {}
        self._from_server: set[socket.socket] = set()
        self._dead: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._end, self._end_seen = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for source in (self._listener, self._end_seen):
            self._selector.register(source, selectors.EVENT_READ)
        self._thread = Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()
        self._thread.join()
        for source in [*self._peers, *self._dead, self._listener, self._end_seen]:
            source.close()
        self._selector.close()

    def _run(self) -> None:
        while True:
            for ready, _ in self._selector.select():
                source = ready.fileobj
                if source is self._end_seen:
                    return
                if source is self._listener:
                    self._accept()
                elif source in self._peers:
                    assert isinstance(source, socket.socket)
                    self._pass_on(source)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._server)
        except OSError:  # it is away
            server.close()
            client.close()
            return
        self._from_server.add(server)
        for one, other in ((client, server), (server, client)):
            self._peers[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _pass_on(self, source: socket.socket) -> None:
        try:
            data = source.recv(1 << 20)
            if (
                source in self._from_server
                and not self.losses
                and all(x in data for x in self._lost)
            ):
                self.losses += 1
                self._drop(source, close=not self._silently)
            elif data:
                self._peers[source].sendall(data)
            else:
                self._drop(source, close=True)
        except OSError:
            self._drop(source, close=True)

    def _drop(self, source: socket.socket, *, close: bool) -> None:
        """Forget a connection and its other half."""
        for end in (source, self._peers[source]):
            del self._peers[end]
            self._from_server.discard(end)
            self._selector.unregister(end)
            if close:
                end.close()
            else:
                self._dead.append(end)


class Relay(LossyProxy):
    """A way to a server that a test breaks and mends.

    Parameters
    ----------
    path : Path
        Where it listens.
    server : str
        URL of the server behind it, ``unix://PATH``.

    Attributes
    ----------
    struck : Event
        Set when what was to be lost is lost.
    """

    def __init__(self, path: Path, server: str) -> None:
        super().__init__(path, server, [b"nothing is lost by its content alone"])
        self.struck = Event()
        self._words = self._harm = b""
        self._deaf: set[socket.socket] = set()
        self._open = Event()
        self._open.set()

    def lose_request(self, words: bytes) -> None:
        """Lose the next request that holds `words`: its connection breaks on the way."""
        self._strike(words, b"request")

    def lose_reply(self, words: bytes) -> None:
        """Pass the next request that holds `words` on; its connection breaks before the reply."""
        self._strike(words, b"reply")

    def cut_request(self, words: bytes) -> None:
        """Pass half of the next request that holds `words` on; then its connection breaks."""
        self._strike(words, b"half a request")

    def cut_reply(self, words: bytes) -> None:
        """Let the next request that holds `words` have half a reply; then its connection breaks."""
        self._strike(words, b"half a reply")

    def keep_reply(self, words: bytes) -> None:
        """Pass the next request that holds `words` on; nothing comes back, and nothing breaks."""
        self._strike(words, b"silence")

    def _strike(self, words: bytes, harm: bytes) -> None:
        self.struck.clear()
        self._harm, self._words = harm, words

    def point_at(self, server: str) -> None:
        """Lead to another server from the next connection on."""
        self._server = server.removeprefix("unix://")

    def forget(self) -> None:
        """Let nothing more through what is connected now, and close nothing: it is half open."""
        self._deaf |= set(self._peers)

    def hold(self) -> None:
        """Let nothing through in either direction, and close nothing, until `release`."""
        self._open.clear()

    def release(self) -> None:
        """Let everything through again, what was held too."""
        self._open.set()

    def __exit__(self, *_: object) -> None:
        self._open.set()
        super().__exit__()

    def _pass_on(self, source: socket.socket) -> None:
        self._open.wait()
        if source in self._deaf:
            if not source.recv(1 << 20):
                self._drop(source, close=True)
            return
        if not self._words or source in self._from_server:
            super()._pass_on(source)
            return
        data = source.recv(1 << 20)
        if self._words not in data:
            self._send(source, data)
            return
        self._words = b""
        server = self._peers[source]
        if self._harm == b"half a request":
            server.sendall(data[: len(data) // 2])
        if self._harm in {b"request", b"half a request"}:
            self._drop(source, close=True)
        else:
            self._deaf.add(server)
            server.sendall(data)
            if self._harm != b"silence":
                self._break_reply(source, server)
        self.struck.set()

    def _break_reply(self, client: socket.socket, server: socket.socket) -> None:
        """Wait for a reply, send its half if that was wanted, and break the connection."""
        reply = server.recv(1 << 20)
        if self._harm == b"half a reply":
            client.sendall(reply[: len(reply) // 2])
        self._deaf.discard(server)
        self._drop(client, close=True)

    def _send(self, source: socket.socket, data: bytes) -> None:
        if data:
            self._peers[source].sendall(data)
        else:
            self._drop(source, close=True)
