"""The server dies under load, and comes back with its log, older, or empty. Fault rows 20 to 24."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from computing import Computing, add, nothing_left
from conftest import WorkerProcess, wait_until
from dask.utils_test import inc
from joblib import Parallel, delayed
from mortal import MortalServer

import dask_redisq as redisq
from dask_redisq import link as link_module
from dask_redisq import pool
from dask_redisq.joblib import register_redisq
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.passwords import with_password
from dask_redisq.queue import Queue


def test_a_restart_with_the_log_loses_nothing(
    mortal: MortalServer, far: Queue, tmp_path: Path
) -> None:
    """Rows 20, 21: two alive expiries away. Its workers lived: only what they held runs twice."""
    job = Computing(far, tmp_path, chunk_size=10)
    wait_until(lambda: job.done() > job.tasks // 4)
    mortal.kill()
    time.sleep(4.5)
    before = job.done()
    mortal.start()
    back = time.monotonic()
    wait_until(lambda: job.done() > before + 2, timeout=10)
    assert time.monotonic() - back < 3, "work went on too late"
    job.check(extra=2 * 10)
    nothing_left(mortal.url)


def test_a_private_server_that_was_stopped_is_waited_for(
    mortal: MortalServer,
    far: Queue,
    start_worker: Callable[..., WorkerProcess],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By its client, its worker and one that starts, though its socket is gone: no secret needed."""
    monkeypatch.delenv("DASK_REDISQ__SECRET", raising=False)
    assert far.get({"x": (sum, [1, 2])}, "x") == 3
    mortal.stop()
    assert not (mortal.folder / "s").exists()
    hasty = start_worker("test", "--death-timeout", "0", url=mortal.url)
    patient = start_worker("test", "--nworkers", "1", url=mortal.url)
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(far.get, {"x": (sum, [3, 4])}, "x")
        assert hasty.wait(60) == 1
        assert "gave up" in hasty.output()
        wait_until(lambda: "trying for 60 s" in patient.output())
        assert not answer.done()
        mortal.start()
        assert answer.result(30) == 7
    far.wait_for_workers(3, timeout=90)


def test_a_job_that_nobody_reads_goes_on_as_soon(
    mortal: MortalServer, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Row 20: no client rebuilds it, and no monitor for ten seconds; the slots that it holds do."""
    start_worker("test", "--nworkers", "2", url=mortal.url)
    runs = tmp_path / "runs"
    runs.touch()
    with Queue("test", mortal.url) as queue:
        queue.wait_for_workers(2, timeout=90)
        first = [dask.delayed(add)(runs, 0.01, [i]) for i in range(200)]
        second = [dask.delayed(add)(runs, 0.01, [x]) for x in first]
        future = queue.compute(*second, detach=True, optimize_graph=False)
        wait_until(lambda: runs.read_text().count("\n") > 50)
        mortal.kill()
        time.sleep(1)
        mortal.start()
        back = time.monotonic()
        before = queue.stats()["finished"]
        wait_until(lambda: queue.stats()["finished"] > before)
        assert time.monotonic() - back < 3, "work went on too late"
        assert future.result(timeout=40) == tuple(range(200))
        future.forget()
    nothing_left(mortal.url)


def total(values: Any, gate: Path) -> float:
    """Wait for the gate; return the sum of the values."""
    wait_until(gate.exists)
    return float(values.sum())


@pytest.fixture
def slow_monitors(
    mortal: MortalServer, start_worker: Callable[..., WorkerProcess]
) -> Iterator[Queue]:
    """A queue of two slots where no monitor, of worker or client, judges for minutes."""
    start_worker("test", "--nworkers", "2", "--alive-expiry", "300", url=mortal.url)
    with dask.config.set({"redisq.alive-expiry": 300}), Queue("test", mortal.url) as queue:
        queue.wait_for_workers(2, timeout=90)
        yield queue


def restart(mortal: MortalServer) -> float:
    """Have the server away for a second; return when it was back."""
    mortal.kill()
    time.sleep(1)
    mortal.start()
    return time.monotonic()


def test_work_on_persisted_values_goes_on_as_soon(
    mortal: MortalServer, slow_monitors: Queue, tmp_path: Path
) -> None:
    """Row 20: the job that made them is done, and read by nobody; the slots rebuild it."""
    values = slow_monitors.persist(da.ones((40, 40), chunks=10))
    redisq.wait(redisq.futures_of(values))
    gate = tmp_path / "gate"
    answer = dask.delayed(total)(values, gate)
    future = slow_monitors.compute(answer, detach=True)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(answer.compute, scheduler=slow_monitors.get)
        wait_until(lambda: len(slow_monitors.tasks()) == 2)
        back = restart(mortal)
        gate.touch()
        assert future.result(timeout=30) == waiting.result(timeout=30) == 1600
        assert time.monotonic() - back < 3, "work went on too late"
    future.forget()


def test_a_loop_over_scattered_data_goes_on_as_soon(
    mortal: MortalServer, slow_monitors: Queue, tmp_path: Path
) -> None:
    """Row 20: all of its later tasks read the data, whose job is done as well."""
    data, runs = slow_monitors.scatter([1]), tmp_path / "runs"
    runs.touch()
    with ThreadPoolExecutor(1) as thread:
        loop = thread.submit(
            slow_monitors.foreach,
            partial(add, runs, 0.05),
            itertools.repeat(data, 60),
            chunk_size=1,
        )
        wait_until(lambda: runs.read_text().count("\n") > 10)
        back = restart(mortal)
        before = runs.read_text().count("\n")
        wait_until(lambda: runs.read_text().count("\n") > before + 4)
        assert time.monotonic() - back < 3, "work went on too late"
        assert loop.result(timeout=30) == [1] * 60


def test_a_server_that_comes_back_empty_is_given_the_arguments_of_joblib_again(
    mortal: MortalServer, far: Queue, tmp_path: Path
) -> None:
    """Row 22: a large one was sent by itself, which nobody but the backend knows of."""
    runs, table = tmp_path / "runs", np.ones(2**19)
    runs.touch()
    register_redisq()
    calls = Parallel(batch_size=1, backend="redisq", queue=far)
    with ThreadPoolExecutor(1) as thread:
        summing = thread.submit(calls, (delayed(add)(runs, 0.02, table) for _ in range(60)))
        wait_until(lambda: runs.read_text().count("\n") > 10)
        mortal.kill()
        mortal.replace(None)
        mortal.start()
        assert summing.result(timeout=60) == [2.0**19] * 60
    nothing_left(mortal.url)


def test_a_server_that_comes_back_older_gives_the_right_answer(
    mortal: MortalServer, far: Queue, tmp_path: Path
) -> None:
    """Row 23: results that were accepted and delivered are forgotten."""
    job = Computing(far, tmp_path)
    wait_until(lambda: job.done() > job.tasks // 4)
    mortal.save(tmp_path / "older")
    wait_until(lambda: job.done() > job.tasks // 2)
    mortal.kill()
    mortal.replace(tmp_path / "older")
    mortal.start()
    job.check()
    nothing_left(mortal.url)


def test_a_server_that_forgot_part_of_the_upload_is_given_it_again(
    mortal: MortalServer, far: Queue, tmp_path: Path
) -> None:
    """Row 23: it comes back from before the job was sealed, and knows some of its blocks."""
    job = Computing(far, tmp_path, width=200, pause=0.002)
    link = Link(mortal.url)
    blocks = Keys("test").prefix.replace("{", "\\{") + "job:*:blocks"
    wait_until(lambda: link.command("KEYS", blocks))
    mortal.save(tmp_path / "older")
    wait_until(lambda: job.done() > job.tasks // 4)
    mortal.kill()
    mortal.replace(tmp_path / "older")
    mortal.start()
    link.close()
    job.check()
    nothing_left(mortal.url)


class Then:
    """An argument whose client does something as it first pickles it."""

    def __init__(self, do: Callable[[], object]) -> None:
        self.todo = [do]

    def __reduce__(self) -> Any:
        while self.todo:
            self.todo.pop()()
        return (int, ())


def test_a_server_that_comes_back_older_in_the_midst_of_an_upload_is_given_it_again(
    mortal: MortalServer, far: Queue, tmp_path: Path
) -> None:
    """Row 23: blocks and a large constant that it had confirmed are gone, and its client sends on."""
    constant = bytes(200_000)
    first, last = ([("x", i) for i in some] for some in (range(1000), range(1000, 3000)))
    large = [("y", i) for i in range(3)]

    def go_back() -> None:
        link = Link(mortal.url)
        (job,) = link.command("ZRANGE", far.keys("jobs"), 0, -1)
        consts = far.keys("consts", job.decode())
        wait_until(lambda: link.command("EXISTS", consts))
        link.close()
        mortal.kill()
        mortal.replace(tmp_path / "older")
        mortal.start()

    dsk: dict[Any, Any] = {key: (inc, key[1]) for key in first}
    dsk["save"] = (inc, Then(lambda: mortal.save(tmp_path / "older")))
    dsk |= dict.fromkeys(large, (len, constant)) | {key: (inc, key[1]) for key in last}
    dsk["back"] = (inc, Then(go_back))
    found = dict(zip(dsk, far.get(dsk, list(dsk)), strict=True))
    assert found == (
        {("x", i): i + 1 for i in range(3000)}
        | dict.fromkeys(large, len(constant))
        | {"save": 1, "back": 1}
    )
    nothing_left(mortal.url)


def test_a_server_that_comes_back_empty_is_given_what_is_missing(
    mortal: MortalServer, far: Queue, tmp_path: Path
) -> None:
    """Row 22: the graph is still with its client; the workers register again by themselves."""
    job = Computing(far, tmp_path)
    wait_until(lambda: job.done() > job.tasks // 2)
    mortal.kill()
    mortal.replace(None)
    mortal.start()
    job.check()
    nothing_left(mortal.url)


@pytest.mark.parametrize("words", [["SCRIPT", "FLUSH"], ["CLIENT", "KILL", "TYPE", "normal"]])
def test_flushed_scripts_and_killed_connections_are_not_seen(
    mortal: MortalServer, far: Queue, tmp_path: Path, words: list[str]
) -> None:
    """Rows 17 and 24: again and again, under load."""
    job = Computing(far, tmp_path)
    link, strikes = Link(mortal.url), 0
    while job.thread.is_alive():
        link.command(*words, *(["SKIPME", "yes"] if words[0] == "CLIENT" else []))
        strikes += 1
        # Work went on in between: else it would be a server that is away.
        enough = job.done() + 3
        wait_until(partial(job.got_to, enough))
    link.close()
    assert strikes > 20
    job.check()
    nothing_left(mortal.url)


def test_a_lost_value_is_made_again(mortal: MortalServer, far: Queue, tmp_path: Path) -> None:
    """Row 39: values are deleted behind the scheduler's back, while others need them."""
    job = Computing(far, tmp_path, pause=0.02)
    link = Link(mortal.url)
    wait_until(lambda: job.done() > job.tasks // 4)
    (values,) = link.command("KEYS", Keys("test").prefix.replace("{", "\\{") + "job:*:values")
    tasks = link.command("HKEYS", values)
    assert tasks
    link.command("HDEL", values, *tasks[: len(tasks) // 2])
    link.close()
    job.check()
    nothing_left(mortal.url)


class Gate:
    """An argument that is being pickled, with its block under way, until the gate opens."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __reduce__(self) -> Any:
        self.reached.set()
        assert self.opened.wait(60)
        return int, ()


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_a_loop_that_gives_up_while_the_server_is_away_ends_with_its_error(
    mortal: MortalServer,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And leaves no thread: one job waits for workers, one is on its way, neither can be cancelled."""
    patience = 2.0
    monkeypatch.setattr(pool, "Link", partial(Link, patience=patience))
    monkeypatch.setattr(link_module, "REPLY_TIMEOUT", 0.5)
    gate, at, link = Gate(), [0.0], Link(mortal.url)

    def items() -> Iterator[Any]:
        yield 1
        wait_until(lambda: b"blocked_clients:1" in link.command("INFO", "clients"))
        yield gate
        yield 2
        assert gate.reached.wait(60)
        getattr(mortal, how)()
        at[0] = time.monotonic()
        gate.opened.set()
        raise LookupError("no more")

    with Queue("test", mortal.url) as queue:
        with pytest.raises(LookupError, match="no more"):
            queue.foreach(abs, items())
        # What was sent is given up, and then what is to be removed of it.
        assert time.monotonic() - at[0] < 2 * patience + 5
    link.close()
    assert [t for t in threading.enumerate() if t.name == "redisq-stream"] == []
    assert "jobs of a loop could not be cancelled" in caplog.text


@pytest.mark.slow_fault
def test_an_outage_of_twenty_seconds_with_a_password(
    tmp_path_factory: pytest.TempPathFactory,
    start_worker: Callable[..., WorkerProcess],
    tmp_path: Path,
) -> None:
    """Scenario 19: longer than any timeout; all give the password again, and the job ends well."""
    with MortalServer(tmp_path_factory.mktemp("m")) as server:
        link = Link(server.url)
        link.command("CONFIG", "SET", "requirepass", "sesame")
        link.close()
        url = with_password(server.url, "sesame")
        worker = start_worker("test", "--nworkers", "2", "--alive-expiry", "2", url=url)
        with Queue("test", url) as queue:
            queue.wait_for_workers(2, timeout=90)
            job = Computing(queue, tmp_path, pause=0.02, chunk_size=5)
            job.half_way()
            server.kill()
            time.sleep(20)
            server.settings["requirepass"] = "sesame"
            server.start()
            job.check(extra=2 * 5)
            nothing_left(url)
        worker.close()
