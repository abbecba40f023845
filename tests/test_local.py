"""Workers on this machine, the cluster with its own server, and the embedded default."""

from __future__ import annotations

import gc
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from conftest import WorkerProcess, is_gone, slots_of, wait_until
from test_faults import Background

from dask_redisq import LocalCluster, Lock, Queue, Semaphore, enable, start_local_workers
from dask_redisq import local as local_module
from dask_redisq.embedded import default_cluster
from dask_redisq.errors import NoServerError, RedisqError
from dask_redisq.inherit import search_path
from dask_redisq.local import LocalWorker, defaults
from dask_redisq.server import PrivateServer

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def start(queue: Queue) -> Iterator[Callable[..., LocalWorker]]:
    """Start workers on the test's queue that end with the test."""
    started: list[LocalWorker] = []

    def start_and_wait(n: int, **options: Any) -> LocalWorker:
        started.append(start_local_workers(n, queue="test", url=queue.url, **options))
        queue.wait_for_workers(sum(worker.nworkers for worker in started))
        return started[-1]

    yield start_and_wait
    for worker in started:
        worker.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """One cluster for the tests that do not end it."""
    with LocalCluster(n_workers=2, queue="shared") as running:
        yield running


@pytest.fixture
def no_defaults() -> Iterator[None]:
    """End the clusters that a test started by default."""
    yield
    for running in defaults.values():
        running.close()
    defaults.clear()


def in_new_process(script: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a script in a Python of its own."""
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, **options
    )


def run(cluster_or_queue: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function as a task."""
    task = dask.delayed(function, pure=False)(*arguments)
    return task.compute(scheduler=cluster_or_queue.get)


def with_slots(server: int, *workers: int) -> list[psutil.Process]:
    """Give the processes of a server, of workers and of their two slots each."""
    found = [psutil.Process(pid) for pid in workers]
    # A slot is registered, then started.
    wait_until(lambda: all(len(slots_of(worker)) == 2 for worker in found))
    slots = [slot for worker in found for slot in slots_of(worker)]
    return [psutil.Process(server), *found, *slots]


# ------------------------------------------------------------------------------------- a worker


def test_a_local_worker_has_the_slots_that_were_asked_for(
    start: Callable[..., LocalWorker], queue: Queue
) -> None:
    """One row with n slots, from the process that it says; one line about itself."""
    worker = start(2, tag="gpu")
    (row,) = queue.workers()
    assert row["pid"] == worker.pid
    assert len(row["slots"]) == worker.nworkers == 2
    assert "gpu" in row["tags"]
    assert repr(worker) == f"<LocalWorker test pid={worker.pid} slots=2 running>"


def test_a_second_worker_joins_the_first(start: Callable[..., LocalWorker], queue: Queue) -> None:
    """Each call adds one worker to the queue."""
    start(1)
    start(2)
    stats = queue.stats()
    assert (stats["workers"], stats["slots"]) == (2, 3)


def square_at_the_gate(x: int, folder: Path) -> tuple[int, int]:
    """Note our worker, wait until its gate is open, give the square and the worker."""
    worker = os.getppid()
    with (folder / "log").open("a") as log:
        log.write(f"{worker}\n")
    while not (folder / f"open {worker}").exists():
        time.sleep(0.005)
    return x * x, worker


def test_workers_join_and_leave_while_a_job_runs(
    start: Callable[..., LocalWorker], queue: Queue, tmp_path: Path
) -> None:
    """One joins, the first leaves by SIGTERM: both worked, and each task ran exactly once."""

    def ran() -> list[int]:
        log = tmp_path / "log"
        return [int(pid) for pid in log.read_text().split()] if log.exists() else []

    first, n = start(1), 40
    dsk = {("x", i): (square_at_the_gate, i, tmp_path) for i in range(n)}
    job = Background(queue.get, dsk, list(dsk), chunk_size=1, no_workers_timeout=20)
    wait_until(lambda: first.pid in ran())
    second = start(1)
    wait_until(lambda: second.pid in ran())
    os.kill(first.pid, signal.SIGTERM)
    (tmp_path / f"open {first.pid}").touch()  # the task in its hand ends
    wait_until(lambda: first.exit_code is not None)
    assert first.exit_code == 0
    assert [row["pid"] for row in queue.workers()] == [second.pid]
    assert [row["state"] for row in queue.jobs()] == ["running"]
    (tmp_path / f"open {second.pid}").touch()
    squares, workers = zip(*job.result(), strict=True)
    assert squares == tuple(i * i for i in range(n))
    assert set(workers) == {first.pid, second.pid}
    assert sorted(ran()) == sorted(workers)


def test_a_closed_worker_has_left_in_good_order(
    start: Callable[..., LocalWorker], queue: Queue
) -> None:
    """SIGTERM drains it: exit code 0, nothing registered, no slot left."""
    worker = start(2)
    slots = slots_of(psutil.Process(worker.pid))
    worker.close()
    worker.close()
    assert worker.exit_code == 0
    assert queue.workers() == []
    assert all(is_gone(slot) for slot in slots)
    assert repr(worker).endswith("ended, code 0>")


def test_a_worker_that_does_not_drain_in_time_is_killed(
    start: Callable[..., LocalWorker], queue: Queue, tmp_path: Path
) -> None:
    """Its slots go with it, in the middle of a task."""
    worker = start(1)
    wait_until(
        lambda: slots_of(psutil.Process(worker.pid))
    )  # a slot is registered before it starts
    (slot,) = slots_of(psutil.Process(worker.pid))
    begun = tmp_path / "begun"
    client = subprocess.Popen([sys.executable, "-c", CLIENT, queue.url, str(begun)])
    try:
        wait_until(begun.exists)
        worker.close(timeout=0.1)
        assert worker.exit_code == 128 + signal.SIGKILL
        wait_until(lambda: is_gone(slot))
    finally:
        client.kill()
        client.wait()


CLIENT = """
import pathlib, sys, time
from dask_redisq import Queue
url, begun = sys.argv[1:]
def task():
    pathlib.Path(begun).touch()
    time.sleep(1000)
Queue("test", url).get({"x": (task,)}, "x")
"""


@linux_only
def test_the_url_is_in_the_environment_and_on_no_command_line(
    start: Callable[..., LocalWorker], queue: Queue
) -> None:
    """Every user may read command lines: a password must not be on one."""
    worker = psutil.Process(start(1).pid)
    keeper = worker.parent()
    assert keeper is not None
    assert worker.environ()["DASK_REDISQ__URL"] == queue.url
    for process in (keeper, worker, *worker.children()):
        assert queue.url not in " ".join(process.cmdline())
        assert "unix:" not in " ".join(process.cmdline())


def test_a_worker_sees_what_the_client_sees(
    start: Callable[..., LocalWorker],
    queue: Queue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has the client's directory, module search path and settings."""
    (tmp_path / "only_here.py").write_text("def answer():\n    return 42\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with dask.config.set({"redisq.allowed-failures": 7, "redisq.order": "1e3"}):
        start(1)
    import only_here  # type: ignore[import-not-found]

    def look() -> Any:
        settings = [dask.config.get(f"redisq.{x}") for x in ("allowed-failures", "order")]
        return os.getcwd(), *settings  # noqa: PTH109

    assert run(queue, only_here.answer) == 42
    assert run(queue, look) == (str(tmp_path), 7, "1e3")


def test_a_worker_does_not_pass_our_standard_library_on() -> None:
    """A task may start a Python of another version, which reads PYTHONPATH too."""
    entries = search_path().split(os.pathsep)
    assert os.path.dirname(os.__file__) not in entries  # noqa: PTH120
    assert not any(entry.endswith("site-packages") for entry in entries)


@pytest.mark.parametrize("log", ["file", "-", "stdout"])
def test_what_a_task_prints_goes_to_the_log(
    log: str,
    start: Callable[..., LocalWorker],
    queue: Queue,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The log is a file, or our own stdout by either name."""
    path = tmp_path / "log"
    start(1, log={"file": path, "-": "-", "stdout": sys.stdout}[log])
    run(queue, os.system, "echo printed by a task")
    said: list[str] = []

    def is_there() -> bool:
        said.append(path.read_text() if log == "file" else capfd.readouterr().out)
        return "printed by a task" in "".join(said)

    wait_until(is_there)  # the line takes another way than the result


def test_without_a_log_a_worker_is_silent(
    start: Callable[..., LocalWorker], queue: Queue, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing of it reaches our terminal; the last of it can be asked for at the end."""
    worker = start(1)
    run(queue, os.system, "echo printed by a task")
    worker.close()
    assert capfd.readouterr() == ("", "")
    assert "printed by a task" in worker.last_words()


def test_a_worker_needs_a_server(no_defaults: None) -> None:
    """Without a URL, and without a private server in this process, there is an error."""
    with pytest.raises(NoServerError, match="DASK_REDISQ__URL"):
        start_local_workers(1)


@pytest.mark.parametrize("n", [0, -1])
def test_a_worker_has_a_slot(n: int) -> None:
    """Fewer than one is an error at once."""
    with pytest.raises(ValueError, match="at least 1"):
        start_local_workers(n, url="unix:///nowhere")


# ------------------------------------------------------------------------------------ a cluster


def test_a_cluster_computes_at_once(cluster: LocalCluster) -> None:
    """Its slots are registered when it is there, and `get` is the queue's."""
    assert len(Queue("shared", cluster.url).workers()[0]["slots"]) == 2
    assert run(cluster, sum, [1, 2, 3]) == 6
    assert cluster.get.__name__ == "get"
    assert cluster.queue == "shared"
    assert repr(cluster) == f"<LocalCluster shared {cluster.url} slots=2>"


def hold(name: str, gate: Path) -> bool:
    """Hold a lock that is made here until the gate is there."""
    with Lock(name):
        (gate.parent / "held").touch()
        wait_until(gate.exists)
    return True


@pytest.mark.parametrize("early", [False, True])
def test_a_lock_of_this_process_is_that_of_the_tasks_of_its_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, early: bool
) -> None:
    """Without a URL it started a server of its own, and excluded nobody."""
    monkeypatch.setattr(local_module, "_made", [])  # without that of the other tests
    before = Lock("inside") if early else None
    gate = tmp_path / "gate"
    with LocalCluster(1, queue="mine") as cluster:
        queue = Queue(cluster.queue, cluster.url)
        future = queue.compute(dask.delayed(hold)("inside", gate))
        wait_until((tmp_path / "held").exists)
        lock = before or Lock("inside")
        copy = pickle.loads(pickle.dumps(lock))
        assert not lock.acquire(blocking=False)
        assert not Lock("inside", cluster).acquire(blocking=False)
        assert not copy.acquire(blocking=False)
        with Lock("inside", "other"):
            pass
        gate.touch()
        assert future.result(60)
        assert lock.acquire(timeout=60)
        assert not Semaphore(1, "inside", queue=cluster).acquire(blocking=False)
        lock.release()
    assert not defaults


def test_of_several_clusters_a_lock_wants_to_know_which(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an object, or a name that only one of them has; one that nobody made does not count."""
    with LocalCluster(0, queue="mine") as mine:
        with pytest.raises(NoServerError, match="could be of any of them"):
            Lock("x").acquire()
        with Lock("x", mine), Lock("x", cluster):
            assert not Lock("x", "mine").acquire(blocking=False)
        assert pickle.loads(pickle.dumps(Lock("x"))).name == "x"
        with monkeypatch.context() as patch:
            patch.setitem(defaults, cluster.queue, cluster)
            with Lock("x"):
                assert not Lock("x", mine).acquire(blocking=False)
        with dask.config.set({"redisq.url": cluster.url}), Lock("x", "shared"):
            assert not Lock("x", cluster).acquire(blocking=False)


def test_enable_takes_a_cluster_or_a_queue(cluster: LocalCluster) -> None:
    """Which has a server: one that is named besides is one too many."""
    for owner in (cluster, Queue(cluster.queue, cluster.url)):
        with enable(owner):
            assert dask.delayed(os.getpid)().compute() != os.getpid()
        with pytest.raises(TypeError, match="has its server"):
            enable(owner, cluster.url)


def test_a_cluster_has_a_slot_per_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is the default, by what this process may use of the machine."""
    monkeypatch.setattr(local_module, "cpu_count", lambda: 3)
    with LocalCluster() as cluster:
        assert cluster.n_workers == 3
        assert cluster.queue == "jobs"


@pytest.mark.parametrize("log", ["file", "-"])
def test_the_workers_of_a_cluster_write_to_its_log(
    log: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Those that come later, too; without a log they are silent, as those of no cluster."""
    path = tmp_path / "log"
    with LocalCluster(1, "test", log=path if log == "file" else log) as cluster:
        run(cluster, os.system, "echo printed by the first")
        cluster.scale(0)
        cluster.scale(1)
        run(cluster, os.system, "echo printed by the second")
    said = path.read_text() if log == "file" else capfd.readouterr().out
    assert said.index("printed by the first") < said.index("printed by the second")
    assert said.count("1 slots on unix://") == 2, "what the workers say themselves is not there"


def test_a_cluster_scales_by_whole_workers() -> None:
    """Up adds one worker; down drains the newest, and adds back what that was too much."""
    with LocalCluster(n_workers=0) as cluster:
        queue = Queue(cluster.queue, cluster.url)

        def slots() -> list[int]:
            return sorted(len(row["slots"]) for row in queue.workers())

        assert slots() == []
        cluster.scale(2)
        (first,) = (row["id"] for row in queue.workers())
        cluster.scale(5)
        assert slots() == [2, 3]
        cluster.scale(4)
        assert slots() == [2, 2]
        assert first in {row["id"] for row in queue.workers()}
        cluster.scale(0)
        assert slots() == []
        assert cluster.n_workers == 0


@pytest.mark.alone
def test_a_closed_cluster_refuses_work_at_once() -> None:
    """It says that it has ended; who still holds its `get` waits for no server."""
    with LocalCluster(n_workers=1) as cluster:
        get = cluster.get
        assert get({"x": (sum, [1, 2])}, "x") == 3
    started = time.monotonic()
    with pytest.raises(NoServerError, match="ended"):
        get({"x": (sum, [1, 2])}, "x")
    assert time.monotonic() - started < 1


def test_a_cluster_replaces_a_worker_that_died() -> None:
    """Scaling counts the living."""
    with LocalCluster(n_workers=1) as cluster:
        (worker,) = cluster._workers
        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda: cluster.n_workers == 0)
        cluster.scale(1)
        assert cluster._workers != [worker]
        assert run(cluster, sum, [1]) == 1


def test_a_closed_cluster_leaves_nothing() -> None:
    """Server, workers, slots and the directory are gone, however often it is closed."""
    cluster = LocalCluster(n_workers=2)
    folder = Path(cluster.url.removeprefix("unix://")).parent
    processes = with_slots(cluster._server.pid, cluster._workers[0].pid)
    cluster.close()
    cluster.close()
    assert all(is_gone(process) for process in processes)
    assert not folder.exists()
    assert repr(cluster) == "<LocalCluster jobs ended>"
    with pytest.raises(RedisqError, match="has ended"):
        cluster.scale(1)


def test_a_cluster_ends_as_garbage_but_not_while_its_get_is_held() -> None:
    """Who holds no more than `get`, as Dask's configuration does, holds the cluster."""
    cluster = LocalCluster(n_workers=1)
    server = psutil.Process(cluster._server.pid)
    get = cluster.get
    del cluster
    gc.collect()
    assert get({"x": (sum, [1, 2])}, "x") == 3
    del get
    gc.collect()
    wait_until(lambda: is_gone(server))


def test_workers_that_do_not_start_tell_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the last that a worker wrote, comes at once, and nothing is left."""
    (tmp_path / "click.py").write_text("raise SystemExit('broken on purpose')")
    monkeypatch.syspath_prepend(tmp_path)
    server = PrivateServer()
    monkeypatch.setattr(local_module, "PrivateServer", lambda: server)
    with pytest.raises(RedisqError, match=r"(?s)did not start.*broken on purpose"):
        LocalCluster(n_workers=1)
    assert not server.running


def test_workers_that_do_not_start_tell_why_in_their_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is one the error has nothing to show, and says where to look."""
    (tmp_path / "click.py").write_text("raise SystemExit('broken on purpose')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RedisqError, match="did not start: its log says why"):
        LocalCluster(n_workers=1, log=tmp_path / "log")
    assert "broken on purpose" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_workers": -1}, "n_workers.*at least 0"),
        ({"n_workers": 1.5}, "n_workers.*at least 0"),
        ({"queue": "a{b}"}, "braces"),
    ],
)
def test_an_impossible_cluster_is_refused(options: dict[str, Any], message: str) -> None:
    """A negative number and a name with braces are errors, and nothing is left."""
    with pytest.raises(ValueError, match=message):
        LocalCluster(**options)


OWNER = """
import json, os, sys
from dask_redisq import LocalCluster
cluster = LocalCluster(n_workers=2)
pids = [cluster._server.pid, cluster._workers[0].pid]
print(json.dumps({"url": cluster.url, "pids": pids}), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["killed", "ended", "exited"])
def test_a_cluster_ends_with_its_process(how: str) -> None:
    """By SIGKILL, by the end of the script, by os._exit: nothing is left."""
    script = OWNER + ("os._exit(0)" if how == "exited" else "")
    owner = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    with owner.stdin, owner.stdout:
        told = json.loads(owner.stdout.readline())
        found = with_slots(*told["pids"])
        if how == "killed":
            owner.kill()
    owner.wait()
    wait_until(lambda: all(is_gone(process) for process in found))
    wait_until(lambda: not Path(told["url"].removeprefix("unix://")).parent.exists())


#: Makes of a process one that lacks what only POSIX has, as on Windows.
ELSEWHERE = """
import os, platform, signal, sys
import dask.array, psutil, redis  # what others need is theirs
for name in ("fork", "register_at_fork", "killpg", "setsid", "getuid", "getpgid", "sysconf"):
    delattr(os, name)
for name in ("SIGHUP", "SIGCHLD", "SIGKILL", "SIGPIPE", "SIGXFSZ", "pthread_sigmask"):
    delattr(signal, name)
sys.modules.update(dict.fromkeys(("fcntl", "resource", "pwd", "grp")))
platform.system = lambda: "Windows"
import dask_redisq as redisq
"""


def test_the_package_is_imported_where_processes_cannot_fork() -> None:
    """A client may have such a host; nor are there the modules that only POSIX has."""
    assert in_new_process(ELSEWHERE + "print(redisq.Queue.__name__)").stdout == "Queue\n"


def test_a_client_computes_where_there_is_no_posix(queue: Queue, workers: WorkerProcess) -> None:
    """With locks, and `enable`; what ended its task's process is told as elsewhere."""
    script = f"""
from dask_redisq.secret import is_private
print(is_private({queue.url!r}))  # nobody can tell there whose it is
dask.config.set({{"redisq.allow-unsigned": True}})
queue = redisq.Queue("test", {queue.url!r})
add = dask.delayed(lambda *numbers: sum(numbers), pure=False)
with redisq.enable(queue), redisq.Lock("x", queue), redisq.Semaphore(2, "y", queue):
    print(add(1, 2).compute())
end = dask.delayed(lambda: os.kill(os.getpid(), 9), pure=False)()
late = dask.delayed(lambda: __import__("time").sleep(60), pure=False)()
for task, words in (end, {{"allowed_failures": 1}}), (late, {{"timeout": 0.2}}):
    try:
        queue.compute(task, **words).result(timeout=60)
    except redisq.RedisqError as error:
        print(type(error).__name__, str(error).count("by signal SIGKILL"))
"""
    told = in_new_process(f"{ELSEWHERE}\nimport dask\n{script}").stdout.splitlines()
    assert told == ["False", "3", "WorkerDied 1", "TaskTimeout 1"]


@pytest.mark.parametrize(
    "start", ["LocalCluster()", "start_local_workers(1)", "run_worker('x', url='unix:///x')"]
)
def test_workers_say_that_they_need_posix(start: str) -> None:
    """So does a private server, whether there is a program for it or not."""
    script = f"""
try:
    redisq.{start}
except OSError as error:
    print(error)
"""
    told = in_new_process(ELSEWHERE + script).stdout
    assert "need a POSIX system: run them on another host" in told


# From Python 3.12 on; the threads are OpenBLAS's, and the child takes no lock of theirs.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_leaves_the_cluster_to_its_parent(cluster: LocalCluster) -> None:
    """Its close ends nothing, and it cannot scale what is not its own."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            cluster.scale(1)
        except RedisqError:
            cluster.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert run(cluster, sum, [1, 2]) == 3


# -------------------------------------------------------------------------- the embedded default


def test_the_default_cluster_is_one_for_all_threads(
    no_defaults: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks first starts it; who asks meanwhile waits for it."""
    monkeypatch.setattr(local_module, "cpu_count", lambda: 1)
    found: list[LocalCluster] = []
    threads = [threading.Thread(target=lambda: found.append(default_cluster())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(map(id, found))) == 1
    assert default_cluster("other") is not found[0]


@linux_only
def test_a_worker_joins_the_default_cluster_where_no_server_is_named(
    no_defaults: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More slots for the embedded default are one call away."""
    monkeypatch.setattr(local_module, "cpu_count", lambda: 1)
    cluster = default_cluster()
    with closing(start_local_workers(1)) as worker:
        process = psutil.Process(worker.pid)
        # Not at once: Linux shows none as long as the new program is being put in place.
        wait_until(lambda: process.environ().get("DASK_REDISQ__URL") == cluster.url)
        Queue(url=cluster.url).wait_for_workers(2, timeout=90)


def test_a_default_cluster_that_ended_is_started_again(
    no_defaults: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a close nor the death of its server is for ever."""
    monkeypatch.setattr(local_module, "cpu_count", lambda: 1)
    first = default_cluster()
    first.close()
    second = default_cluster()
    assert second is not first
    os.kill(second._server.pid, signal.SIGKILL)
    wait_until(lambda: not second.running)
    assert default_cluster() is not second
    second.close()


def test_the_default_cluster_logs_one_line_where_logging_is_configured(
    no_defaults: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One INFO record, at the first call."""
    monkeypatch.setattr(local_module, "cpu_count", lambda: 1)
    with caplog.at_level(logging.INFO, "dask_redisq"):
        default_cluster()
        default_cluster()
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "started a private Redis server with 1 slots" in record.getMessage()


FIRST_GET = """
import dask, dask_redisq
{before}
print(dask.delayed(sum)([1, 2]).compute(scheduler=dask_redisq.get))
print(dask.delayed(sum)([1, 3]).compute(scheduler="redisq"))
"""


@pytest.mark.parametrize(
    ("before", "lines"),
    [
        ("", 1),
        ("import logging; logging.basicConfig(level='INFO')", 1),
        ("import logging; logging.basicConfig()", 0),
        ("import logging; logging.getLogger('dask_redisq').setLevel('ERROR')", 0),
    ],
    ids=["not configured", "info", "warnings only", "silenced"],
)
def test_the_first_get_says_once_what_it_started(before: str, lines: int) -> None:
    """Without logging configured it is said on stderr; else logging decides; never twice."""
    done = in_new_process(FIRST_GET.format(before=before))
    assert done.stdout == "3\n4\n"
    assert done.stderr.count("started a private Redis server") == lines
    assert len(done.stderr.splitlines()) == lines


FORKED = """
import os, dask, dask_redisq, threading
from dask_redisq import embedded, local
local.cpu_count = lambda: 1
mine = embedded.default_cluster()
embedded._lock.acquire()  # as another thread of the parent's may, while we fork
child = os.fork()
if child == 0:
    get = dask_redisq.get
    assert get({"x": (sum, [1, 2])}, "x") == 3
    assert embedded.default_cluster().url != mine.url
    raise SystemExit(0)
assert os.waitpid(child, 0)[1] == 0
embedded._lock.release()
assert embedded.default_cluster() is mine
print(dask_redisq.get({"x": (sum, [1, 3])}, "x"))
"""


def test_a_forked_child_has_a_default_cluster_of_its_own() -> None:
    """It neither uses nor ends its parent's, and waits for no lock that a parent's thread held."""
    assert in_new_process(FORKED, timeout=60).stdout == "4\n"
