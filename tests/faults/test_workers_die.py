"""Workers die between any two calls, come late, come and go: rows 1 to 3, 7, 40, 41, 43; scenarios 11 to 14, 17, 18."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from computing import Computing, nothing_left
from conftest import WorkerProcess, is_gone, wait_until
from mortal import MortalServer
from proxy import LossyProxy, Relay
from test_faults import Background, log_and_wait, pids

from dask_redisq import scripts
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.passwords import with_password
from dask_redisq.queue import Queue
from dask_redisq.versions import python_tag

#: Seconds: the alive expiry and the interval of looks here, and what a loaded machine adds.
EXPIRY, LOOK, SLACK = 1, 1, 1.5
LOOKS = {"alive_expiry": EXPIRY, "ft_interval": LOOK}

StartWorker = Callable[..., WorkerProcess]


def whole(worker: WorkerProcess) -> list[psutil.Process]:
    """Return the processes of a worker, its supervisor first."""
    return [psutil.Process(worker.pid), *worker.slots()]


def start(start_worker: StartWorker, queue: Queue, *words: str, url: str = "") -> WorkerProcess:
    """Start one more worker of one slot, and wait until it is registered."""
    worker = start_worker(
        "test", "--nworkers", "1", "--alive-expiry", str(EXPIRY), *words, url=url or queue.url
    )
    wait_until(
        lambda: any(w["pid"] == worker.pid and w["slots"] for w in queue.workers()), timeout=20
    )
    return worker


def note(log: Path, name: str, pause: float = 0.0, _after: object = None) -> str:
    """Note that it ran, and give its name."""
    with log.open("a") as file:
        file.write(f"{name}\n")
    time.sleep(pause)
    return name


def note_and_wait(log: Path, name: str, gate: Path, _after: object = None) -> str:
    """Note that it ran, wait for the gate, and give its name."""
    note(log, name)
    while not gate.exists():
        time.sleep(0.005)
    return name


def lines(log: Path) -> list[str]:
    """Return what was noted."""
    return log.read_text().split() if log.exists() else []


def test_a_killed_workers_task_runs_elsewhere(
    queue: Queue, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Row 1: SIGKILL of supervisor and slot in a task; another takes over within expiry + interval."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    killed = start(start_worker, queue)
    job = Background(queue.get, {"x": (log_and_wait, log, gate)}, "x", **LOOKS)
    wait_until(lambda: len(pids(log)) == 1)
    start(start_worker, queue)
    time.sleep(EXPIRY)  # the client must have been served for one expiry before it may judge
    for one in whole(killed):
        one.kill()
    at = time.monotonic()
    wait_until(lambda: len(pids(log)) == 2)
    assert time.monotonic() - at < EXPIRY + LOOK + SLACK
    gate.touch()
    assert job.result() == pids(log)[1]
    nothing_left(queue.url)


@pytest.fixture
def way(queue: Queue, link: Link, tmp_socket: Path) -> Iterator[Relay]:
    """The way of one worker to the server, which knows all scripts."""
    for name in scripts.script_names():
        link.command("SCRIPT", "LOAD", scripts.load(name).text)
    with Relay(tmp_socket, queue.url) as relay:
        yield relay


STEP = scripts.load("step").sha.encode()


@pytest.mark.parametrize("who", ["slot", "worker"])
@pytest.mark.parametrize("chunk", [1, 2])
def test_a_lease_that_its_slot_never_saw_is_not_stranded(
    queue: Queue, start_worker: StartWorker, way: Relay, tmp_path: Path, chunk: int, who: str
) -> None:
    """Row 2, scenario 11: killed between the server's claim and its own first task."""
    log = tmp_path / "log"
    doomed = start(start_worker, queue, url=way.url)
    way.keep_reply(STEP)
    dsk: dict[Any, Any] = {("x", i): (note, log, f"{i}") for i in range(4)}
    job = Background(queue.get, dsk, list(dsk), chunk_size=chunk, **LOOKS)
    assert way.struck.wait(10)
    link, keys = Link(queue.url), Keys("test")
    (row,) = queue.jobs()
    wait_until(lambda: link.command("HLEN", keys("leases", row["id"])) == 1)
    link.close()
    start(start_worker, queue)
    time.sleep(EXPIRY)
    for one in whole(doomed)[slice(None) if who == "worker" else slice(1, None)]:
        one.kill()
    at = time.monotonic()
    assert list(job.result()) == ["0", "1", "2", "3"]
    assert time.monotonic() - at < EXPIRY + LOOK + SLACK
    assert sorted(lines(log)) == ["0", "1", "2", "3"]
    nothing_left(queue.url)


def test_a_result_that_was_accepted_is_not_made_again(
    queue: Queue, start_worker: StartWorker, way: Relay, tmp_path: Path
) -> None:
    """Row 3: killed when the server had its result, and before it heard so: no task runs twice."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    doomed = start(start_worker, queue, url=way.url)
    dsk: dict[Any, Any] = {"first": (note_and_wait, log, "0th", gate)}
    dsk |= {("x", i): (note, log, f"{i}", 0.0, "first") for i in range(3)}
    job = Background(queue.get, dsk, list(dsk), chunk_size=1, **LOOKS)
    wait_until(lambda: lines(log) == ["0th"])
    way.keep_reply(STEP)
    gate.touch()
    assert way.struck.wait(10)
    wait_until(lambda: queue.stats()["finished"] == 1)
    for one in doomed.slots():
        one.kill()
    start(start_worker, queue)
    assert list(job.result()) == ["0th", "0", "1", "2"]
    assert sorted(lines(log)) == ["0", "0th", "1", "2"]


def test_a_worker_that_was_stopped_for_long_and_goes_on(
    queue: Queue, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Row 7, scenario 13, Lazarus: SIGSTOP for T + 2 I in the first of four tasks: the late result is dropped."""
    log, gate, end = tmp_path / "log", tmp_path / "gate", tmp_path / "end"
    stopped = start(start_worker, queue)
    dsk: dict[Any, Any] = {("x", 1): (note_and_wait, log, "1", gate)}
    dsk |= {("x", i): (note, log, f"{i}", 0.0, ("x", i - 1)) for i in (2, 3)}
    dsk["x", 4] = (note_and_wait, log, "4", end, ("x", 3))
    job = Background(queue.get, dsk, list(dsk), chunk_size=1, **LOOKS)
    wait_until(lambda: lines(log) == ["1"])
    (first,) = stopped.slots()
    asleep = whole(stopped)
    for one in asleep:
        one.suspend()
    gate.touch()
    start(start_worker, queue)
    time.sleep(EXPIRY + 2 * LOOK)
    wait_until(lambda: sorted(lines(log)) == ["1", "1", "2", "3", "4"])
    before = queue.stats()["finished"]
    assert before == 3
    for one in reversed(asleep):
        one.resume()
    wait_until(lambda: queue.stats()["slots"] == 2)  # it registered again
    assert queue.stats()["finished"] == before
    end.touch()
    assert list(job.result()) == ["1", "2", "3", "4"]
    assert queue.stats()["finished"] == 4
    assert not is_gone(first)
    nothing_left(queue.url)


@pytest.mark.slow_fault
def test_a_death_is_found_under_traffic(
    queue: Queue, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Scenario 14: one worker dies, another one returns results all the time: found within T + 2 I."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    killed = start(start_worker, queue)
    dsk: dict[Any, Any] = {"held": (log_and_wait, log, gate)}
    dsk |= {("x", i): (note, tmp_path / "others", f"{i}", 0.2) for i in range(60)}
    job = Background(queue.get, dsk, list(dsk), chunk_size=1, **LOOKS)
    wait_until(lambda: len(pids(log)) == 1)
    start(start_worker, queue)
    wait_until(lambda: len(lines(tmp_path / "others")) > 5)
    for one in whole(killed):
        one.kill()
    at = time.monotonic()
    wait_until(lambda: len(pids(log)) == 2)
    assert time.monotonic() - at < EXPIRY + 2 * LOOK + SLACK
    assert len(lines(tmp_path / "others")) < 60, "the traffic was over"
    gate.touch()
    job.result()


def test_a_heartbeat_whose_connection_is_cut_is_no_death(
    queue: Queue, start_worker: StartWorker, link: Link, tmp_path: Path
) -> None:
    """Scenario 17: all connections are killed again and again while a task runs for three expiries."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    start(start_worker, queue)
    slots = queue.workers()[0]["slots"]
    job = Background(queue.get, {"x": (log_and_wait, log, gate)}, "x", **LOOKS)
    wait_until(lambda: len(pids(log)) == 1)
    end = time.monotonic() + 3 * EXPIRY + LOOK
    while time.monotonic() < end:
        link.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        time.sleep(0.1)
    gate.touch()
    assert job.result() == pids(log)[0]
    assert len(pids(log)) == 1
    assert queue.workers()[0]["slots"] == slots


@pytest.mark.slow_fault
def test_a_password_is_given_again_at_each_connection(
    tmp_path_factory: pytest.TempPathFactory, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Scenario 18: a task longer than T + 2 I; connections are cut meanwhile; `ps` shows no password."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    folder = tmp_path_factory.mktemp("m")
    with MortalServer(folder) as server:
        admin = Link(server.url)
        admin.command("CONFIG", "SET", "requirepass", "not-for-ps")
        url = with_password(server.url, "not-for-ps")
        with Queue("test", url) as queue:
            worker = start(start_worker, queue)
            job = Background(queue.get, {"x": (log_and_wait, log, gate)}, "x", **LOOKS)
            wait_until(lambda: len(pids(log)) == 1)
            for _ in range(4):
                time.sleep((EXPIRY + 2 * LOOK) / 4)
                admin.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            shown = [" ".join(one.cmdline()) for one in whole(worker)]
            assert not any("not-for-ps" in line for line in shown)
            gate.touch()
            assert job.result() == pids(log)[0]
            assert len(pids(log)) == 1
        admin.close()
        worker.close()


@pytest.mark.slow_fault
def test_a_token_that_is_lost_is_healed_by_the_slow_look(
    queue: Queue, start_worker: StartWorker, link: Link, tmp_path: Path, tmp_socket: Path
) -> None:
    """Scenario 12: nobody gets the announcement of a task: it runs once, five seconds later at most."""
    log = tmp_path / "log"
    with LossyProxy(tmp_socket, queue.url, lost=[b":wake:"]) as proxy:
        start(start_worker, queue, url=proxy.url)
        wait_until(lambda: link.command("ZCARD", Keys("test")("idle", python_tag())) == 1)
        begun = time.monotonic()
        assert queue.get({"x": (note, log, "once")}, "x") == "once"
        assert proxy.losses == 1
        assert time.monotonic() - begun < 5 + SLACK
        assert lines(log) == ["once"]


def test_a_task_that_an_outsider_took_is_found(
    queue: Queue, start_worker: StartWorker, link: Link, tmp_path: Path
) -> None:
    """Scenario 12, a rogue pop: one of two ready tasks is taken by nobody; the job is rebuilt, each runs once."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    start(start_worker, queue)
    dsk: dict[Any, Any] = {("x", i): (note_and_wait, log, f"{i}", gate) for i in range(2)}
    job = Background(queue.get, dsk, list(dsk), chunk_size=1, **LOOKS)
    wait_until(lambda: len(lines(log)) == 1)
    ready = Keys("test")("ready", queue.jobs()[0]["id"])
    assert len(link.command("ZPOPMIN", ready)) == 2
    at = time.monotonic()
    gate.touch()
    assert list(job.result()) == ["0", "1"]
    assert time.monotonic() - at < LOOK + SLACK
    assert sorted(lines(log)) == ["0", "1"]
    nothing_left(queue.url)


def test_all_workers_die_and_others_come_later(
    queue: Queue, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Row 40: for a while there is none at all; the client waits, and the answer is right."""
    worker = start(start_worker, queue)
    job = Computing(queue, tmp_path, width=20, chunk_size=5)
    job.half_way()
    for one in whole(worker):
        one.kill()
    time.sleep(EXPIRY + 2 * LOOK)
    wait_until(lambda: queue.workers() == [])
    start(start_worker, queue)
    job.check(extra=5)
    nothing_left(queue.url)


def test_a_name_that_comes_again_is_another_worker(
    queue: Queue, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Row 43: the same name on the same host; nobody takes the old one's lease for the new one's."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    first = start(start_worker, queue, "--name", "same")
    (old,) = queue.workers()
    job = Background(queue.get, {"x": (log_and_wait, log, gate)}, "x", **LOOKS)
    wait_until(lambda: len(pids(log)) == 1)
    for one in whole(first):
        one.kill()
    start(start_worker, queue, "--name", "same")
    wait_until(lambda: len(pids(log)) == 2)
    (new,) = (row for row in queue.workers() if row["id"] != old["id"])
    assert new["name"] == old["name"]
    assert not set(new["slots"]) & set(old["slots"])
    gate.touch()
    assert job.result() == pids(log)[1]


@pytest.mark.slow_fault
@pytest.mark.parametrize("seed", [1, 2])
def test_workers_that_come_and_go(
    queue: Queue, start_worker: StartWorker, tmp_path: Path, seed: int
) -> None:
    """Row 41: one is killed, stopped or asked to leave, and one joins, by a seed, for a whole job."""
    rng = random.Random(seed)
    there = [start(start_worker, queue) for _ in range(2)]
    job = Computing(queue, tmp_path, width=100, pause=0.03, chunk_size=5, **LOOKS)
    faults, asleep = 0, list[psutil.Process]()
    while job.thread.is_alive() and faults < 12:
        gone = there.pop(rng.randrange(len(there)))
        how = rng.choice(["kill", "stop", "leave", "slot"])
        faults += 1
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in whole(gone) if how != "slot" else gone.slots():
                if how == "leave":
                    os.kill(gone.pid, signal.SIGTERM)
                elif how == "stop":
                    one.suspend()
                    asleep.append(one)
                else:
                    one.kill()
        there.append(
            start_worker("test", "--nworkers", "1", "--alive-expiry", str(EXPIRY))
            if how != "slot"
            else gone
        )
        time.sleep(rng.uniform(0.2, 1.5))
        for one in asleep if rng.random() < 0.5 else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.resume()
    job.check(timeout=60, extra=5 * faults)
    assert faults > 3
    for one in asleep:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.resume()
    nothing_left(queue.url)
