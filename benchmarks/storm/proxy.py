"""A proxy that loses things when it is told to: ``python -m benchmarks.storm.proxy LISTEN SERVER``.

It reads a word a line from its standard input, and ends with that. One process of its own for
each worker or client: in the storm's process all of them would wait for one another.
"""

import asyncio
import contextlib
import os
import sys

#: Bytes that are passed on at once.
PIECE = 1 << 16


class Proxy:
    """Passes everything on, but for what it was told to lose.

    ======= ==============================================================
    cut     every connection is closed, now
    request the next request is lost, and its connection closed
    reply   the server gets the next request; its reply is lost, and the
            connection closed
    half    half of the next reply goes through, and the connection closes
    hold    nothing goes through, either way, until ``pass``
    pass    go on
    ======= ==============================================================
    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._lose = ""
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()

    def tell(self, word: str) -> None:
        """Do what a word says."""
        if word == "cut":
            for writer in self._writers:
                writer.transport.abort()
        elif word == "hold":
            self._open.clear()
        elif word == "pass":
            self._open.set()
        else:
            self._lose = word

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, to its end."""
        writers = [writer]
        try:
            there, back = await asyncio.open_unix_connection(self._server)
            writers.append(back)
            self._writers.update(writers)
            ways = [
                asyncio.create_task(self._pass_on(reader, back, "request")),
                asyncio.create_task(self._pass_on(there, writer, "reply")),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # the server is away: the other end sees a closed connection
        finally:
            for one in writers:
                self._writers.discard(one)
                one.transport.abort()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: str
    ) -> None:
        """Pass on what comes, until an end closes or something is to be lost."""
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE):
                await self._open.wait()
                if self._lose == what:
                    self._lose = ""
                    return
                if self._lose == "half" and what == "reply":
                    self._lose = ""
                    writer.write(data[: len(data) // 2])
                    await writer.drain()
                    return
                writer.write(data)
                await writer.drain()


async def serve(listen: str, server: str) -> None:
    """Serve until the standard input ends."""
    proxy = Proxy(server)
    words = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)
    listener = await asyncio.start_unix_server(proxy.connect, f"{listen}.new")
    os.rename(f"{listen}.new", listen)  # noqa: PTH104 - who finds it is served
    async with listener:
        while word := await words.readline():
            proxy.tell(word.decode().strip())


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2]))
