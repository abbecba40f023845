"""A network that takes longer for a value than a server may take for its reply."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest

import dask_redisq.link as link_module
from dask_redisq.link import Link
from dask_redisq.server import PrivateServer

#: Seconds that the tests give for a reply, and bytes that need several times as long.
TIMEOUT = 0.5
SIZE = 4_000_000


class SlowProxy:
    """Passes on what one connection after the other says, 2 MB a second, until `stalled`."""

    def __init__(self, server: str) -> None:
        self._server = server.removeprefix("unix://")
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        #: Bytes that came from clients.
        self.sent = 0
        self.stalled = threading.Event()
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """End all of it; after the clients are closed."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in [self._listener, *self._ends]:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._server)
            self._ends += [client, server]
            for one, other in ((client, server), (server, client)):
                counted = {"counted": one is client}
                thread = threading.Thread(target=self._pump, args=(one, other), kwargs=counted)
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, target: socket.socket, *, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(40_000):
                if counted:
                    self.sent += len(data)
                time.sleep(len(data) / 2_000_000)
                if not self.stalled.is_set():
                    target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def slow(server: PrivateServer) -> Iterator[SlowProxy]:
    """A slow way to the server."""
    proxy = SlowProxy(server.url)
    yield proxy
    proxy.close()


@pytest.fixture
def slow_link(link: Link, slow: SlowProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    """A connection over it that waits for a reply a quarter of what a value needs."""
    monkeypatch.setattr(link_module, "REPLY_TIMEOUT", TIMEOUT)
    opened = Link(slow.url, patience=3 * TIMEOUT)
    yield opened
    opened.close()


def test_a_value_that_needs_longer_than_a_reply_is_sent_once(
    link: Link, slow_link: Link, slow: SlowProxy
) -> None:
    """The timeout holds for a stretch without progress: sending is progress."""
    started = time.monotonic()
    slow_link.command("SET", "x", bytes(SIZE))
    assert time.monotonic() - started > 2 * TIMEOUT
    assert slow.sent < 1.5 * SIZE
    assert link.command("STRLEN", "x") == SIZE


def test_a_value_that_needs_longer_than_a_reply_is_read_once(
    link: Link, slow_link: Link, slow: SlowProxy
) -> None:
    """Reading is progress, too."""
    link.command("SET", "x", bytes(SIZE))
    assert slow_link.command("GET", "x") == bytes(SIZE)
    assert slow.sent < 10_000


def test_a_large_call_that_is_sent_again_is_told(
    slow_link: Link, slow: SlowProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """A network that lets nothing through is no progress: a word about what is sent again."""
    slow_link.command("PING")
    slow.stalled.set()
    with caplog.at_level(logging.WARNING, "dask_redisq"), pytest.raises(ConnectionError):
        slow_link.command("SET", "x", bytes(SIZE))
    assert any(f"sending {SIZE:,} bytes again" in r.message for r in caplog.records)
