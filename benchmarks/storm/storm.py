"""Run a storm: start everything, hit it by the schedule, clear up, and judge."""

import contextlib
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dask

from benchmarks.storm.clients import Client, attach
from benchmarks.storm.faults import Weather
from benchmarks.storm.fleet import CLIENT_LEASE, QUEUE, SERIALS, Fleet
from benchmarks.storm.ledger import Ledger
from benchmarks.storm.outcome import Outcome
from benchmarks.storm.runs import all_runs, find_repeats, recoveries
from benchmarks.storm.schedule import ALIVE_EXPIRY, FT_INTERVAL, KINDS, RATE, schedule
from dask_redisq.link import Link
from dask_redisq.queue import Queue

#: Seconds for workers to start, and to leave a queue that is removed.
START_TIMEOUT, LEAVE_TIMEOUT = 60.0, 30.0
#: What the monitors say of a job whose counts are wrong.
DAMAGED = "is rebuilt, for it is damaged"
#: Parts of the names of keys that are written before a script has seen them, and the most
#: milliseconds that these live.
UNSEEN, UNSEEN_LIFE = (":value:", ":const:", ":new:", ":built:"), 600_000


@dataclass(frozen=True)
class Settings:
    """How large a storm is.

    Parameters
    ----------
    minutes, seed
        How long, and which one.
    workers, threads, clients
        How many workers of two slots, client threads and client processes.
    rate
        Faults a second.
    patience
        Seconds after the last fault at which a job that has not ended hangs.
    kinds
        What happens; see `schedule.KINDS`.
    """

    minutes: float
    seed: int
    workers: int = 3
    threads: int = 2
    clients: int = 2
    rate: float = RATE
    patience: float = 60.0
    kinds: tuple[str, ...] = tuple(KINDS)


def storm(settings: Settings, say: Callable[[str], None]) -> tuple[Outcome, Path | None]:
    """Run one storm.

    Returns
    -------
    tuple of Outcome and Path
        What came of it; and, if a bar was missed, the folder with the server's data, the logs
        and the runs, which is kept.
    """
    folder = Path(tempfile.mkdtemp(prefix="storm-", dir="/tmp"))
    outcome = Outcome(settings.minutes, settings.seed)
    waits = {"redisq.alive-expiry": ALIVE_EXPIRY, "redisq.ft-interval": FT_INTERVAL}
    with dask.config.set(waits), _log(folder / "client-threads.log"):
        with Fleet(folder, settings.workers, settings.clients) as fleet:
            _blow(settings, fleet, outcome, say)
        outcome.processes = fleet.left_processes()
    outcome.audit = [
        line
        for path in sorted(folder.glob("*.log"))
        for line in path.read_text(errors="replace").splitlines()
        if DAMAGED in line
    ]
    if outcome.held:
        shutil.rmtree(folder)
        return outcome, None
    return outcome, folder


def _blow(settings: Settings, fleet: Fleet, outcome: Outcome, say: Callable[[str], None]) -> None:
    seconds, seed = settings.minutes * 60, settings.seed
    ledger = Ledger(fleet.folder)
    with Queue(QUEUE, fleet.server.url) as queue:
        fleet.fill()
        queue.wait_for_workers(2, timeout=START_TIMEOUT)
        start = time.monotonic()
        until = start + seconds
        outcome.jobs = ledger.jobs
        with _threads(settings, fleet, ledger, queue, until):
            weather = Weather(fleet, ledger, lambda: fleet.start_clients(seed, until))
            fleet.start_clients(seed, until)
            with _progress(ledger, weather, until, say):
                weather.run(schedule(seed, seconds, settings.rate, settings.kinds), start)
            weather.clear()
            say("the faults are over: waiting for the jobs")
            outcome.hangs = ledger.wait(settings.patience + max(0.0, until - time.monotonic()))
        outcome.faults = weather.counts
        if not outcome.hangs:
            outcome.job_keys = _job_keys(fleet, queue)
            queue.remove(LEAVE_TIMEOUT)
            fleet.wait_for_workers(LEAVE_TIMEOUT)
            outcome.keys = _keys(fleet, queue)
    runs = all_runs(fleet.runs)
    impure = {serial for serial, job in ledger.jobs.items() if not job.about["pure"]}
    outcome.repeats = find_repeats(runs, weather.hits, weather.outages, impure)
    outcome.recoveries = recoveries(runs, weather.hits)
    for outage in weather.outages:
        later = next((run.ns for run in runs if run.ns > outage.back), None)
        if later is not None:
            outcome.server_recoveries.append((later - outage.back) / 1e9)


@contextmanager
def _threads(
    settings: Settings, fleet: Fleet, ledger: Ledger, queue: Queue, until: float
) -> Iterator[None]:
    """Run the client threads, and one that attaches to what others left."""
    threads = []
    for i in range(settings.threads):
        client = Client(queue, f"t{i}", settings.seed, (i + 1) * SERIALS, fleet.runs, ledger.report)
        threads.append(threading.Thread(target=client.run, args=[until], daemon=True))

    def attach_all() -> None:
        while (about := ledger.left.get()) is not None:
            attach(fleet.server.url, QUEUE, about, fleet.runs, ledger.report)

    attacher = threading.Thread(target=attach_all, daemon=True)
    for thread in (*threads, attacher):
        thread.start()
    try:
        yield
    finally:
        ledger.left.put(None)
        if not ledger.open():  # else some of them hang, and end with this process
            for thread in (*threads, attacher):
                thread.join()


@contextmanager
def _progress(
    ledger: Ledger, weather: Weather, until: float, say: Callable[[str], None]
) -> Iterator[None]:
    """Read the files of client processes, and tell how far it is, meanwhile."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            ledger.read_files()
            done = sum(job.state == "right" for job in list(ledger.jobs.values()))
            left = max(0.0, until - time.monotonic())
            say(f"{left:.0f} s left, {done} jobs, {weather.counts.total()} faults")

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _job_keys(fleet: Fleet, queue: Queue) -> list[str]:
    """Wait until the jobs of killed clients are swept; return the keys of jobs that are left.

    A detached job whose client was killed before it told anybody is ended here. What was written
    for a call that its process did not live to make expires, and so does not count.
    """
    link = Link(fleet.server.url)
    deadline = time.monotonic() + CLIENT_LEASE + ALIVE_EXPIRY + 3 * FT_INTERVAL
    while (rows := queue.jobs()) and time.monotonic() < deadline:
        for row in rows:
            if row["detached"] and row["sealed"]:
                future = queue.attach(row["id"])
                future.cancel("the storm is over")
                future.forget()
        time.sleep(0.1)
    time.sleep(2 * FT_INTERVAL)
    names = [name.decode() for name in link.command("KEYS", queue.keys.pattern())]
    jobs = [name for name in names if name.startswith(queue.keys.prefix + "job:")]
    unseen = [
        name
        for name in jobs
        if any(part in name for part in UNSEEN) and 0 < link.command("PTTL", name) <= UNSEEN_LIFE
    ]
    link.close()
    return sorted(set(jobs) - set(unseen))


def _keys(fleet: Fleet, queue: Queue) -> list[str]:
    """Return all keys but tombs, which expire."""
    link = Link(fleet.server.url)
    names = [name.decode() for name in link.command("KEYS", "*")]
    link.close()
    return sorted(name for name in names if not name.startswith(queue.keys("tomb", "")))


@contextmanager
def _log(path: Path) -> Iterator[None]:
    """Let what the package says in this process go into a file."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("dask_redisq")
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.propagate = propagate
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()
