"""The ACL rules of docs/security.md: applied to a real server, enough for a whole job, no more."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from conftest import WorkerProcess

import dask_redisq as redisq
from dask_redisq import scripts
from dask_redisq.errors import ServerRefused
from dask_redisq.link import Link
from dask_redisq.queue import Queue
from dask_redisq.server import PrivateServer

PACKAGE = Path(redisq.__file__).parent
DOCUMENT = PACKAGE.parent / "docs" / "security.md"

#: Role -> the modules that talk to the server for it.
MODULES = {
    "client": (
        "queue",
        "future",
        "job",
        "follow",
        "renewer",
        "monitor",
        "rebuild",
        "registry",
        "status",
        "names",
        "failed",
        "suspend",
        "on_slots",
        "call_log",
    ),
    "worker": (
        "supervisor",
        "registration",
        "registry",
        "slot_loop",
        "memory",
        "control",
        "monitor",
        "rebuild",
    ),
    "monitor": ("status", "registry"),
}
#: Script or command -> why the role does without it.
WITHOUT = {
    "client": {"scan", "stop_workers"},  # Queue.remove, for which the document says what it needs
    "worker": set[str](),
    "monitor": set[str](),
}
#: Commands that a role needs for what is not in its modules.
BESIDES = {
    # Link.watch, which sees that the server was started again; a policy that does not end
    "client": {"info", "script|kill"},
    "worker": {"info", "script|kill"},
    "monitor": {"scard"},  # Queue.wait_for_workers
}

#: Scripts that a role calls in a way of their own: see `dask_redisq.wishes`.
WATCHED = {"client": {"check_policy"}, "worker": {"wish"}, "monitor": set[str]()}


def lines() -> dict[str, list[str]]:
    """Return the words of each rule of the document, by user."""
    found = re.findall(r"^ACL SETUSER (\w+) (.*)$", DOCUMENT.read_text(), re.MULTILINE)
    return {user: ["ACL", "SETUSER", user, *words.split()] for user, words in found}


def needed(role: str) -> set[str]:
    """Return the commands that the modules of a role send, themselves or in scripts."""
    text = "".join((PACKAGE / f"{name}.py").read_text() for name in MODULES[role])
    called = set(re.findall(r"\.(?:send_)?call(?:_once)?\(\s*\"(\w+)\"", text)) - WITHOUT[role]
    called |= WATCHED[role]
    sent = {word.lower() for word in re.findall(r"\.(?:command|send)\(\s*\"([A-Z]+)\"", text)}
    for name in called:
        lua = scripts.load(name).text
        sent |= {word.lower() for word in re.findall(r"redis\.call\('([A-Z]+)'", lua)}
        assert "redis.call(" not in re.sub(r"redis\.call\('[A-Z]+'", "", lua)
    return (sent | BESIDES[role] | ({"evalsha", "script|load"} if called else set())) - WITHOUT[
        role
    ]


@pytest.mark.parametrize("role", MODULES)
def test_a_role_has_the_commands_that_it_uses_and_no_others(role: str) -> None:
    """The line of the document names each command that the role's modules send."""
    given = [word for word in lines()[role] if word[0] in "+-@"]
    assert " ".join(given) == " ".join(f"+{word}" for word in sorted(needed(role)))


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


def acl_log(link: Link) -> list[list[bytes]]:
    """Return what the server denied."""
    entries: list[list[bytes]] = link.command("ACL", "LOG")
    return entries


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
        assert len(queue.workers()) == 1
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
    denied = {dict(zip(e[::2], e[1::2], strict=True))[b"object"] for e in acl_log(guarded.admin)}
    assert denied <= {b"config|get", b"client|setinfo"}  # both are asked for, and not needed


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
