"""Somebody else writes to the server while workers run: nothing of it is unpickled, nobody dies."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from conftest import SECRET, WorkerProcess, wait_until

import dask_redisq as redisq
from dask_redisq.codec import dumps, pack
from dask_redisq.dask_input import plain_graph
from dask_redisq.graph import plan_graph
from dask_redisq.job import Job, JobOptions
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.queue import Queue
from dask_redisq.server import PrivateServer
from dask_redisq.trust import VALUE, Signer

StartWorker = Callable[..., WorkerProcess]


class Bomb:
    """Its pickle makes a directory when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.makedirs, (str(self.mark), 0o700, True)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """The directory that a bomb makes; it must not be there at the end."""
    yield tmp_path / "mark"
    assert not (tmp_path / "mark").exists()


@pytest.fixture
def job_of(link: Link, keys: Keys) -> Iterator[Callable[..., Job]]:
    """A function that makes a signed job of a graph; its keys go with the test."""
    made: list[Job] = []

    def make(dsk: dict[str, Any], wanted: list[str], signer: Signer | None = None) -> Job:
        graph, outputs, _ = plain_graph(dsk, wanted)
        plan = plan_graph(graph, outputs, None)
        made.append(Job(link, keys, plan, JobOptions(), signer or Signer([SECRET])))
        return made[-1]

    yield make
    for job in made:
        job.abandon()


def secret_file(path: Path, text: str) -> Path:
    """Write a file that holds a secret."""
    path.touch(0o600)
    path.write_text(text)
    return path


def assert_good_as_before(worker: WorkerProcess, queue: Queue, slots: list[int]) -> None:
    """Assert that the slots are those that they were, and work."""
    assert [slot.pid for slot in worker.slots()] == slots
    assert queue.get({"x": (sum, [1, 2])}, "x") == 3


def pids(worker: WorkerProcess) -> list[int]:
    """Return the process ids of its slots."""
    return [slot.pid for slot in worker.slots()]


# --------------------------------------------------------------- what a slot refuses


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("how", ["flipped", "unsigned", "replayed", "foreign"])
def test_a_forged_block_fails_its_job_and_no_slot(
    how: str,
    mark: Path,
    queue: Queue,
    workers: WorkerProcess,
    job_of: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client raises BadSignature, the queue counts it, and the worker goes on."""
    before = pids(workers)
    job = job_of({"a": (len, Bomb(mark))}, ["a"])
    foreign = Signer(["another secret of the tests"]).seal("test", job.id)
    seal, sign = job.seal, job.seal.sign
    forge: dict[str, Callable[..., bytes]] = {
        "flipped": lambda k, a, n, p: bytes([p[0]]) + bytes([p[1] ^ 1]) + sign(k, a, n, p)[2:],
        "unsigned": lambda _k, _a, _n, p: p,
        "replayed": lambda k, a, n, p: sign(k, a, n + 1, p),
        "foreign": foreign.sign,
    }
    monkeypatch.setattr(seal, "sign", forge[how])
    with pytest.raises(redisq.BadSignature, match=r"block 0 of job .* in queue test") as caught:
        job.compute()
    assert "raised by task 'a' on worker one" in str(caught.value.__notes__)
    assert queue.stats()["refused_payloads"] == 1
    assert_good_as_before(workers, queue, before)


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("kind", ["array", "text"])
def test_a_forged_constant_fails_its_job_and_no_slot(
    kind: str,
    mark: Path,
    queue: Queue,
    workers: WorkerProcess,
    job_of: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is named by its content, so another content is seen."""
    before = pids(workers)
    thing: Any = pickle.PickleBuffer(bytearray(100_000)) if kind == "array" else "x" * 100_000
    job = job_of({"a": (len, thing)}, ["a"])
    store = job._store_constant
    bomb = pickle.dumps(Bomb(mark))
    monkeypatch.setattr(job, "_store_constant", lambda digest, _: store(digest, bomb))
    with pytest.raises(redisq.BadSignature, match=r"a constant of job .* its content is not"):
        job.compute()
    assert queue.stats()["refused_payloads"] == 1
    assert_good_as_before(workers, queue, before)


def forge_value(link: Link, keys: Keys, job: Job, task: int, data: bytes, attempt: bytes) -> None:
    """Write over the value of a task, where it lies."""
    name = keys("values", job.id)
    record = link.command("HGET", name, task)
    attempt = attempt or record[1:25]
    if record[:1] == b"i":
        link.command("HSET", name, task, b"i" + attempt + data)
    else:
        link.command("SET", keys("value", job.id, task, attempt.decode()), data)


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("what", ["const", "value"])
def test_forged_data_that_was_scattered_is_refused(
    what: str, mark: Path, queue: Queue, link: Link, start_worker: StartWorker
) -> None:
    """By its client and by slots: what it is, and the word that stands for it as a value."""
    start_worker("test", "--nworkers", "1")
    data = queue.scatter(b"x" * 100_000)
    assert queue.foreach(len, [data]) == [100_000]
    (name,) = link.command("KEYS", f"redisq:{{test}}:job:*:{what}:*")
    link.command("SET", name, pickle.dumps(Bomb(mark)))
    with pytest.raises(redisq.BadSignature, match=r"a constant|the value of task number 0"):
        data.compute()
    assert queue.stats()["refused_payloads"] == 1
    other = start_worker("test", "--nworkers", "1", "--tag", "other")
    queue.wait_for_workers(2, timeout=60)
    before = pids(other)
    with pytest.raises(redisq.BadSignature, match=r"a constant|the value of task number 0"):
        queue.foreach(len, [data], workers="other")
    assert queue.stats()["refused_payloads"] == 2
    assert pids(other) == before


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("how", ["bomb", "other task"])
def test_a_forged_value_fails_its_job_and_no_slot(
    size: int,
    how: str,
    mark: Path,
    queue: Queue,
    link: Link,
    keys: Keys,
    start_worker: StartWorker,
    job_of: Callable[..., Job],
) -> None:
    """Inline or apart: the slot that needs it as an input does not unpickle it."""
    job = job_of({"a": (bytes, size), "b": (len, "a"), "c": (max, "b", "b")}, ["b", "c"])
    job.plan.restricted = {0: ("first",), 1: ("second",), 2: ("second",)}
    start_worker("test", "--nworkers", "1", "--tag", "first")
    job.submit()
    wait_until(lambda: link.command("HEXISTS", keys("values", job.id), 0), 20)
    data = pickle.dumps(Bomb(mark))
    if how == "other task":
        attempt = link.command("HGET", keys("values", job.id), 0)[1:25]
        data = job.seal.sign(VALUE, attempt, 1, data)
    forge_value(link, keys, job, 0, data, b"")
    second = start_worker("test", "--nworkers", "1", "--tag", "second")
    with pytest.raises(redisq.BadSignature, match="the value of task number 0 of job"):
        job.gather()
    assert queue.stats()["refused_payloads"] == 1
    assert_good_as_before(second, queue, pids(second))


# --------------------------------------------------------------- what a client refuses


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("size", [10, 100_000])
def test_a_client_refuses_a_forged_result(
    size: int,
    mark: Path,
    queue: Queue,
    link: Link,
    keys: Keys,
    workers: WorkerProcess,
    job_of: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It names the task, cancels the job and counts the payload; the worker is not concerned."""
    before = pids(workers)
    job = job_of({"a": (bytes, size)}, ["a"])
    gather = job.gather

    def forged_first() -> dict[int, Any]:
        wait_until(lambda: link.command("HEXISTS", keys("values", job.id), 0))
        forge_value(link, keys, job, 0, pickle.dumps(Bomb(mark)), b"")
        return gather()

    monkeypatch.setattr(job, "gather", forged_first)
    with pytest.raises(redisq.BadSignature, match="the value of task number 0") as caught:
        job.compute()
    assert caught.value.__notes__ == ["dask-redisq: while reading the result of task 'a'"]
    assert queue.stats()["refused_payloads"] == 1
    assert_good_as_before(workers, queue, before)
    assert link.command("KEYS", "*:job:*") == []


@pytest.mark.usefixtures("secret")
def test_a_client_refuses_a_forged_error(
    mark: Path, link: Link, keys: Keys, queue: Queue, job_of: Callable[..., Job]
) -> None:
    """An exception is a pickle too."""
    job = job_of({"a": (len, "x")}, ["a"])
    job.submit()
    packed = pack([dumps(Bomb(mark)), "", "", "", "", "w"])
    reason = pack(["raised", 0, packed, "s"])
    link.command("HSET", keys("job", job.id), "state", "failed", "error", reason)
    with pytest.raises(redisq.BadSignature, match=r"the error of task number 0 .* not signed"):
        job.gather()
    job.abandon()
    assert queue.stats()["refused_payloads"] == 1


# --------------------------------------------------------------- counting


def test_a_refusal_is_counted_once_however_often_it_is_told(link: Link, keys: Keys) -> None:
    """Sent twice, or late after a newer one: the total stays; without its job nothing is told."""
    link.command("HSET", keys("job", "j1"), "state", "running")
    told = [("j1", "s", 2), ("j1", "s", 2), ("j1", "s", 1), ("j1", "t", 1), ("gone", "s", 5)]
    added = [link.call("refuse", keys, job=j, who=w, total=n) for j, w, n in told]
    assert added == [2, 0, 0, 1, 0]
    assert link.command("HGET", keys("queue"), "refused") == b"3"
    assert not link.command("EXISTS", keys("job", "gone"))


# --------------------------------------------------------------- secrets of two sides


def test_two_secrets_are_a_typed_error(
    secret: str, queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker refuses the task, the client the worker's word on it."""
    worker = start_worker("test", "--nworkers", "1")
    queue.wait_for_workers(1, timeout=90)
    monkeypatch.setenv("DASK_REDISQ__SECRET", "another secret of the tests")
    with pytest.raises(redisq.BadSignature, match=r"by a key, .* that this side does not have"):
        queue.get({"x": (sum, [1, 2])}, "x")
    assert queue.stats()["refused_payloads"] == 2
    monkeypatch.setenv("DASK_REDISQ__SECRET", secret)
    assert_good_as_before(worker, queue, pids(worker))


@pytest.mark.parametrize("client_signs", [True, False])
def test_a_secret_on_one_side_is_a_typed_error(
    queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch, *, client_signs: bool
) -> None:
    """On a private server both are allowed, and do not go together."""
    for signs, act in ((not client_signs, "work"), (client_signs, "compute")):
        if signs:
            monkeypatch.setenv("DASK_REDISQ__SECRET", SECRET)
        else:
            monkeypatch.delenv("DASK_REDISQ__SECRET", raising=False)
        if act == "work":
            start_worker("test", "--nworkers", "1")
            queue.wait_for_workers(1, timeout=90)
        else:
            why = "it is signed, and this side has no secret|it is not signed"
            with pytest.raises(redisq.BadSignature, match=why):
                queue.get({"x": (sum, [1, 2])}, "x")


def test_a_secret_is_replaced_while_work_goes_on(
    tmp_path: Path, queue: Queue, start_worker: StartWorker
) -> None:
    """Workers know both keys first; then clients may sign with either."""
    old, new = "the old secret of the tests", "the new secret of the tests"
    theirs, file = secret_file(tmp_path / "theirs", f"{new}\n{old}\n"), tmp_path / "ours"
    start_worker("test", "--nworkers", "2", "--secret-file", str(theirs))
    queue.wait_for_workers(2, timeout=90)
    for lines in (f"{old}\n{new}\n", f"{new}\n{old}\n", f"{new}\n"):
        secret_file(file, lines)
        with dask.config.set({"redisq.secret-file": str(file)}):
            assert queue.get({"x": (sum, [1, 2])}, "x") == 3
    secret_file(file, old)
    with (
        dask.config.set({"redisq.secret-file": str(file)}),
        pytest.raises(redisq.BadSignature, match="the value of task number 0"),
    ):
        queue.get({"x": (sum, [1, 2])}, "x")


# --------------------------------------------------------------- where a secret is needed


@pytest.fixture
def port_url(server: PrivateServer, link: Link) -> Iterator[str]:
    """The test's server on a port of this host, where every user of it may come."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    link.command("CONFIG", "SET", "port", port)
    yield f"redis://127.0.0.1:{port}/0"
    link.command("CONFIG", "SET", "port", 0)


def test_on_a_port_client_and_worker_refuse_to_begin_without_a_secret(
    port_url: str, link: Link, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, with the ways out, and nothing is sent."""
    monkeypatch.delenv("DASK_REDISQ__SECRET", raising=False)
    worker = start_worker("test", url=port_url)
    with Queue("test", port_url) as queue:
        with pytest.raises(redisq.SecretError, match="is not private to you"):
            queue.get({"x": (sum, [1, 2])}, "x")
        assert queue.stats()["workers"] == 0  # to look, no secret is needed
    assert worker.wait(60) == 2
    assert "--allow-unsigned" in worker.output()
    assert link.command("DBSIZE") == 0


def test_on_a_port_both_sides_may_go_unsigned_if_told_so(
    port_url: str, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the worker's option, or the setting."""
    monkeypatch.delenv("DASK_REDISQ__SECRET", raising=False)
    start_worker("test", "--nworkers", "1", "--allow-unsigned", url=port_url)
    with Queue("test", port_url) as queue, dask.config.set({"redisq.allow-unsigned": True}):
        queue.wait_for_workers(1, timeout=90)
        assert queue.get({"x": (sum, [1, 2])}, "x") == 3


@pytest.mark.parametrize(
    ("word", "error"),
    [("no", "SecretError"), ("off", "SecretError"), ("nope", "ValueError: redisq.allow-unsigned")],
)
def test_on_a_port_a_no_in_a_variable_is_no_yes(
    word: str, error: str, port_url: str, link: Link
) -> None:
    """Dask reads it as text, and any text would count as true: it ran unsigned."""
    env = {**os.environ, "DASK_REDISQ__ALLOW_UNSIGNED": word, "DASK_REDISQ__SECRET": ""}
    job = "get({'x': (sum, [1, 2])}, 'x', no_workers_timeout=1)"
    client = ["-c", f"import dask_redisq as r; r.Queue('test', {port_url!r}).{job}"]
    worker = ["-m", "dask_redisq.cli", "worker", "test", "--burst", "--url", port_url]
    run = partial(subprocess.run, env=env, capture_output=True, text=True, check=False)
    ended = [run([sys.executable, *words]) for words in (client, worker)]
    assert [one.returncode for one in ended] == [1, 2]
    assert error in ended[0].stderr
    assert link.command("DBSIZE") == 0


@pytest.mark.usefixtures("secret")
def test_on_a_port_local_workers_have_the_secret_of_their_client(
    port_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the environment, or from the file of this process's settings."""
    file = secret_file(tmp_path / "secret", "another secret of the tests")
    for setting in (None, str(file)):
        with dask.config.set({"redisq.secret-file": setting}), Queue("test", port_url) as queue:
            worker = redisq.start_local_workers(1, "test", port_url)
            try:
                queue.wait_for_workers(1, timeout=90)
                assert queue.get({"x": (sum, [1, 2])}, "x") == 3
            finally:
                worker.close()
            assert queue.stats()["workers"] == 0
        monkeypatch.setenv("DASK_REDISQ__SECRET", "")  # so that the file is read


# --------------------------------------------------------------- what is not seen


def print_environment() -> str:
    """Return what Dask's configuration in a slot shows."""
    return repr(dask.config.config)


@pytest.mark.parametrize("by_file", [True, False])
def test_a_secret_is_seen_nowhere(
    by_file: bool,
    tmp_path: Path,
    queue: Queue,
    link: Link,
    secret: str,
    start_worker: StartWorker,
    job_of: Callable[..., Job],
) -> None:
    """Command lines, log, key names and contents, the configuration in a slot, the queue's repr."""
    words, env = [], {}
    if by_file:
        file = secret_file(tmp_path / "secret", secret)
        words, env = ["--secret-file", str(file)], {"DASK_REDISQ__SECRET": "not this one, the file"}
    worker = start_worker("test", "--nworkers", "1", *words, env=env)
    queue.wait_for_workers(1, timeout=90)
    job = job_of({"a": (print_environment,), "b": (bytes, 100_000)}, ["a", "b"])
    job.submit()
    values = job.gather()
    top = psutil.Process(worker.pid)
    lines = [" ".join(p.cmdline()) for p in (top, *top.children(recursive=True))]
    link.command("CONFIG", "SET", "rdbcompression", "no")  # so that DUMP shows text as it is
    names = link.command("KEYS", "*")
    assert len(names) > 10
    contents = [link.command("DUMP", name) or b"" for name in names]
    worker.close()
    shown = [*lines, *map(repr, values.values()), repr(queue), repr(job), repr(job.seal)]
    for text in [*(line.encode() for line in shown), *names, *contents]:
        assert secret.encode() not in text
