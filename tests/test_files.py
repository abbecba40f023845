"""What workers import: uploaded files, preloaded ones, a module that was edited; and their log."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import dask
import pytest
from conftest import SECRET, WorkerProcess, wait_until
from dask.utils_test import inc

import dask_redisq as redisq
from dask_redisq.link import Link
from dask_redisq.queue import Queue


def value_of(module: str) -> int:
    """Return a module's VALUE."""
    return int(__import__(module).VALUE)


def environment(name: str) -> str | None:
    """Return a variable of the slot's environment."""
    return os.environ.get(name)


def test_an_uploaded_file_is_imported_by_all_and_by_late_joiners(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """It is in the server, and a slot that is given a task gets it first."""
    start_worker("test", "--nworkers", "1")
    queue.wait_for_workers(1, timeout=90)
    path = tmp_path / "uploaded_model.py"
    path.write_text("VALUE = 1")
    queue.upload_file(path)
    assert dask.compute(dask.delayed(value_of)("uploaded_model"), scheduler=queue.get) == (1,)
    start_worker("test", "--nworkers", "1", "--tag", "late")
    queue.wait_for_workers(2, timeout=90)
    x = dask.delayed(value_of)("uploaded_model")
    assert x.compute(scheduler=queue.get, workers="late") == 1
    path.write_text("VALUE = 2")
    assert dask.compute(dask.delayed(value_of)("uploaded_model"), scheduler=queue.get) == (1,)
    queue.upload_file(path)
    for _ in range(3):
        values = [dask.delayed(value_of)("uploaded_model") for _ in range(8)]
        assert set(dask.compute(*values, scheduler=queue.get, chunk_size=1)) == {2}


def test_an_archive_is_imported_from(queue: Queue, workers: WorkerProcess, tmp_path: Path) -> None:
    """A package in a zip file."""
    path = tmp_path / "package.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("zipped_package/__init__.py", "VALUE = 7")
    queue.upload_file(path)
    assert dask.compute(dask.delayed(value_of)("zipped_package"), scheduler=queue.get) == (7,)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("more.txt", "so that all is elsewhere in it" * 99)
        archive.writestr("zipped_package/__init__.py", "VALUE = 8")
    queue.upload_file(path)
    values = [dask.delayed(value_of)("zipped_package") for _ in range(6)]
    assert set(dask.compute(*values, scheduler=queue.get, chunk_size=1)) == {8}


def test_an_upload_replaces_a_module_of_the_workers_own(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Though their slots imported it already; a module in a package of it as well."""
    own, edited = tmp_path / "own", tmp_path / "edited"
    for folder, value in ((own, 1), (edited, 2)):
        (folder / "own_package").mkdir(parents=True)
        (folder / "own_module.py").write_text(f"VALUE = {value}")
        (folder / "own_package" / "__init__.py").write_text("from own_package.inner import VALUE")
        (folder / "own_package" / "inner.py").write_text(f"VALUE = {value}")
    paths = os.pathsep.join([str(own), *sys.path])
    start_worker("test", "--nworkers", "1", env={"PYTHONPATH": paths})
    queue.wait_for_workers(1, timeout=90)
    values = [dask.delayed(value_of)(name) for name in ("own_module", "own_package")]
    assert dask.compute(*values, scheduler=queue.get) == (1, 1)
    queue.upload_file(edited / "own_module.py")
    assert dask.compute(*values, scheduler=queue.get) == (2, 1)
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
        for path in (edited / "own_package").glob("*.py"):
            archive.write(path, f"own_package/{path.name}")
    queue.upload_file(tmp_path / "own.zip")
    assert dask.compute(*values, scheduler=queue.get) == (2, 2)


def test_what_imported_from_an_edited_upload_is_imported_anew(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """An uploaded module that has a value of it, though it is itself as before."""
    base, user = tmp_path / "base_of_model.py", tmp_path / "user_of_base.py"
    base.write_text("VALUE = 1")
    user.write_text("from base_of_model import VALUE")
    queue.upload_file(base)
    queue.upload_file(user)
    values = [dask.delayed(value_of)("user_of_base") for _ in range(6)]
    assert set(dask.compute(*values, scheduler=queue.get, chunk_size=1)) == {1}
    base.write_text("VALUE = 2")
    queue.upload_file(base)
    assert set(dask.compute(*values, scheduler=queue.get, chunk_size=1)) == {2}


def test_a_module_that_workers_run_on_is_not_uploaded(
    queue: Queue, link: Link, tmp_path: Path
) -> None:
    """Some would import it, and not those that have theirs already; data is no module."""
    for name in ("random.py", "statistics.py", "redis.py", "__main__.py"):
        (tmp_path / name).write_text("VALUE = 1")
        with pytest.raises(ValueError, match=f"{name} was not uploaded.*another name"):
            queue.upload_file(tmp_path / name)
    assert link.command("EXISTS", queue.keys("files")) == 0
    (tmp_path / "random.txt").write_text("1 2 3")
    queue.upload_file(tmp_path / "random.txt")


def test_an_upload_leaves_what_the_slot_runs_on(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's own modules and ours: a second copy has other classes. No archive either."""
    monkeypatch.setattr("dask_redisq.files._check_name", lambda path: None)  # an older client
    for name in ("sys.py", "redis.py", "__main__.py"):
        (tmp_path / name).write_text("raise SystemExit")
        queue.upload_file(tmp_path / name)
    (tmp_path / "broken.zip").write_text("this is none")
    queue.upload_file(tmp_path / "broken.zip")
    values = [dask.delayed(inc)(i) for i in range(6)]
    assert dask.compute(*values, scheduler=queue.get, chunk_size=1) == (1, 2, 3, 4, 5, 6)


def test_a_file_is_sent_again_after_the_server_lost_all(
    queue: Queue, link: Link, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Its state does not count from one again."""
    path = tmp_path / "flushed_model.py"
    path.write_text("VALUE = 1")
    queue.upload_file(path)
    values = [dask.delayed(value_of)("flushed_model") for _ in range(6)]
    assert set(dask.compute(*values, scheduler=queue.get, chunk_size=1)) == {1}
    link.command("FLUSHALL")
    queue.wait_for_workers(2, timeout=90)
    path.write_text("VALUE = 2")
    queue.upload_file(path)
    assert set(dask.compute(*values, scheduler=queue.get, chunk_size=1)) == {2}


def is_a_file() -> tuple[bool, str]:
    """Ask stdout what a file is asked."""
    return sys.stdout.fileno() >= 0 and sys.stdout.writable(), sys.stdout.encoding


def test_what_a_task_prints_to_is_still_a_file(queue: Queue, workers: WorkerProcess) -> None:
    """Programs that it starts write there."""
    assert dask.compute(dask.delayed(is_a_file)(), scheduler=queue.get) == ((True, "utf-8"),)


def test_a_file_of_somebody_without_our_secret_is_not_imported(
    queue: Queue, secret: str, start_worker: Callable[..., WorkerProcess], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It would run."""
    start_worker("test", "--nworkers", "1")
    queue.wait_for_workers(1, timeout=90)
    path = tmp_path / "evil_model.py"
    path.write_text("VALUE = 1")
    monkeypatch.setenv("DASK_REDISQ__SECRET", "another one, that nobody here knows")
    queue.upload_file(path)
    monkeypatch.setenv("DASK_REDISQ__SECRET", SECRET)
    with pytest.raises(ModuleNotFoundError, match="evil_model"):
        dask.compute(dask.delayed(value_of)("evil_model"), scheduler=queue.get)
    assert queue.stats()["refused_payloads"] >= 1


def test_files_of_a_worker_end_with_it(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Their directory is its own."""
    worker = start_worker("test", "--nworkers", "1", env={"TMPDIR": str(tmp_path)})
    queue.wait_for_workers(1, timeout=90)
    path = tmp_path / "model_of_mine.py"
    path.write_text("VALUE = 1")
    queue.upload_file(path)
    assert dask.compute(dask.delayed(value_of)("model_of_mine"), scheduler=queue.get) == (1,)
    assert list(tmp_path.glob("dask-redisq-*"))
    worker.process.terminate()
    assert worker.wait() == 0
    assert not list(tmp_path.glob("dask-redisq-*"))


def test_what_is_preloaded_runs_in_each_slot_first(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """A file with dask_setup, a function of a module, and a module."""
    (tmp_path / "first.py").write_text(
        "import os\ndef dask_setup(worker): os.environ['FIRST'] = 'yes'\n"
    )
    (tmp_path / "second.py").write_text("import os\ndef init(): os.environ['SECOND'] = 'yes'\n")
    (tmp_path / "third.py").write_text("import os\nos.environ['THIRD'] = 'yes'\n")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), *sys.path])
    words = ["--preload", str(tmp_path / "first.py"), "--preload", "second:init"]
    start_worker("test", "--nworkers", "2", *words, "--preload", "third", env={"PYTHONPATH": paths})
    queue.wait_for_workers(2, timeout=90)
    names = ["FIRST", "SECOND", "THIRD"] * 4
    found = dask.compute(*[dask.delayed(environment)(n) for n in names], scheduler=queue.get)
    assert set(found) == {"yes"}


def test_a_worker_whose_preload_raises_ends_and_says_why_once(
    queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """Not once for each of its slots, again and again."""
    worker = start_worker("test", "--nworkers", "2", "--preload", "no_such_module_of_mine")
    assert worker.wait(60) == 1
    assert worker.output().count("preload no_such_module_of_mine raised") == 1
    assert worker.output().count("No module named 'no_such_module_of_mine'") == 1
    assert "frozen importlib" not in worker.output()
    assert queue.workers() == []


def test_a_worker_whose_slots_find_no_secret_ends_and_says_why_once(queue: Queue) -> None:
    """A pipe, as a shell's ``<(command)``, can be read once: by the worker, and by no slot."""
    reading, writing = os.pipe()
    os.write(writing, b"a secret that is read once\n")
    os.close(writing)
    words = ["test", "--nworkers", "2", "--secret-file", f"/dev/fd/{reading}"]
    told = subprocess.run(
        [sys.executable, "-m", "dask_redisq.cli", "worker", *words],
        env={**os.environ, "DASK_REDISQ__SECRET": "", "DASK_REDISQ__URL": queue.url},
        pass_fds=[reading], capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    os.close(reading)
    assert told.returncode == 1
    assert told.stderr.count("they looked for the secret") == 1
    assert told.stderr.count(f"no secret in /dev/fd/{reading}") == 1
    assert queue.workers() == []


def test_a_worker_whose_preload_raises_later_goes_on(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Once a slot was ready, it may be so again; the log has the place."""
    bad, path = tmp_path / "bad", tmp_path / "sometimes.py"
    path.write_text(
        f"import os\nif os.path.exists({str(bad)!r}):\n    raise ValueError('not now')\n"
    )
    worker = start_worker("test", "--nworkers", "1", "--preload", str(path))
    queue.wait_for_workers(1, timeout=90)
    assert dask.compute(dask.delayed(inc)(1), scheduler=queue.get) == (2,)
    bad.touch()
    worker.slots()[0].kill()
    wait_until(lambda: "ValueError: not now" in worker.output(), 60)
    assert f'File "{path}", line 3' in worker.output()
    bad.unlink()
    assert dask.compute(dask.delayed(inc)(2), scheduler=queue.get) == (3,)


def test_restarted_workers_import_anew(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """After an edit of a module; all slots are others then."""
    module = tmp_path / "edited_module.py"
    module.write_text("VALUE = 1")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    worker = start_worker("test", "--nworkers", "2", env={"PYTHONPATH": paths})
    queue.wait_for_workers(2, timeout=90)
    values = [dask.delayed(value_of)("edited_module") for _ in range(4)]
    assert set(dask.compute(*values, scheduler=queue.get)) == {1}
    before = {slot.pid for slot in worker.slots()}
    module.write_text("VALUE = 23  # of another size, so that no cache is taken for it")
    assert set(dask.compute(*values, scheduler=queue.get)) == {1}
    queue.restart_workers()
    assert before.isdisjoint(slot.pid for slot in worker.slots())
    assert set(dask.compute(*values, scheduler=queue.get)) == {23}


def test_a_restart_that_takes_too_long_is_told(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """The slot ends after its task."""
    from test_persist import wait_file

    future = queue.compute(dask.delayed(wait_file)(tmp_path / "gate"))
    wait_until(lambda: queue.stats()["running"] == 1)
    with pytest.raises(TimeoutError, match="1 of 2 slots"):
        queue.restart_workers(timeout=1)
    (tmp_path / "gate").touch()
    assert future.result(60) == 7


def restart(name: str) -> None:
    """Restart the workers of a queue, from a task."""
    with Queue(name) as queue:
        queue.restart_workers()


def test_a_task_that_restarts_its_own_workers_is_told_at_once(
    queue: Queue, workers: WorkerProcess
) -> None:
    """Its slot would wait for itself, for a minute."""
    future = queue.compute(dask.delayed(restart)("test"))
    with pytest.raises(redisq.RedisqError, match="cannot restart the workers of its own queue"):
        future.result(20)


@pytest.mark.parametrize("timeout", [float("nan"), "1"])
def test_a_restart_or_removal_in_no_time_is_refused(
    queue: Queue, workers: WorkerProcess, timeout: float
) -> None:
    """Nothing is later than a moment in nan seconds; and nothing was begun."""
    for end in (queue.restart_workers, queue.remove):
        with pytest.raises(ValueError, match="timeout is a number"):
            end(timeout=timeout)
    assert dask.delayed(inc)(1).compute(scheduler=queue.get) == 2


def chatter(n: int) -> int:
    """Print, and log, and print a line in parts."""
    print(f"printed {n}\nand more")  # noqa: T201
    print("in", "parts", n)  # noqa: T201
    logging.getLogger("user").warning("logged %d", n)
    sys.stderr.write("unfinished")
    sys.stderr.flush()
    return n


def test_what_a_task_prints_and_logs_is_in_the_log_with_job_and_task(
    queue: Queue, link: Link, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Each line of it; what is printed outside of a task is as it was."""
    log = tmp_path / "log"
    start_worker("test", "--nworkers", "1", "--log-file", str(log))
    queue.wait_for_workers(1, timeout=90)
    future = queue.compute(dask.delayed(chatter)(5))
    assert future.result(60) == 5
    label = f"[job {future.id} task 0] "
    lines = ["printed 5", "and more", "in parts 5", "logged 5"]
    wait_until(lambda: all(f"{label}{line}\n" in log.read_text() for line in lines))
    wait_until(lambda: f"{label}unfinished" in log.read_text())
    assert dask.compute(dask.delayed(inc)(1), scheduler=queue.get) == (2,)


def leave_open(n: int) -> int:
    """Leave a line of each stream open."""
    print(f"open {n}", end="")  # noqa: T201
    sys.stderr.write(f"open too {n}")
    return n


def test_a_line_that_a_task_left_open_is_ended_before_the_next_task(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Of stdout and stderr each; else the next one's words would be taken for its own."""
    log = tmp_path / "log"
    start_worker("test", "--nworkers", "1", "--log-file", str(log))
    queue.wait_for_workers(1, timeout=90)
    assert queue.get({"x": (leave_open, 5), "y": (chatter, "x")}, "y") == 5
    first, second = (rf"\[job \w+ task {number}\] " for number in (0, 1))
    # Of the two streams either may come first, and the other then goes on in its line.
    lines = [f"{first}open 5", f"{first}open too 5", f"(?m)^{second}printed 5$"]
    wait_until(lambda: all(re.search(line, log.read_text()) for line in lines), 30)


def test_a_file_that_is_no_python_is_refused_here(queue: Queue, link: Link, tmp_path: Path) -> None:
    """Each task that imports it would fail; what is no module is nobody's business."""
    path, data = tmp_path / "broken.py", tmp_path / "broken.txt"
    for file in (path, data):
        file.write_text("x = 1\ndef f(:\n")
    with pytest.raises(SyntaxError) as caught:
        queue.upload_file(path)
    assert (caught.value.filename, caught.value.lineno) == (str(path), 2)
    assert "was not uploaded" in caught.value.__notes__[0]
    assert link.command("HKEYS", queue.keys("files")) == []
    queue.upload_file(data)
    assert link.command("HKEYS", queue.keys("files")) == [b"broken.txt"]


def test_what_cannot_be_uploaded_is_an_error_here(queue: Queue, link: Link, tmp_path: Path) -> None:
    """A file that is not there; one that the server would hang up on."""
    with pytest.raises(OSError, match="missing"):
        queue.upload_file(tmp_path / "missing.py")
    path = tmp_path / "large.py"
    path.write_bytes(bytes(1_100_000))
    before = link.command("CONFIG", "GET", "proto-max-bulk-len")[1]
    link.command("CONFIG", "SET", "proto-max-bulk-len", 1_048_576)
    try:
        with pytest.raises(redisq.ValueTooLarge, match=r"large\.py takes 1,1"):
            queue.upload_file(path)
    finally:
        link.command("CONFIG", "SET", "proto-max-bulk-len", before)
