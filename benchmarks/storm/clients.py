"""Clients of a storm: each submits one graph after the other, and compares what comes back.

As threads of the storm's process, and as processes of their own:
``python -m benchmarks.storm.clients URL NAME SEED FIRST FOLDER UNTIL``.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.storm.graphs import Puzzle, is_right
from dask_redisq.errors import ServerUnavailable
from dask_redisq.queue import Queue

#: How often a job is detached, and how often another process attaches to that.
DETACHED, LEFT = 0.25, 0.6
#: Seconds for which the results of detached jobs are kept.
RESULT_TTL = 600.0
#: A connection that cannot be made is told at once; a call that waits in vain, after 30 s.
AT_ONCE = 10.0

Report = Callable[[dict[str, Any]], None]
T = TypeVar("T")


class Client:
    """Submits graphs until the time is over.

    Parameters
    ----------
    queue
        The queue.
    name
        Its name, with which its graphs are a function of the storm's seed.
    seed
        The storm's seed.
    first
        Serial number of its first job.
    folder
        Where tasks count their runs.
    report
        Is told what happens to each job.
    """

    def __init__(
        self, queue: Queue, name: str, seed: int, first: int, folder: Path, report: Report
    ) -> None:
        self.queue = queue
        self.name = name
        self._rng = random.Random(f"client {name} of {seed}")
        self._serial = first
        self._folder = folder
        self._report = report

    def run(self, until: float) -> None:
        """Go on until `until`, by `time.monotonic`; the job in hand is finished."""
        while time.monotonic() < until:
            seed = self._rng.getrandbits(64)
            detach = self._rng.random() < DETACHED
            leave = detach and self._rng.random() < LEFT
            puzzle = Puzzle.make(seed, self._serial, str(self._folder))
            self._job(puzzle, seed, detach=detach, leave=leave)
            self._serial += 1

    def _job(self, puzzle: Puzzle, seed: int, *, detach: bool, leave: bool) -> None:
        serial = puzzle.pieces[0].serial
        about = {
            "serial": serial,
            "seed": seed,
            "tasks": len(puzzle.pieces),
            "pure": puzzle.options["pure"],
            "client": self.name,
        }
        self._report({"event": "submitted", **about})
        try:
            if detach:
                future = patiently(
                    lambda: self.queue.compute(
                        puzzle.collections(),
                        detach=True,
                        result_ttl=RESULT_TTL,
                        optimize_graph=False,
                        **puzzle.options,
                    )
                )
                self._report({"event": "detached", "job": future.id, "left": leave, **about})
                if leave:
                    return
                values = patiently(future.result)
            else:
                graph = puzzle.graph()
                values = patiently(lambda: self.queue.get(graph, puzzle.keys, **puzzle.options))
        except Exception as error:
            self._report({"event": "failed", "why": told(error), **about})
            return
        right = is_right(values, puzzle.answer())
        self._report({"event": "right" if right else "wrong", **about})
        # Not before: who is killed in between leaves a job to those who attach.
        if detach:
            patiently(future.forget)


def attach(url: str, queue: str, about: dict[str, Any], folder: Path, report: Report) -> None:
    """Attach to a detached job with new connections, and compare its answer."""
    known = {name: about[name] for name in ("serial", "seed", "tasks", "pure", "client")}
    try:
        with Queue(queue, url) as mine:
            future = patiently(lambda: mine.attach(about["job"]))
            values = patiently(future.result)
            answer = Puzzle.make(known["seed"], known["serial"], str(folder)).answer()
            report({"event": "right" if is_right(values, answer) else "wrong", **known})
            patiently(future.forget)
    except Exception as error:
        report({"event": "failed", "why": told(error), **known})


def patiently(call: Callable[[], T]) -> T:
    """Call again while no connection can be made, as a user would whose server restarts."""
    deadline = time.monotonic() + 60
    while True:
        started = time.monotonic()
        try:
            return call()
        except ServerUnavailable:
            if time.monotonic() > min(deadline, started + AT_ONCE):
                raise
            time.sleep(0.05)


def told(error: BaseException) -> str:
    """Return an error's type and text in one line."""
    notes = " ".join(getattr(error, "__notes__", ()))
    return f"{type(error).__name__}: {error} {notes}".replace("\n", " ")[:1000]


def main(url: str, name: str, seed: str, first: str, folder: str, until: str) -> None:
    """Run one client; its reports go into a file beside the runs, a line each."""
    path = Path(folder).parent / f"events-{name}"
    with Queue("storm", url) as queue, path.open("a", buffering=1) as file:

        def report(event: dict[str, Any]) -> None:
            file.write(json.dumps(event) + "\n")

        Client(queue, name, int(seed), int(first), Path(folder), report).run(float(until))


if __name__ == "__main__":
    # Not as __main__, which pickles would name.
    from benchmarks.storm.clients import main as run_client

    run_client(*sys.argv[1:])
