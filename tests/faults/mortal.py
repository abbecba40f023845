"""A server that dies and comes back: with its log, as it was before, or empty."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

from dask_redisq.errors import ServerRefused, ServerUnavailable
from dask_redisq.link import Link
from dask_redisq.server import find_server

__all__ = ["MortalServer"]


class MortalServer:
    """A server on a unix socket that writes every command to a log.

    Parameters
    ----------
    folder : Path
        For its files, with a short name.
    settings
        More settings of the server; ``_`` for ``-``.
    """

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.settings = {name.replace("_", "-"): str(value) for name, value in settings.items()}
        self.url = f"unix://{folder}/s"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it on what its files hold, and wait until it answers."""
        flags = {
            "port": "0", "unixsocket": f"{self.folder}/s", "unixsocketperm": "700",
            "dir": str(self.folder), "appendonly": "yes", "appendfsync": "always", "save": "",
            "maxmemory-policy": "noeviction", "logfile": f"{self.folder}/log",
        } | self.settings  # fmt: skip
        words = [word for name, value in flags.items() for word in (f"--{name}", value)]
        self.process = subprocess.Popen([find_server(), *words], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                Link(self.url, patience=0.0).connect()
                return
            except ServerRefused:  # it asks for a password: then it is there
                return
            except ServerUnavailable:
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.01)

    def kill(self) -> None:
        """Kill it; what it was asked and did not answer is lost."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Let it end in order, as by `systemctl stop`: it takes its socket away."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def freeze(self) -> None:
        """Let it stand still: it keeps its connections, and answers nobody."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def save(self, copy: Path) -> None:
        """Copy its files as they are now."""
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder / "appendonlydir", copy)

    def replace(self, copy: Path | None) -> None:
        """Give the dead server the files of `copy`, or none."""
        shutil.rmtree(self.folder / "appendonlydir")
        if copy is not None:
            shutil.copytree(copy, self.folder / "appendonlydir")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
