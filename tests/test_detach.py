"""Leave and come back: detached jobs, their futures, cancellation, what becomes of a lost one."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from conftest import PATH, SECRET, WorkerProcess, looked, wait_until
from dask.utils_test import inc
from test_faults import Background, log_and_wait, pids

import dask_redisq as redisq
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.queue import Queue
from dask_redisq.server import find_server


def run_python(code: str, **env: str) -> str:
    """Run a script in another process; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": PATH, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def job_keys(link: Link, job: str = "") -> list[bytes]:
    """Return the keys of a job, of all jobs by default."""
    return [name for name in link.command("KEYS", "*") if f":job:{job}".encode() in name]


def gated(tmp_path: Path) -> tuple[Any, Path, Path]:
    """Return a collection whose task waits for a gate, the log of who ran it, and the gate."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    return dask.delayed(log_and_wait)(log, gate), log, gate


# compute.


def test_without_detach_the_same_is_kept_for_its_future(
    queue: Queue, workers: WorkerProcess
) -> None:
    """The arguments of `dask.compute`, and its tuple; of one collection the value alone."""
    x = dask.delayed(inc)(1)
    assert queue.compute(x).result() == 2
    assert queue.compute(x, {"a": [x, 5]}, 7).result() == (2, {"a": [2, 5]}, 7)
    with pytest.raises(TypeError, match="nothing to compute"):
        queue.compute(1)


def test_a_detached_job_gives_the_value_of_any_collection(
    queue: Queue, workers: WorkerProcess
) -> None:
    """Array, dataframe, bag, delayed: through the future that is here, and a new one."""
    frame = pd.DataFrame({"k": [i % 3 for i in range(30)], "v": range(30)})
    for x in (
        da.arange(1000, chunks=100) * 2,
        da.ones((40, 40), chunks=10).sum(),
        dd.from_pandas(frame, npartitions=3).groupby("k").v.sum(),
        db.from_sequence(range(20), npartitions=4).map(inc),
        dask.delayed(inc)(1),
    ):
        future = queue.compute(x, detach=True)
        expected = x.compute(scheduler="sync")
        for found in (future.result(60), queue.attach(future.id).result(30)):
            if isinstance(expected, pd.Series):
                pd.testing.assert_series_equal(found.sort_index(), expected.sort_index())
            else:
                assert np.array_equal(found, expected)
        future.forget()


def test_several_collections_come_back_as_they_stood(queue: Queue, workers: WorkerProcess) -> None:
    """Also inside of containers, with what is no collection left as it is."""
    x, y = dask.delayed(inc)(1), da.ones(10, chunks=5).sum()
    assert queue.compute(x, y, detach=True).result(60) == (2, 10.0)
    future = queue.compute({"a": [x, 5], "b": y}, detach=True)
    assert queue.attach(future.id).result(60) == {"a": [2, 5], "b": 10.0}


def test_a_constant_needs_no_worker(queue: Queue) -> None:
    """A job without tasks is done when it is sealed."""
    future = queue.compute(dask.delayed(5), detach=True)
    assert future.done()
    assert queue.attach(future.id).result(60) == 5


def test_what_cannot_be_detached_is_refused(queue: Queue, link: Link) -> None:
    """Nothing to compute, no time to keep it; nothing was sent."""
    with pytest.raises(TypeError, match="nothing to compute"):
        queue.compute(1, detach=True)
    for wrong in (None, 0, 1e300, float("inf"), float("nan"), "x", True):
        with pytest.raises(ValueError, match=r"result_ttl .* at least 1 and at most 1,000,000,000"):
            queue.compute(dask.delayed(inc)(1), detach=True, result_ttl=wrong)  # type: ignore[arg-type]
    assert link.command("KEYS", "*") == []


def test_a_graph_that_does_not_pickle_is_told_and_leaves_nothing(queue: Queue, link: Link) -> None:
    """The error of `get`, and no key of the job."""
    lock = dask.delayed(repr)(Lock())
    with pytest.raises(redisq.TaskNotSerializable):
        queue.compute(lock, detach=True)
    assert job_keys(link) == []


# The future, here and elsewhere.


def test_another_process_attaches_after_the_first_one_ended(
    queue: Queue, workers: WorkerProcess, link: Link, tmp_path: Path
) -> None:
    """Nobody waits while it runs; three readers come later, two of them at once."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    job = run_python(f"""
import dask, dask_redisq as redisq
from pathlib import Path
from test_faults import log_and_wait
x = dask.delayed(log_and_wait)(Path({str(log)!r}), Path({str(gate)!r}))
print(redisq.Queue("test", {queue.url!r}).compute([x, 5], detach=True).id)
""")
    wait_until(lambda: len(pids(log)) == 1)
    future = queue.attach(job)
    assert not future.done()
    assert repr(future) == f"<Future {job} of queue test, not read>"
    with pytest.raises(TimeoutError, match="0 tasks are done"):
        future.result(timeout=0.05)
    waiting = [Background(queue.attach(job).result) for _ in range(2)]
    gate.touch()
    expected = [pids(log)[0], 5]
    assert [w.result() for w in waiting] == [expected, expected]
    attach = (
        f"import dask_redisq as r; print(r.Queue('test', {queue.url!r}).attach({job!r}).result())"
    )
    assert run_python(attach) == str(expected)
    assert future.done()
    assert future.exception() is None
    assert repr(future).endswith("read>")


def test_a_task_that_raises_fails_every_future(queue: Queue, workers: WorkerProcess) -> None:
    """Its own type, with the key of the task, though the reader never had the graph."""
    x = dask.delayed(int, name="from text")("x", dask_key_name="the-key")
    future = queue.compute(dask.delayed(inc)(x), detach=True)
    for reader in (future, queue.attach(future.id)):
        error = reader.exception(30)
        assert isinstance(error, ValueError)
        assert any("the-key" in note for note in error.__notes__)
        with pytest.raises(ValueError, match="invalid literal"):
            reader.result()
        assert reader.done()
    assert repr(future).endswith("ValueError>")


def test_a_forgotten_job_leaves_no_key_and_is_told(
    queue: Queue, workers: WorkerProcess, link: Link
) -> None:
    """Who has read it keeps its answer; who attaches later is told."""
    future = queue.compute(dask.delayed(inc)(1), detach=True)
    assert future.result(60) == 2
    future.forget()
    future.forget()
    assert job_keys(link) == []
    assert future.result() == 2
    with pytest.raises(redisq.JobLost, match=r"forget\(\)"):
        queue.attach(future.id)


def test_results_that_expired_are_told(
    queue: Queue, workers: WorkerProcess, link: Link, keys: Keys
) -> None:
    """A monitor finds them too old; the job's end is moved back, nothing is awaited."""
    future = queue.compute(dask.delayed(inc)(1), detach=True, result_ttl=100)
    future.result(60)
    link.command("HSET", keys("job", future.id), "ended", 1)
    link.command("DEL", keys("monitor"))
    wait_until(lambda: looked(link, keys))
    wait_until(lambda: job_keys(link) == [])
    with pytest.raises(redisq.JobLost, match="kept for its result_ttl"):
        queue.attach(future.id)
    link.command("DEL", keys("tomb", future.id))
    with pytest.raises(
        redisq.JobLost, match="the server lost it, or its results expired after result_ttl"
    ):
        queue.attach(future.id)


def test_an_attached_reader_looks_after_dead_workers(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """A worker vanishes whole; its task runs again because a reader waits."""
    x, log, gate = gated(tmp_path)
    lost = start_worker("test", "--nworkers", "1", "--alive-expiry", "1")
    queue.wait_for_workers(1, timeout=90)
    future = queue.compute(x, detach=True)
    wait_until(lambda: len(pids(log)) == 1)
    for process in lost.slots():
        process.kill()
    os.kill(lost.pid, signal.SIGKILL)
    with dask.config.set({"redisq.ft-interval": 1, "redisq.alive-expiry": 0.5}):
        reader = Background(queue.attach(future.id).result)
        wait_until(lambda: queue.workers() == [] and queue.stats()["slots"] == 0)
        gate.touch()
        wait_until(lambda: queue.stats()["ready"] == 1)
        start_worker("test", "--nworkers", "1")
        assert reader.result() == pids(log)[-1]


# What cannot be attached.


def test_a_reason_without_end_is_cut(queue: Queue) -> None:
    """One above what the server takes for a value would cancel nothing, and not say so for 30 s."""
    future = queue.compute(dask.delayed(inc)(1), detach=True)
    assert queue.cancel(future.id, "x" * 2_000_000)
    with pytest.raises(redisq.JobCancelled, match="xxx") as info:
        future.result(60)
    assert len(str(info.value)) < 20_000


@pytest.mark.parametrize("timeout", [float("nan"), "1"])
def test_a_wait_for_what_is_no_number_is_refused(queue: Queue, timeout: Any) -> None:
    """No moment comes after one in nan seconds; one after infinity is never."""
    future = queue.compute(dask.delayed(5), detach=True)
    with pytest.raises(ValueError, match="timeout is a number, not"):
        future.result(timeout)
    with pytest.raises(ValueError, match="timeout is a number, not"):
        list(redisq.as_completed([future], timeout))
    with pytest.raises(ValueError, match="timeout is a number, not"):
        queue.wait_for_workers(1, timeout)
    with pytest.raises(ValueError, match="timeout is a number, not"):
        redisq.Lock(queue=queue).acquire(timeout=timeout)
    assert future.result(float("inf")) == 5


def test_an_unknown_job_is_lost(queue: Queue) -> None:
    """The message says what may have happened, and what to do."""
    with pytest.raises(redisq.JobLost, match=r"job 123 .* is gone: the server lost it.*again"):
        queue.attach("123")
    assert queue.cancel("123") is False


def test_a_job_of_a_waiting_client_cannot_be_attached(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Its outputs go as they are read."""
    x, log, gate = gated(tmp_path)
    job = Background(x.compute, scheduler=queue.get)
    wait_until(lambda: len(pids(log)) == 1)
    (row,) = queue.jobs()
    with pytest.raises(redisq.RedisqError, match="not detached"):
        queue.attach(row["id"])
    gate.touch()
    job.result()


def test_an_unsealed_job_cannot_be_attached(
    queue: Queue, link: Link, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H47: its client may still die half-way."""
    seen: list[BaseException] = []
    send_call = Link.send_call

    def look(self: Link, script: str, keys: Keys, /, **args: Any) -> None:
        if script == "seal":
            other = Queue("test", queue.url)
            with pytest.raises(redisq.RedisqError, match="not sealed") as info:
                other.attach(args["job"])
            seen.append(info.value)
            assert [row["sealed"] for row in other.jobs()] == [False]
        send_call(self, script, keys, **args)

    monkeypatch.setattr(Link, "send_call", look)
    queue.compute(dask.delayed(inc)(1), detach=True)
    assert len(seen) == 1


def test_a_detached_job_of_a_server_that_came_back_empty_is_lost(
    queue: Queue, workers: WorkerProcess, link: Link, tmp_path: Path
) -> None:
    """FLUSHALL under a job that runs: its future says so, and attach too."""
    x, log, _ = gated(tmp_path)
    future = queue.compute(x, detach=True)
    wait_until(lambda: len(pids(log)) == 1)
    reader = Background(queue.attach(future.id).result)
    link.command("FLUSHALL")
    with pytest.raises(redisq.JobLost, match="the server lost it"):
        reader.result()
    with pytest.raises(redisq.JobLost, match="the server lost it"):
        queue.attach(future.id)
    assert future.done()


# What is signed.


def test_an_answer_is_signed(
    queue: Queue,
    start_worker: Callable[..., WorkerProcess],
    link: Link,
    keys: Keys,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """With the secret it is attached; what somebody else wrote, or copied, is not unpickled."""
    monkeypatch.setenv("DASK_REDISQ__SECRET", SECRET)
    start_worker("test", "--nworkers", "1")
    future = queue.compute(dask.delayed(inc)(1), detach=True)
    assert queue.attach(future.id).result(60) == 2
    other = queue.compute(dask.delayed(inc)(2), detach=True)
    real, name = link.command("GET", keys("answer", other.id)), keys("answer", future.id)
    for forged in (real, pickle.dumps(Mark(tmp_path / "mark"))):
        link.command("SET", name, forged, "PX", 60_000)
        with pytest.raises(redisq.BadSignature, match=future.id):
            queue.attach(future.id)
    assert queue.stats()["refused_payloads"] == 2
    assert not (tmp_path / "mark").exists()
    monkeypatch.setenv("DASK_REDISQ__SECRET", SECRET[::-1])
    with pytest.raises(redisq.BadSignature):
        queue.attach(other.id)


class Mark:
    """Its pickle makes a directory when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def test_a_lost_output_of_a_detached_job_is_made_again(
    queue: Queue, workers: WorkerProcess, link: Link, keys: Keys
) -> None:
    """One reader has it, then the value vanishes: another reader gets it all the same."""
    future = queue.compute(dask.delayed(inc)(1), detach=True)
    assert future.result(60) == 2
    link.command("DEL", keys("values", future.id))
    assert queue.attach(future.id).result(60) == 2


def test_a_repair_by_one_reader_takes_nothing_from_another(
    queue: Queue, workers: WorkerProcess, link: Link, keys: Keys, tmp_path: Path
) -> None:
    """H48: a reader has one of two outputs and rebuilds the job; who comes later gets both."""
    x, log, gate = gated(tmp_path)
    future = queue.compute(dask.delayed(inc)(1), x, detach=True)
    reader = Background(future.result)
    wait_until(lambda: link.command("LLEN", keys("log", future.id)) == 1)
    job = keys("job", future.id)
    wait_until(lambda: link.command("HEXISTS", job, "waiting"))  # it has what there is
    link.command("HSET", job, "damaged", "1")
    wait_until(lambda: link.command("HEXISTS", job, "rebuilt"))
    gate.touch()
    assert reader.result() == (2, pids(log)[-1])
    assert queue.attach(future.id).result(60) == (2, pids(log)[-1])
    assert len(pids(log)) == 1


def test_a_detached_job_that_is_lost_while_it_is_sent_is_told(
    queue: Queue, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server comes back empty before the seal: there is no future for nothing."""
    send_call = Link.send_call

    def lose(self: Link, script: str, keys: Keys, /, **args: Any) -> None:
        if script == "seal":
            link.command("FLUSHALL")
        send_call(self, script, keys, **args)

    monkeypatch.setattr(Link, "send_call", lose)
    with pytest.raises(redisq.JobLost, match="the server lost it"):
        queue.compute(dask.delayed(inc)(1), detach=True)
    assert job_keys(link) == []


# A server with an append-only file.


class DurableServer:
    """A server of its own that writes each command to its append-only file."""

    def __init__(self, folder: Path, path: Path) -> None:
        self.url = f"unix://{path}"
        self._flags = ["--port", "0", "--unixsocket", str(path), "--dir", str(folder), "--save", ""]
        self._flags += ["--appendonly", "yes", "--appendfsync", "always"]
        self.start()

    def start(self) -> None:
        """Start it, again."""
        self._process = subprocess.Popen([find_server(), *self._flags], stdout=subprocess.DEVNULL)
        wait_until(self._answers)

    def _answers(self) -> bool:
        link = Link(self.url, patience=0)
        try:
            return bool(link.command("PING") == b"PONG")
        except redisq.ServerUnavailable:
            return False
        finally:
            link.close()

    def kill(self) -> None:
        """SIGKILL it."""
        self._process.kill()
        self._process.wait()


@pytest.fixture
def durable(tmp_path: Path, tmp_socket: Path) -> Iterator[DurableServer]:
    """A server that can be killed and comes back with its data."""
    (tmp_path / "data").mkdir()
    server = DurableServer(tmp_path / "data", tmp_socket)
    yield server
    server.kill()


def test_a_detached_job_outlives_a_killed_server_with_an_append_only_file(
    durable: DurableServer, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """SIGKILL and restart while it runs, and once more when it is done: then it is attached."""
    queue = Queue("test", durable.url)
    start_worker("test", "--nworkers", "2", url=durable.url)
    queue.wait_for_workers(2, timeout=90)
    x, log, gate = gated(tmp_path)
    large = dask.delayed(np.arange)(100_000)
    future = queue.compute(dask.delayed(inc)(x), large, detach=True)
    wait_until(lambda: len(pids(log)) == 1)
    reader = Background(future.result)
    durable.kill()
    durable.start()
    gate.touch()
    first, array = reader.result()
    assert first == pids(log)[-1] + 1
    durable.kill()
    durable.start()
    again, same = Queue("test", durable.url).attach(future.id).result(60)
    assert again == first
    assert np.array_equal(array, same)
    queue.remove()
    queue.close()


# cancel and jobs.


def test_a_cancelled_job_is_told_to_its_client(
    queue: Queue, workers: WorkerProcess, link: Link, tmp_path: Path
) -> None:
    """Waiting tasks never start, the running one is ended; the error names job, who and why."""
    x, log, gate = gated(tmp_path)
    later = [dask.delayed(log_and_wait)(log, gate, dask_key_name=f"l{i}") for i in range(5)]
    job = Background(dask.compute, x, *later, scheduler=queue.get, chunk_size=1)
    wait_until(lambda: len(pids(log)) == 2)
    (row,) = queue.jobs()
    assert queue.cancel(row["id"], "it was wrong") is True
    expected = rf"{row['id']} was cancelled: by process {os.getpid()} on .*: it was wrong"
    with pytest.raises(redisq.JobCancelled, match=expected):
        job.result()
    assert queue.cancel(row["id"]) is False
    wait_until(lambda: not [p for p in pids(log) if Path(f"/proc/{p}").exists()], timeout=5)
    assert len(pids(log)) == 2
    assert job_keys(link) == []


def test_a_cancelled_detached_job_is_told_to_all(
    queue: Queue, workers: WorkerProcess, link: Link, tmp_path: Path
) -> None:
    """Who waits, who looks and who comes later; nothing of it is left but its tomb."""
    x, log, _ = gated(tmp_path)
    future = queue.compute(x, detach=True)
    wait_until(lambda: len(pids(log)) == 1)
    reader = Background(queue.attach(future.id).result)
    assert future.cancel("enough") is True
    assert future.cancel() is False
    with pytest.raises(redisq.JobCancelled, match="enough"):
        reader.result()
    with pytest.raises(redisq.JobCancelled, match="enough"):
        queue.attach(future.id)
    assert isinstance(future.exception(), redisq.JobCancelled)
    assert future.done()
    assert job_keys(link) == []


def test_to_cancel_what_is_done_is_harmless(queue: Queue, workers: WorkerProcess) -> None:
    """The results stay."""
    future = queue.compute(dask.delayed(inc)(1), detach=True)
    wait_until(future.done)
    assert future.cancel() is False
    assert queue.attach(future.id).result() == 2


def test_the_removal_of_a_queue_is_told_to_its_clients(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Whether they wait, or ask later: cancelled, and not lost."""
    x, log, _ = gated(tmp_path)
    future = queue.compute(x, detach=True)
    wait_until(lambda: len(pids(log)) == 1)
    job = Background(dask.delayed(inc)(x).compute, scheduler=queue.get)
    wait_until(lambda: len(queue.jobs()) == 2)
    queue.remove()
    with pytest.raises(redisq.JobCancelled, match="queue was removed"):
        job.result()
    with pytest.raises(redisq.JobCancelled, match="queue was removed"):
        future.result()


def test_jobs_are_rows(queue: Queue, workers: WorkerProcess, tmp_path: Path) -> None:
    """In the order of their creation, with what is needed to attach."""
    x, log, gate = gated(tmp_path)
    assert queue.jobs() == []
    done = queue.compute(dask.delayed(inc)(1), detach=True)
    done.result(60)
    future = queue.compute(dask.delayed(inc)(x), detach=True)
    wait_until(lambda: len(pids(log)) == 1)
    first, second = queue.jobs()
    assert abs(first.pop("created") - time.time()) < 60
    created = second.pop("created")
    assert isinstance(created, float)
    for row in (first, second):  # see test_queue_life
        assert [row.pop(name) for name in ("user", "host")]
        assert row.pop("pid") == os.getpid()
    assert first == {
        "id": done.id, "state": "done", "sealed": True, "detached": True, "n": 1, "finished": 1,
    }  # fmt: skip
    assert second == {
        **first, "id": future.id, "state": "running", "n": 2, "finished": 0,
    }  # fmt: skip
    gate.touch()


def test_a_future_cannot_be_an_argument(queue: Queue, workers: WorkerProcess) -> None:
    """It says what can: its process holds the job."""
    future = queue.compute(dask.delayed(inc)(1))
    with pytest.raises(redisq.TaskNotSerializable, match="pass the collection"):
        dask.delayed(inc)(future).compute(scheduler=queue.get)
    assert future.result(30) == 2
