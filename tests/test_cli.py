"""The commands, as a user types them, and the demo."""

from __future__ import annotations

import ast
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote

import dask
import psutil
import pytest
from click.testing import CliRunner, Result
from conftest import WorkerProcess, wait_until

import dask_redisq as redisq
from dask_redisq import Queue, cli, demo
from dask_redisq.errors import NoServerError, RedisqError
from dask_redisq.link import Link
from dask_redisq.retirement import Terms
from dask_redisq.server import PrivateServer
from dask_redisq.supervisor import WorkerOptions

# Servers here are on ports, which others reach, so that there must be a secret.
pytestmark = pytest.mark.usefixtures("secret")

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
HOST = socket.gethostname()
URL = "redis://nowhere.invalid:6379/0"

StartWorker = Callable[..., WorkerProcess]


def run_cli(*words: str, **environment: str) -> Result:
    """Run a command in this process; whoever starts no worker needs no other."""
    return CliRunner().invoke(cli.main, words, env=environment, catch_exceptions=False)


def options_of(*words: str, **environment: str) -> WorkerOptions:
    """Give what a worker would be run with."""
    with mock.patch("dask_redisq.supervisor.supervise", return_value=0) as run:
        result = run_cli("worker", *words, **environment)
    assert result.exit_code == 0, result.output
    (options,) = run.call_args.args
    assert isinstance(options, WorkerOptions)
    return options


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    """Keep the command's handlers away from the tests'."""
    with mock.patch("logging.basicConfig"):
        yield


# ---------------------------------------------------------------------------- a worker's options


def test_a_worker_has_defaults_for_all_but_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queue and expiry are those of the settings, slots the machine's cores."""
    monkeypatch.setattr("dask_redisq.worker.cpu_count", lambda: 3)
    assert options_of("--url", URL) == WorkerOptions(
        queues=("jobs",),
        url=URL,
        nworkers=3,
        name=f"{HOST}-{os.getpid()}",
        tags=(HOST,),
        alive_expiry=10.0,
        death_timeout=60.0,
    )


def test_a_worker_does_what_it_is_told() -> None:
    """Each option arrives; the host's name is a tag, once, whatever the others are."""
    words = "a b --nworkers 4 --name me --tag gpu --tag big --alive-expiry 3 --death-timeout 0"
    words += " --max-tasks 5 --max-idle 6 --burst --lifetime 7 --lifetime-stagger 1 --linger 8"
    options = options_of(*words.split(), "--tag", HOST, "--url", URL)
    assert options == WorkerOptions(
        queues=("a", "b"),
        url=URL,
        nworkers=4,
        name="me",
        tags=(HOST, "gpu", "big"),
        alive_expiry=3.0,
        death_timeout=0.0,
        terms=Terms(5, 6.0, True, 7.0, 1.0, 8.0),
    )


def test_how_a_worker_runs_is_shown_without_its_secrets() -> None:
    """Neither the password of its URL, nor what its slots have in their environment."""
    options = WorkerOptions(
        ("a", "b"), "redis://:sesame@host:1/0", 2, "me", environment={"DASK_X": "sesame"}
    )
    assert repr(options) == "<WorkerOptions me: 2 slots on redis://:***@host:1/0, queues a, b>"


def test_a_queue_that_is_named_twice_is_served_once() -> None:
    """In the order of the first names: the slots' calls to one queue have one count."""
    assert options_of("b", "a", "b", "--url", URL).queues == ("b", "a")


@pytest.mark.parametrize("password", ["secret", "a/b@c:d %41"])
def test_a_password_may_come_from_a_file(password: str, tmp_path: Path) -> None:
    """The first line of it, as it is; the URL gets it in a URL's spelling."""
    path = tmp_path / "password"
    path.write_text(f"{password}\nand a note\n")
    options = options_of("--url", "redis://me@host:6379/0", "--password-file", str(path))
    assert options.url == f"redis://me:{quote(password, safe='')}@host:6379/0"


def test_the_slots_of_a_worker_read_the_file_that_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its whole name, and not the variable that would come first."""
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_text("the secret of this one test\n")
    monkeypatch.chdir(tmp_path)
    options = options_of("--url", URL, "--secret-file", "secret")
    assert options.environment == {
        "DASK_REDISQ__SECRET": "",
        "DASK_REDISQ__SECRET_FILE": str(path),
    }


def test_a_worker_without_a_secret_begins_if_it_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a server that others may reach."""
    monkeypatch.delenv("DASK_REDISQ__SECRET")
    result = run_cli("worker", "--url", URL)
    assert result.exit_code == 2
    assert "redis://nowhere.invalid:6379/0 is not private to you" in result.output
    assert options_of("--url", URL, "--allow-unsigned").environment == {}
    result = run_cli("worker", "--url", URL, "--secret-file", "/no/such/file")
    assert result.exit_code == 2
    assert "Error: no secret in /no/such/file: No such file" in result.output


def test_a_password_on_the_command_line_is_warned_about() -> None:
    """It is taken, but every user of the machine sees it."""
    with mock.patch("dask_redisq.supervisor.supervise", return_value=0):
        result = run_cli("worker", "--url", "redis://:secret@host")
    assert "warning: a password in --url is visible" in result.output
    assert "secret" not in result.output


# ------------------------------------------------------------------ what it cannot begin with


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --url, or set redisq.url (environment variable DASK_REDISQ__URL)"),
        (["--url", "http://:secret@host"], "is not the URL of a server"),
        (["--url", "redis://:sec/ret@host"], "is not the URL of a server"),
        (["a{b}", "--url", URL], "a queue name is text without braces"),
        (["", "--url", URL], "a queue name is text without braces"),
        (["--max-tasks", "0", "--url", URL], "0 is not in the range x>=1"),
        (["--lifetime-stagger", "3", "--url", URL], "lifetime_stagger is for a lifetime"),
        (["--nworkers", "0", "--url", URL], "0 is not in the range x>=1"),
        (
            ["--alive-expiry", "0.1", "--url", URL],
            "redisq.alive-expiry is a number of seconds, at least 0.5",
        ),
        (["--lifetime", "nan", "--url", URL], "lifetime is a number of seconds"),
        (["--death-timeout", "inf", "--url", URL], "death_timeout is a number of seconds"),
        (["--linger", "1e300", "--url", URL], "at most 1,000,000,000, not 1e+300"),
        (["--password-file", "/no/such/file", "--url", URL], "No such file or directory"),
        (["--password-file", os.devnull, "--url", URL], "its first line, the password, is empty"),
    ],
)
def test_a_worker_that_cannot_begin_says_why(words: list[str], message: str) -> None:
    """It is a usage error, exit code 2, and no password is shown."""
    result = run_cli("worker", *words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "secret" not in result.output
    assert "ret@" not in result.output


def test_a_wrong_setting_is_a_usage_error() -> None:
    """Settings are read from the environment, as Dask reads them."""
    with dask.config.set({"redisq.queue": 7, "redisq.alive-expiry": "abc"}):
        assert "redisq.queue is text" in run_cli("worker", "--url", URL).output
        result = run_cli("worker", "jobs", "--url", URL)
    assert result.exit_code == 2
    assert "redisq.alive-expiry is a number of seconds" in " ".join(result.output.split())


def test_an_error_of_ours_is_one_line() -> None:
    """No traceback, exit code 1."""
    with mock.patch("dask_redisq.supervisor.supervise", side_effect=RedisqError("no luck")):
        result = run_cli("worker", "--url", URL)
    assert (result.exit_code, result.output) == (1, "Error: no luck\n")


def test_a_log_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """The name and the reason are told."""
    result = run_cli("worker", "--url", URL, "--log-file", str(tmp_path / "no" / "log"))
    assert result.exit_code == 1
    assert "No such file or directory" in result.output


def test_the_exit_code_is_the_workers() -> None:
    """What supervise returns is what the shell gets."""
    with mock.patch("dask_redisq.supervisor.supervise", return_value=1):
        assert run_cli("worker", "--url", URL).exit_code == 1


# -------------------------------------------------------------------------------- a real worker


def test_a_worker_serves_its_queues_until_sigterm(
    start_worker: StartWorker, server: PrivateServer, link: Link
) -> None:
    """The URL comes from the environment; it says what it is, and that it ended; exit code 0."""
    worker = start_worker("a", "b", "--nworkers", "1", "--name", "me", "--tag", "gpu")
    for name in ("a", "b"):
        queue = Queue(name, server.url)
        queue.wait_for_workers(1, timeout=90)
        (row,) = queue.workers()
        assert (row["name"], row["pid"]) == ("me", worker.pid)
        assert {"gpu", HOST} <= set(row["tags"])
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == 0
    log = worker.output()
    for line in log.splitlines():
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ \S", line)
    assert "INFO worker me: 1 slots" in log
    assert "INFO worker me ended" in log


def test_a_worker_without_a_queue_serves_that_of_the_settings(
    start_worker: StartWorker, server: PrivateServer, link: Link
) -> None:
    """The settings of Dask hold for a worker, by the environment too."""
    start_worker("--nworkers", "1", env={"DASK_REDISQ__QUEUE": "mine"})
    Queue("mine", server.url).wait_for_workers(1, timeout=90)


def test_a_worker_gives_up_a_server_that_is_not_there(start_worker: StartWorker) -> None:
    """It says so once, tries until its time is over, and exits 1; the password stays its own."""
    worker = start_worker("--death-timeout", "0.7", url="redis://:secret@127.0.0.1:1/0")
    assert worker.wait() == 1
    log = worker.output()
    assert log.count("WARNING") == 1
    assert log.count("ERROR") == 1
    assert "secret" not in log
    assert "redis://:***@127.0.0.1:1/0" in log


def look_and_compute() -> tuple[str, int]:
    """Return what Dask's configuration in a slot shows, and what a job of it computes."""
    total: int = dask.delayed(sum)([1, 2]).compute(scheduler=redisq.get)
    return repr(dask.config.config), total


@linux_only
def test_a_worker_keeps_a_password_to_itself(start_worker: StartWorker, tmp_path: Path) -> None:
    """It is not on a command line, nor in the log, nor in a slot's configuration."""
    (tmp_path / "password").write_text("open sesame\n")
    log = tmp_path / "log"
    with PrivateServer() as server:
        with_password = f"unix://:open%20sesame@{server.url.removeprefix('unix://')}"
        _set_password(server.url, "open sesame")
        worker = start_worker(
            *("test", "--nworkers", "1", "--log-file", str(log)),
            *("--password-file", str(tmp_path / "password")),
            url=server.url,
        )
        with Queue("test", with_password) as queue:
            queue.wait_for_workers(1, timeout=90)
            shown, computed = queue.get({"x": (look_and_compute,)}, "x")
        assert "sesame" not in shown
        assert computed == 3  # on the same server: the task's own `get` has the password
        wait_until(worker.slots)
        for process in (psutil.Process(worker.pid), *worker.slots()):
            assert "sesame" not in " ".join(process.cmdline())
        worker.process.terminate()
        assert worker.wait() == 0
    assert worker.output() == ""
    assert "INFO worker" in log.read_text()
    assert "sesame" not in log.read_text()


def _set_password(url: str, password: str) -> None:
    link = Link(url)
    link.command("CONFIG", "SET", "requirepass", password)
    link.close()


def test_a_log_file_gets_what_tasks_print(
    start_worker: StartWorker, queue: Queue, tmp_path: Path
) -> None:
    """Slots write to it too, and it grows at its end."""
    log = tmp_path / "log"
    log.write_text("from before\n")
    worker = start_worker("test", "--nworkers", "1", "--log-file", str(log))
    queue.wait_for_workers(1, timeout=90)
    queue.get({"x": (os.system, "echo printed; echo complained >&2")}, "x")
    worker.process.terminate()
    assert worker.wait() == 0
    lines = log.read_text().splitlines()
    assert lines[0] == "from before"
    assert {"printed", "complained"} < set(lines)
    assert worker.output() == ""


def test_learning_our_commands_imports_no_more_than_click() -> None:
    """Each call of Dask's command imports this module; what is heavy waits inside functions."""
    tree = ast.parse(Path(cli.__file__).read_text())
    imported = {
        name.partition(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    }
    assert imported - sys.stdlib_module_names == {"click"}


def test_the_worker_is_a_command_of_dask() -> None:
    """The entry point is installed, and ``dask`` finds our command by its name."""
    command = [str(Path(sys.executable).with_name("dask")), "redisq-worker", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: dask redisq-worker [OPTIONS] [QUEUE]...")
    assert "--nworkers" in done.stdout
    assert done.stderr == ""


def test_the_module_can_be_run() -> None:
    """That is how a worker is started by `start_local_workers`."""
    command = [sys.executable, "-m", "dask_redisq.cli", "worker", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: python -m dask_redisq.cli worker [OPTIONS] [QUEUE]...")
    assert done.stderr == ""


# ------------------------------------------------------------------------------------- the demo


@linux_only
def test_the_demo_shows_right_results_and_leaves_nothing() -> None:
    """It needs no terminal, ends in time with exit code 0, and with it each of its processes."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    done = subprocess.run(
        [sys.executable, "-m", "dask_redisq.cli", "demo", "--nworkers", "2"],
        env=os.environ | {"MARK_OF_THE_DEMO": mark},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == b""
    assert done.returncode == 0
    assert re.search(rb"pi is about 3\.14\d{3}, off by 0\.00\d+\n", done.stdout)
    assert len(re.findall(rb"\[#{30}\] +\d+ tasks in [\d.]+ s, [\d,]+ tasks/s\n", done.stdout)) == 3
    assert b"all 3 results are right" in done.stdout
    assert b"\r" not in done.stdout
    assert b"\x1b" not in done.stdout
    assert not [process for process in psutil.process_iter() if marked(process, mark)]


def marked(process: psutil.Process, mark: str) -> bool:
    """Tell whether a process has the mark in its environment, as all the demo's have."""
    try:
        return process.environ().get("MARK_OF_THE_DEMO") == mark
    except psutil.Error:
        return False


def failing_stage(get: Callable[..., Any]) -> str:
    """Find something else than Dask's own scheduler."""
    demo.check_same(lambda a, b: bool(a == b), get({"x": (sum, [1, 2])}, "x"), 4)
    return "not reached"


class Terminal(io.StringIO):
    """Somebody watches."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def test_the_demo_fails_with_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1; what was found and what was expected are shown."""
    monkeypatch.setattr(demo, "STAGES", (("a stage", failing_stage),))
    out = io.StringIO()
    assert demo.run_demo(1, out) == 1
    assert "WRONG: found\n3\nbut Dask's own scheduler found\n4\n" in out.getvalue()
    assert out.getvalue().endswith("FAILED: a stage\n")


def test_the_demo_draws_where_somebody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the bar moves, and what stays is the same as elsewhere."""

    def slow_stage(get: Callable[..., Any]) -> str:
        get({f"x{i}": (time.sleep, 0.05) for i in range(10)}, [f"x{i}" for i in range(10)])
        return "slept"

    monkeypatch.setattr(demo, "STAGES", (("a slow stage", slow_stage),))
    out = Terminal()
    assert demo.run_demo(1, out) == 0
    assert out.getvalue().count("\ra slow stage") > 1
    left = [line.rpartition("\r\x1b[K")[2] for line in out.getvalue().split("\n")]
    assert re.match(r"a slow stage +\[#{30}\] +10 tasks in ", left[1])


@pytest.mark.parametrize("estimate", [3.2, 3.0, float("nan")])
def test_a_wrong_pi_is_found_out(estimate: float) -> None:
    """It must be within 0.01."""
    with pytest.raises(demo.CheckFailed):
        demo.check_pi(estimate)


def test_the_demo_says_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the extra that brings it, and exits 1."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run_cli("demo")
    assert result.exit_code == 1
    assert 'needs numpy and pandas and pyarrow: pip install "dask-redisq[local]"' in result.output


def test_the_demo_without_a_server_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is a message, not a traceback, and the exit code 1."""
    monkeypatch.setattr(demo, "LocalCluster", mock.Mock(side_effect=NoServerError("get one")))
    result = run_cli("demo")
    assert (result.exit_code, result.output) == (1, "Error: get one\n")
