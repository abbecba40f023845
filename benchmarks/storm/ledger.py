"""What became of each job of a storm, as its client told."""

import json
import queue
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Job:
    """One submitted graph.

    Attributes
    ----------
    about : dict
        What its client told of it: serial, seed, tasks, client.
    state : str
        submitted, detached, right, wrong, failed, or abandoned: its client was killed.
    why : str
        The error of one that failed.
    """

    about: dict[str, Any]
    state: str = "submitted"
    why: str = ""


class Ledger:
    """Collects reports, from threads and from the files of client processes.

    Parameters
    ----------
    folder : Path
        Where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self.jobs: dict[int, Job] = {}
        #: Detached jobs that somebody is to attach to.
        self.left: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._folder = folder
        self._read: Counter[Path] = Counter()
        self._lock = threading.Lock()

    def report(self, event: dict[str, Any]) -> None:
        """Enter one report."""
        with self._lock:
            job = self.jobs.setdefault(event["serial"], Job(event))
            job.about |= event
            job.state, job.why = event["event"], event.get("why", "")
            if event.get("left"):
                self.left.put(event)

    def read_files(self) -> None:
        """Enter what client processes wrote since the last time."""
        for path in sorted(self._folder.glob("events-*")):
            data = path.read_bytes()[self._read[path] :]
            whole = data[: data.rfind(b"\n") + 1]
            self._read[path] += len(whole)
            for line in whole.splitlines():
                self.report(json.loads(line))

    def abandon(self, client: str) -> None:
        """Give up what a killed client waited for; its detached jobs go on without it."""
        self.read_files()
        with self._lock:
            mine = [job for job in self.jobs.values() if job.about["client"] == client]
        for job in mine:
            if job.state == "submitted":
                job.state = "abandoned"
            elif job.state == "detached" and not job.about["left"]:
                self.report({**job.about, "event": "detached", "left": True})

    def open(self) -> list[Job]:
        """Return the jobs whose end nobody told yet."""
        with self._lock:
            return [job for job in self.jobs.values() if job.state in {"submitted", "detached"}]

    def wait(self, timeout: float) -> list[Job]:
        """Wait until all ended; return those that did not."""
        deadline = time.monotonic() + timeout
        while True:
            self.read_files()
            still = self.open()
            if not still or time.monotonic() > deadline:
                return still
            time.sleep(0.05)
