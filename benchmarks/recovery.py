"""How soon work goes on when a slot, a host or the server is killed."""

import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dask.delayed import Delayed, delayed

from benchmarks.report import Figure
from benchmarks.storm.runs import all_runs
from benchmarks.storm.server import DurableServer
from benchmarks.storm.tasks import Piece, wait_for, work
from benchmarks.storm.workers import QUEUE, Waits, Worker
from dask_redisq.queue import Queue

BAR_IDLE, BAR_NEW, BAR_SERVER = 0.5, 2.0, 3.0
#: Seconds that the server is away.
AWAY = 1.0
#: Seconds after which a slot is not young any more, for its supervisor.
YOUNG = 5.0
#: Seconds after which something that should have happened is given up.
TIMEOUT = 60.0


class Stage:
    """A server and workers for one kind of death.

    Parameters
    ----------
    folder : Path
        For the server's files, and what the tasks count.
    waits : Waits
        The times of workers and clients.
    """

    def __init__(self, folder: Path, waits: Waits) -> None:
        self.runs = folder / "runs"
        self.runs.mkdir()
        self.server = DurableServer(folder)
        self.queue = Queue(QUEUE, self.server.url)
        self.workers: list[Worker] = []
        self._folder, self._waits = folder, waits
        self._jobs = 0

    def start_worker(self, slots: int) -> None:
        """Start a worker."""
        name = f"w{len(self.workers)}"
        log = self._folder / f"{name}.log"
        self.workers.append(Worker(name, self.server.url, log, slots, self._waits))

    def living(self) -> list[Worker]:
        """Return the workers that run."""
        return [worker for worker in self.workers if worker.running]

    def starts(self) -> list[tuple[int, int]]:
        """Return when each run of a task of the present job began, and in which process."""
        return [(run.ns, run.pid) for run in all_runs(self.runs) if run.serial == self._jobs]

    def compute(self, dsk: Callable[[Piece], dict[Any, Any]]) -> threading.Thread:
        """Compute all of a graph in a thread; `dsk` makes it of what its tasks begin with."""
        self._jobs += 1
        graph = dsk(Piece(str(self.runs), self._jobs, 0, 0, 0.0))
        waits = self._waits
        thread = threading.Thread(
            target=self.queue.get,
            args=[graph, list(graph)],
            kwargs={"alive_expiry": waits.alive_expiry, "ft_interval": waits.ft_interval},
        )
        thread.start()
        return thread

    def detach(
        self, dsk: Callable[[Piece], dict[Any, Any]], kept: bytes | None = None
    ) -> Callable[[], None]:
        """Leave a graph to the server; return what waits for its end, and forgets it.

        With `kept`, each of its tasks reads that as well, of a job that is done.
        """
        self._jobs += 1
        graph = dsk(Piece(str(self.runs), self._jobs, 0, 0, 0.0))
        outputs = [Delayed(key, graph) for key in graph]
        if kept is not None:
            data = self.queue.scatter(kept)
            graph = {key: delayed(func)(*args, data) for key, (func, *args) in graph.items()}
            outputs = list(graph.values())
        future = self.queue.compute(*outputs, detach=True, optimize_graph=False)

        def wait() -> None:
            future.result()
            future.forget()

        return wait

    def hold(self) -> tuple[threading.Thread, Path]:
        """Compute one task that runs until there is a file; return once it runs."""
        gate = self._folder / f"gate{self._jobs}"
        thread = self.compute(lambda piece: {"x": (wait_for, piece, str(gate))})
        until(lambda: len(self.starts()) == 1)
        return thread, gate

    def close(self) -> None:
        """End all of it."""
        self.queue.close()
        for worker in self.workers:
            worker.close()
        self.server.kill()


@contextmanager
def stage(waits: Waits, *slots: int) -> Iterator[Stage]:
    """Open a stage with workers of so many slots, that were there long enough to judge."""
    with tempfile.TemporaryDirectory(prefix="recovery-", dir="/tmp") as folder:
        opened = Stage(Path(folder), waits)
        try:
            for count in slots:
                opened.start_worker(count)
            opened.queue.wait_for_workers(sum(slots), timeout=TIMEOUT)
            time.sleep(waits.alive_expiry)
            yield opened
        finally:
            opened.close()


def recovery(waits: Waits, repeat: int, say: Callable[[str], None]) -> list[Figure]:
    """Measure all of it, `repeat` times each."""
    usual = Waits(10.0, 5.0)
    parts: list[tuple[str, float, Callable[[], list[float]]]] = [
        ("slot killed, another idle", BAR_IDLE, partial(slot_killed, usual, 2, repeat)),
        ("slot killed, no other", BAR_NEW, partial(slot_killed, usual, 1, repeat)),
        (
            f"host gone, expiry {waits.alive_expiry:g} s + interval {waits.ft_interval:g} s",
            waits.alive_expiry + waits.ft_interval,
            partial(host_gone, waits, repeat),
        ),
        ("server killed; since it is back", BAR_SERVER, partial(server_killed, usual, repeat)),
        (
            "the same, of a job that nobody reads",
            BAR_SERVER,
            partial(server_killed, usual, repeat, lambda on: on.detach(_layers)),
        ),
        (
            "the same, of one that reads persisted values",
            BAR_SERVER,
            partial(server_killed, usual, repeat, lambda on: on.detach(_apart, b"kept")),
        ),
    ]
    figures = []
    for what, bar, measure in parts:
        say(what)
        times = measure()
        figures.append(Figure(f"{what}: its tasks run, median", statistics.median(times), "s", bar))
        figures.append(Figure(f"{what}: the slowest of {repeat}", max(times), "s"))
    return figures


def slot_killed(waits: Waits, slots: int, repeat: int) -> list[float]:
    """Kill the slot that runs a task; return the seconds until that runs again."""
    times = []
    with stage(waits, slots) as on:
        for _ in range(repeat):
            on.queue.wait_for_workers(slots, timeout=TIMEOUT)
            thread, gate = on.hold()
            time.sleep(YOUNG)  # the next one after a slot that dies young is made to wait
            killed = time.monotonic_ns()
            os.kill(on.starts()[0][1], signal.SIGKILL)
            times.append(_again(on, killed))
            gate.touch()
            thread.join()
    return times


def host_gone(waits: Waits, repeat: int) -> list[float]:
    """Kill a worker that runs a task, whole; return the seconds until that runs elsewhere."""
    times = []
    with stage(waits, 1, 1) as on:
        for i in range(repeat):
            thread, gate = on.hold()
            # At another point between two beats and two looks each time.
            time.sleep(waits.alive_expiry * (1 + i / repeat))
            (_, pid), *_ = on.starts()
            lost = next(w for w in on.living() if pid in [slot.pid for slot in w.slots()])
            killed = time.monotonic_ns()
            for process in (lost.supervisor, *lost.slots()):
                os.kill(process.pid, signal.SIGSTOP)
            for process in (*lost.slots(), lost.supervisor):
                os.kill(process.pid, signal.SIGKILL)
            times.append(_again(on, killed))
            gate.touch()
            thread.join()
            on.start_worker(1)
            on.queue.wait_for_workers(2, timeout=TIMEOUT)
    return times


def server_killed(
    waits: Waits,
    repeat: int,
    begin: Callable[[Stage], Callable[[], None]] = lambda on: on.compute(_layers).join,
) -> list[float]:
    """Kill the server under load; return the seconds from its first answer to the next result.

    The start of a task would say less: it may be one that was leased before, and is refused.
    """
    times = []
    with stage(waits, 2) as on:
        for _ in range(repeat):
            wait = begin(on)
            until(lambda: len(on.starts()) > 100)
            on.server.kill()
            time.sleep(AWAY)
            on.server.start()
            on.server.admit()
            back = time.monotonic_ns()
            times.append(_accepted(on, back))
            wait()
    return times


def _layers(piece: Piece) -> dict[Any, Any]:
    """Ten layers of 40 tasks of 10 ms, each on two of the layer before."""
    dsk: dict[Any, Any] = {}
    for layer in range(10):
        for i in range(40):
            taken = [("x", layer - 1, (i + k) % 40) for k in (0, 1)] if layer else []
            mine = piece._replace(number=40 * layer + i, pause=0.01)
            dsk["x", layer, i] = (work, mine, b"", *taken)
    return dsk


def _apart(piece: Piece) -> dict[Any, Any]:
    """400 tasks of 10 ms."""
    return {("x", i): (work, piece._replace(number=i, pause=0.01), b"") for i in range(400)}


def _accepted(on: Stage, back: int) -> float:
    """Wait until a result is accepted; return how many seconds after `back` that was."""
    before = on.queue.stats()["finished"]
    until(lambda: on.queue.stats()["finished"] > before)
    return (time.monotonic_ns() - back) / 1e9


def _again(on: Stage, killed: int) -> float:
    """Wait until a task runs again; return how many seconds after `killed` that was."""
    until(lambda: len(on.starts()) == 2)
    return (on.starts()[1][0] - killed) / 1e9


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            msg = f"it did not happen in {TIMEOUT:g} s"
            raise TimeoutError(msg)
        time.sleep(0.005)
