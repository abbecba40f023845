"""A private server with an append-only file, that is killed and comes back."""

import os
import signal
import socket
import time
from pathlib import Path
from typing import Self

from dask_redisq.keeper import Kept
from dask_redisq.server import find_server

#: Seconds that it may take to read its file.
START_TIMEOUT = 30.0


class DurableServer:
    """A server that has written what it has answered.

    ``appendfsync always``: each answer follows its ``fsync``, so that a killed server comes back
    with all that anybody was told. With ``everysec``, the default, it also writes before it
    answers, unless an ``fsync`` is under way in its other thread: then it may answer first, for up
    to two seconds, and a server killed in between comes back older. The engine repairs
    that too, but then accepted tasks run again, and no bound of extra runs could be told.

    Parameters
    ----------
    folder : Path
        For its files, with a short name, and of mode 0700.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "s"
        self.url = f"unix://{self.socket}"
        self._kept: Kept | None = None
        self._log = os.open(folder / "server.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.start()
        self.admit()

    @property
    def pid(self) -> int:
        """Its process, also when that is gone."""
        return self._kept.pid if self._kept else 0

    @property
    def running(self) -> bool:
        """Whether it was started and not killed since."""
        return self._kept is not None

    @property
    def _hidden(self) -> Path:
        return self.folder / "s.new"

    def start(self) -> None:
        """Start it and wait until it read its file; nobody finds it before `admit`."""
        flags = {
            "port": "0", "unixsocket": str(self._hidden), "unixsocketperm": "700",
            "dir": str(self.folder), "appendonly": "yes", "appendfsync": "always", "save": "",
            "maxmemory-policy": "noeviction",
        }  # fmt: skip
        words = [word for name, value in flags.items() for word in (f"--{name}", value)]
        self._kept = Kept([find_server(), *words], output=self._log)
        deadline = time.monotonic() + START_TIMEOUT
        while not _answers(self._hidden):
            if self._kept.poll() is not None or time.monotonic() > deadline:
                msg = f"the server does not answer; see {self.folder}/server.log"
                raise RuntimeError(msg)
            time.sleep(0.005)

    def admit(self) -> None:
        """Let everybody in: a socket's name may change, its listener goes with it."""
        self._hidden.rename(self.socket)

    def freeze(self) -> None:
        """Stop it where it is."""
        if self._kept is not None:
            os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        if self._kept is not None:
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill it; what it was asked and did not answer may be lost."""
        if self._kept is not None:
            os.kill(self.pid, signal.SIGKILL)
            self._kept.close()
            self._kept = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        os.close(self._log)


def _answers(path: Path) -> bool:
    """Tell whether a server answers PING, and has read its file."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
