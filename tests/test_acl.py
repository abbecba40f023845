"""The ACL rules of docs/security.md: applied to a real server, enough for a whole job, no more."""

from __future__ import annotations

import itertools
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path

import dask
import joblib
import pytest
from conftest import WorkerProcess, wait_until
from dask.callbacks import Callback
from joblib import parallel_config

import dask_redisq as redisq
from dask_redisq import scripts
from dask_redisq.errors import ServerRefused
from dask_redisq.joblib import register_redisq
from dask_redisq.link import Link
from dask_redisq.queue import Queue
from dask_redisq.server import PrivateServer

PACKAGE = Path(redisq.__file__).parent
DOCUMENT = PACKAGE.parent / "docs" / "security.md"

#: Modules that talk to the server for a worker alone. All others do it for clients, and for workers
#: too: what a client does, a task may do.
WORKERS = {
    "control",
    "loading",
    "memory",
    "registration",
    "report",
    "slot_loop",
    "stepping",
}
#: Scripts that only slots call, from a module that clients use as well.
SLOTS = {"wish"}
#: Modules that talk to the server for who only looks.
MONITORS = {"status", "registry"}
#: Commands that no role has, though a module sends them.
NOBODYS = {
    "config",  # shows passwords, too: who may not ask does without (server_check)
    "scan",  # Queue.remove, for which the document says what it needs
    "script",  # what it is asked for are commands of their own
}
#: Commands that a role needs for what is not to be seen in its modules.
BESIDES = {
    # Link.watch, which sees that the server was started again; a policy that does not end
    "client": {"info", "script|kill"},
    "worker": {"info", "script|kill"},
    "monitor": {"scard"},  # Queue.wait_for_workers
}
ROLES = tuple(BESIDES)
#: Denied, and done without: how redis-py says which library it is, and the server's settings.
DENIED = {b"config|get", b"client|setinfo"}


def lines() -> dict[str, list[str]]:
    """Return the words of each rule of the document, by user."""
    found = re.findall(r"^ACL SETUSER (\w+) (.*)$", DOCUMENT.read_text(), re.MULTILINE)
    return {user: ["ACL", "SETUSER", user, *words.split()] for user, words in found}


def words_of(module: str) -> tuple[set[str], set[str]]:
    """Return the scripts and the commands that a module names."""
    text = (PACKAGE / f"{module}.py").read_text()
    call = r"\.(?:send_)?call(?:_once|_awake)?\("
    if not re.search(call + r"|\.(?:command|send|_ask)\(\s*[\"*]", text):
        return set(), set()
    # By its name alone: some are chosen first, and called a line later.
    named = {name for name in scripts.script_names() if f'"{name}"' in text}
    sent = re.findall(r"\.(?:command|send|_ask)\(\s*\"([A-Z]+)\"", text)
    return named, {word.lower() for word in sent}


def modules_of(role: str) -> set[str]:
    """Return the modules that talk to the server for a role; a new one is a client's."""
    if role == "monitor":
        return MONITORS
    found = {path.stem for path in PACKAGE.glob("*.py") if any(words_of(path.stem))}
    assert found >= WORKERS | MONITORS
    return found - WORKERS if role == "client" else found


def needed(role: str) -> set[str]:
    """Return the commands that the modules of a role send, themselves or in scripts."""
    words = [words_of(module) for module in modules_of(role)]
    called, sent = (set[str]().union(*found) for found in zip(*words, strict=True))
    for name in called - (SLOTS if role == "client" else set()):
        lua = scripts.load(name).text
        sent |= {word.lower() for word in re.findall(r"redis\.call\('([A-Z]+)'", lua)}
        assert "redis.call(" not in re.sub(r"redis\.call\('[A-Z]+'", "", lua)
    return (sent - NOBODYS) | BESIDES[role] | ({"evalsha", "script|load"} if called else set())


@pytest.mark.parametrize("role", ROLES)
def test_a_role_has_the_commands_that_it_uses_and_no_others(role: str) -> None:
    """The line of the document names each command that the role's modules send."""
    given = [word for word in lines()[role] if word[0] in "+-@"]
    assert " ".join(given) == " ".join(f"+{word}" for word in sorted(needed(role)))


def test_every_script_is_called_by_a_module_that_has_a_role() -> None:
    """Else what it needs would be looked for nowhere."""
    called = set[str]().union(*(words_of(module)[0] for module in modules_of("worker")))
    assert called == set(scripts.script_names())


def test_the_dashboard_has_what_the_monitor_has_and_the_servers_figures() -> None:
    """It is nobody's module yet."""
    words = lines()
    assert set(words["dashboard"][6:]) - set(words["monitor"][6:]) == {"+info"}


class Guarded:
    """A private server with the document's users on it."""

    def __init__(self, server: PrivateServer) -> None:
        self.admin = Link(server.url)
        self.url = server.url
        for words in lines().values():
            self.admin.command(*words)

    def url_of(self, role: str) -> str:
        """Return the URL for a user of the document."""
        return f"{self.url}?username={role}&password={role.upper()}-PASSWORD"

    def denied(self) -> set[bytes]:
        """Return what the server denied to anybody."""
        entries = self.admin.command("ACL", "LOG", 128)
        return {dict(zip(e[::2], e[1::2], strict=True))[b"object"] for e in entries}


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    """A server of its own: rules would outlive the test."""
    with PrivateServer() as server:
        found = Guarded(server)
        yield found
        found.admin.close()


def test_a_whole_job_runs_under_the_rules(
    guarded: Guarded, start_worker: Callable[..., WorkerProcess]
) -> None:
    """With a large constant, large values, an error, and a worker that leaves."""
    worker = start_worker("jobs", "--nworkers", "2", url=guarded.url_of("worker"))
    with Queue("jobs", guarded.url_of("client")) as queue:
        queue.wait_for_workers(2, timeout=90)
        graph = {
            "a": (bytes, 100_000),
            "b": (len, "a"),
            "c": (len, bytes(100_000)),
            "d": (sum, ["b", "c"]),
        }
        assert queue.get(graph, ["d", "a"]) == (200_000, bytes(100_000))
        with pytest.raises(ZeroDivisionError):
            queue.get({"x": (divmod, 1, 0)}, "x")
        assert queue.foreach(abs, 3, get_task=redisq.policies.by_tag) == [0, 1, 2]
        with pytest.raises(ValueError, match="it does not end"):
            queue.foreach(abs, 3, get_task="while true do end")
        with pytest.warns(RuntimeWarning, match="did not end"):
            queue.foreach(abs, 3, get_task="while candidates[1].key ~= '' do end")
        # Two policies without end keep the server busy for as long as an alive key lives: who
        # was missed registers again with the next beat.
        wait_until(lambda: len(queue.workers()) == 1 and queue.stats()["slots"] == 2)
        with closing(Link(guarded.url_of("monitor"))) as link:
            assert link.command("SCARD", queue.keys("slots")) == 2
    for role in ("monitor", "dashboard"):
        with Queue("jobs", guarded.url_of(role)) as looking:
            looking.wait_for_workers(2, timeout=90)
            assert looking.stats()["finished"] == 10
            assert len(looking.workers()) == 1
    worker.process.terminate()
    assert worker.wait() == 0
    log = worker.output()
    assert "Traceback" not in log
    assert "WORKER-PASSWORD" not in log
    assert guarded.denied() <= DENIED


class Raised(Exception):
    """What a task below raises."""


def fail() -> None:
    """Be a task that fails."""
    raise Raised


def warn() -> int:
    """Be a task that warns, and has its slot known by a tag."""
    redisq.set_tag("t")
    warnings.warn("hey", stacklevel=1)
    return 1


def use_values(queue: Queue) -> None:
    """Compute in every way."""
    assert queue.get({"x": (sum, [1, 2])}, "x", callbacks=[Callback()]) == 3
    kept = queue.persist(dask.delayed(bytes)(200_000))
    (part,) = redisq.futures_of(kept)
    assert len(part.result(60)) == 200_000
    assert dask.delayed(len)(kept).compute(scheduler=queue.get) == 200_000
    table = queue.scatter({1: "a"})
    assert queue.foreach(dict.get, itertools.repeat(table), [1]) == ["a"]
    with redisq.Executor(queue) as executor:
        assert list(executor.map(abs, [1, -2])) == [1, 2]
    register_redisq()
    with parallel_config(backend="redisq", queue=queue.name, url=queue.url):
        assert joblib.Parallel()(joblib.delayed(abs)(i) for i in (1, -2)) == [1, 2]


def use_jobs(queue: Queue) -> None:
    """Leave jobs, and come back to them."""
    future = queue.compute(dask.delayed(warn)(), detach=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert queue.attach(future.id).result(60) == 1
    assert [str(one.message) for one in told] == ["hey"]
    future.forget()
    cancelled = queue.compute(dask.delayed(time.sleep)(60), detach=True)
    assert queue.cancel(cancelled.id)
    with pytest.raises(redisq.JobCancelled):
        cancelled.result(60)
    failed = queue.compute(dask.delayed(fail)(), detach=True)
    assert isinstance(failed.exception(60), Raised)
    with pytest.raises(Raised):
        queue.rerun(failed.id).result(60)
    assert failed.id in [row["id"] for row in queue.failed()]
    queue.attach(failed.id).forget()
    assert queue.stats()["slots"] >= 2
    assert isinstance(queue.tasks(), list)


def use_all() -> str:
    """Do all that a client does, and a task may do, on the queue of the settings."""
    with redisq.Queue() as queue:
        with redisq.Lock("one"), redisq.Semaphore(2, "two"):
            assert not redisq.Lock("one").acquire(timeout=0.5)
        use_values(queue)
        use_jobs(queue)
    return "all of it"


def test_all_that_clients_and_tasks_do_goes_under_the_rules(
    guarded: Guarded, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Whatever has a module of its own is done here by a client, and by a task for its worker."""
    start_worker("jobs", "--nworkers", "2", url=guarded.url_of("worker"))
    url = guarded.url_of("client")
    with Queue("jobs", url) as queue, dask.config.set({"redisq.url": url, "redisq.queue": "jobs"}):
        queue.wait_for_workers(2, timeout=90)
        assert use_all() == "all of it"
        assert queue.get({"x": (use_all,)}, "x") == "all of it"
        (tmp_path / "uploaded_here.py").write_text("def three(): return 3")
        queue.upload_file(tmp_path / "uploaded_here.py")
        assert queue.get({"x": (lambda: import_module("uploaded_here").three(),)}, "x") == 3
        queue.suspend()
        queue.resume()
        assert queue.run_on_workers(os.getpid, timeout=60)  # a stand-in may be there still
    assert guarded.denied() <= DENIED


def test_a_value_above_a_limit_that_no_role_may_read_is_an_error_with_its_task(
    guarded: Guarded, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """A result, an argument, a file: soon, and nobody sends it again and again."""
    guarded.admin.command("CONFIG", "SET", "proto-max-bulk-len", 2 * 2**20)
    worker = start_worker("jobs", "--nworkers", "1", url=guarded.url_of("worker"))
    with Queue("jobs", guarded.url_of("client")) as queue:
        queue.wait_for_workers(1, timeout=90)
        started = time.monotonic()
        said = r"4,00\d,\d\d\d bytes.* at most 2,096,128"
        with pytest.raises(redisq.ValueTooLarge, match=f"the result takes {said}") as caught:
            queue.get({"big": (bytes, 4_000_000)}, "big", retries=3)
        assert any("'big'" in note for note in caught.value.__notes__)
        with pytest.raises(redisq.ValueTooLarge, match=f"'big' cannot be sent .* {said}"):
            queue.get({"big": (len, bytes(4_000_000))}, "big")
        with pytest.raises(redisq.ValueTooLarge, match=said):
            queue.compute(dask.delayed(bytes(4_000_000)), detach=True)
        (tmp_path / "big.py").write_bytes(b"#" * 4_000_000)
        with pytest.raises(redisq.ValueTooLarge, match=r"big.py takes .* 2,096,128 in one"):
            queue.upload_file(tmp_path / "big.py")
        assert queue.get({"x": (bytes, 2_000_000)}, "x") == bytes(2_000_000)
        assert time.monotonic() - started < 10
        guarded.admin.command("CONFIG", "SET", "proto-max-bulk-len", 2**29)
        assert queue.get({"x": (len, bytes(4_000_000))}, "x") == 4_000_000
    assert "again" not in worker.output()
    assert guarded.denied() <= DENIED


def test_who_may_not_remove_a_queue_is_told_before_anything_is_done(guarded: Guarded) -> None:
    """Jobs are there as before; with the right that is named it goes."""
    with Queue("jobs", guarded.url_of("client")) as queue:
        job = queue.compute(dask.delayed(sum)([1, 2]), detach=True).id
        with pytest.raises(ServerRefused, match=r"'jobs' is as it was: .* needs \+scan"):
            queue.remove()
        assert [(row["id"], row["state"]) for row in queue.jobs()] == [(job, "running")]
        guarded.admin.command("ACL", "SETUSER", "client", "+scan")
        queue.remove()
        assert guarded.admin.command("KEYS", "*") == [queue.keys("tomb", job).encode()]


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("client", ["GET", "another:key"]),
        ("client", ["EVAL", "return 1", "0"]),
        ("client", ["FLUSHALL"]),
        ("client", ["KEYS", "*"]),
        ("client", ["CONFIG", "GET", "requirepass"]),
        ("worker", ["SET", "redisq:{other}:queue", "x"]),
        ("worker", ["SCAN", "0"]),
        ("worker", ["ACL", "LIST"]),
        ("monitor", ["HSET", "redisq:{jobs}:queue", "finished", "1"]),
        ("monitor", ["SCRIPT", "LOAD", "return 1"]),
        ("dashboard", ["DEL", "redisq:{jobs}:queue"]),
    ],
)
def test_what_a_role_does_not_need_is_denied(guarded: Guarded, role: str, words: list[str]) -> None:
    """At once, with a word on where the rules are, and no password."""
    with closing(Link(guarded.url_of(role))) as link, pytest.raises(ServerRefused) as caught:
        link.command(*words)
    assert "docs/security.md has ACL rules for each role" in str(caught.value)
    assert "-PASSWORD" not in str(caught.value)


def test_a_script_that_its_user_may_not_run_is_a_typed_error(guarded: Guarded) -> None:
    """As when the rules are of an older version than the scripts."""
    guarded.admin.command("ACL", "SETUSER", "client", "-hset")
    with Queue("jobs", guarded.url_of("client")) as queue, pytest.raises(ServerRefused):
        queue.get({"x": (sum, [1, 2])}, "x")


def test_the_default_user_can_be_switched_off(guarded: Guarded) -> None:
    """The last rule of the document; who has a name still comes in."""
    assert lines()["default"] == ["ACL", "SETUSER", "default", "off"]
    with (
        closing(Link(guarded.url, patience=0)) as link,
        pytest.raises(ServerRefused, match="Authentication required"),
    ):
        link.command("GET", "x")
    with Queue("jobs", guarded.url_of("monitor")) as queue:
        assert queue.stats()["workers"] == 0
