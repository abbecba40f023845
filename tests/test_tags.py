"""What task code has of its slot: the tag that it sets, and a client for keys of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import pytest
from conftest import PATH, WorkerProcess, wait_until
from mortal import MortalServer
from proxy import Relay

import dask_redisq as redisq
from dask_redisq.link import Link
from dask_redisq.queue import Queue
from dask_redisq.server import PrivateServer

HOST = socket.gethostname()


def tag_and_pid(tag: str = "") -> tuple[str, int]:
    """Set the tag, if one is given; return what it was before, and the process."""
    before = redisq.get_tag()
    if tag:
        redisq.set_tag(tag)
    return before, os.getpid()


def tag_of_one(tag: str, other: Path) -> tuple[str, int]:
    """Set the tag in one of two slots: the other one is at its task meanwhile."""
    other.with_name(f"{other.name}-{tag}").touch()
    wait_until(lambda: len(list(other.parent.glob(f"{other.name}-*"))) == 2, 20)
    redisq.set_tag(tag)
    return tag, os.getpid()


def tag_two(queue: Queue, folder: Path, *tags: str) -> dict[str, int]:
    """Let two slots set a tag each; return which process has which."""
    name = folder / f"both {time.monotonic_ns()}"
    return dict(queue.foreach(tag_of_one, tags, [name] * 2, chunk_size=1))


# Tags.


def test_a_tag_stays_for_later_tasks_and_jobs_until_it_is_set_again(
    queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """By default it is the name of the host."""
    start_worker("test", "--nworkers", "1")
    tags = [queue.foreach(tag_and_pid, [tag, ""])[1][0] for tag in ("A1", "A2")]
    assert tags == ["A1", "A2"]
    first = queue.times(1, tag_and_pid, chunk_size=1)[0][0]
    assert first == "A2"


def test_without_one_the_tag_is_the_first_that_the_worker_was_given(
    queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """By --tag; else the name of the host, which is what it is outside of slots, too."""
    start_worker("test", "--nworkers", "1", "--tag", "gpu", "--tag", "big", "--resources", "GPU=1")
    assert queue.times(1, redisq.get_tag) == ["gpu"]
    queue.remove()
    start_worker("test", "--nworkers", "1", "--name", "gpu", "--tag", "gpu")  # a tag all the same
    assert queue.times(1, redisq.get_tag) == ["gpu"]
    queue.remove()
    start_worker("test", "--nworkers", "1", "--name", "gpu")
    assert queue.times(1, redisq.get_tag) == [HOST]
    assert redisq.get_tag() == HOST


def test_tasks_for_a_tag_come_to_the_slot_that_set_it(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """And not to the one that set it before, and another one since; idle slots are woken for it."""
    pids = tag_two(queue, tmp_path, "A1", "A2")
    for tag in ("A1", "A2"):
        some = [dask.delayed(tag_and_pid)() for _ in range(8)]
        done = dask.compute(*some, scheduler=queue.get, workers=tag, chunk_size=1)
        assert set(done) == {(tag, pids[tag])}
    (before,) = queue.foreach(tag_and_pid, ["A3"], workers="A1")
    assert before == ("A1", pids["A1"])
    assert queue.times(1, tag_and_pid, workers="A3") == [("A3", pids["A1"])]
    with pytest.raises(redisq.NoWorkersError, match="A1"):
        queue.times(1, tag_and_pid, workers="A1", no_workers_timeout=0.2)


def test_a_task_that_follows_goes_where_the_tag_is_then(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """A sets the tag that B asks for, or gives up the one that B asks for: same lease or not."""
    pids = tag_two(queue, tmp_path, "left", "right")
    with dask.annotate(workers="left"):
        a = dask.delayed(tag_and_pid)("other")
    with dask.annotate(workers="other"):
        b = dask.delayed(follow)(a)
    assert b.compute(scheduler=queue.get) == ("other", pids["left"])
    with dask.annotate(workers="right"):
        a = dask.delayed(tag_and_pid)("new")
        b = dask.delayed(follow)(a)
    with pytest.raises(redisq.NoWorkersError, match="right"):
        b.compute(scheduler=queue.get, no_workers_timeout=0.2)


def follow(_: Any) -> tuple[str, int]:
    """Return the tag of now."""
    return redisq.get_tag(), os.getpid()


def test_who_waits_for_a_tag_that_a_busy_slot_set_is_not_told_that_nobody_carries_it(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """No worker was given it, and one of its slots has it."""
    tag_two(queue, tmp_path, "A1", "A2")
    busy = queue.compute(dask.delayed(stay)(tmp_path / "busy"), workers="A1")
    wait_until((tmp_path / "busy").exists)
    (found,) = queue.times(1, tag_and_pid, workers="A1", no_workers_timeout=0.3)
    assert found[0] == "A1"
    busy.result(60)


def stay(mark: Path) -> None:
    """Be busy for longer than somebody waits."""
    mark.touch()
    time.sleep(1.5)


def test_a_tag_ends_with_its_slot(queue: Queue, start_worker: Callable[..., WorkerProcess]) -> None:
    """The process that takes its place begins with what the worker was given."""
    start_worker("test", "--nworkers", "1", "--tag", "given")
    ((_, pid),) = queue.foreach(tag_and_pid, ["A1"])
    os.kill(pid, signal.SIGKILL)
    ((tag, other),) = queue.times(1, tag_and_pid)
    assert tag == "given"
    assert other != pid
    with pytest.raises(redisq.NoWorkersError):
        queue.times(1, tag_and_pid, workers="A1", no_workers_timeout=0.2)


def test_a_server_that_lost_everything_hears_of_the_tag_again(
    far: Queue, mortal: MortalServer, tmp_path: Path
) -> None:
    """It comes back empty, and the worker registers its slots as they were started."""
    pids = tag_two(far, tmp_path, "A1", "A2")
    mortal.kill()
    mortal.replace(None)
    mortal.start()
    assert far.times(2, tag_and_pid, workers="A2") == [("A2", pids["A2"])] * 2


@pytest.mark.parametrize("tag", ["", "resource:GPU=1", "soft:", "python3.13"])
def test_a_tag_that_means_something_else_is_refused(tag: str) -> None:
    """It would lend the slot a resource, or pickles of another Python."""
    with pytest.raises(ValueError, match="a tag is text that does not begin"):
        redisq.set_tag(tag)
    with pytest.raises(TypeError, match="a tag is text, not 1"):
        redisq.set_tag(1)  # type: ignore[arg-type]


def tag_in_a_child() -> int:
    """Set a tag in a process that this task forks; return its exit code."""
    child = os.fork()
    if child == 0:
        try:
            redisq.set_tag("A1")
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_only_a_slot_has_a_tag_to_set(queue: Queue, workers: WorkerProcess) -> None:
    """Not the client, and not what a task forks: nobody would hear of it."""
    with pytest.raises(RuntimeError, match="set_tag is called by a task"):
        redisq.set_tag("A1")
    assert queue.times(1, tag_in_a_child) == [7]


# Keys of one's own.


def draw(i: int, chunk: int = 1) -> int:
    """Count, as Listing 3 does; return i."""
    redisq.get_redis().incrby("count", chunk)
    return i


def test_tasks_count_with_keys_of_their_own(
    queue: Queue, workers: WorkerProcess, link: Link
) -> None:
    """Listing 3: from another process the rate is seen while the loop runs."""
    assert queue.foreach(draw, 200, combine=sum) == 19_900
    assert link.command("GET", "count") == b"200"
    with dask.config.set({"redisq.url": link.url}):
        assert redisq.get_redis().get("count") == b"200"


def sum_of_chunk(j: int) -> float:
    """Listing 8: read that part of the matrix which this task needs, and no other."""
    return float(sum(map(float, redisq.get_redis().lrange(f"A{j}", 0, -1))))


def test_tasks_read_just_the_part_of_the_data_that_they_need(
    queue: Queue, workers: WorkerProcess, link: Link
) -> None:
    """Listing 8, with lists for matrices."""
    with dask.config.set({"redisq.url": link.url}):
        mine = redisq.get_redis()
    mine.rpush("A1", *range(50))
    mine.rpush("A2", *range(50, 100))
    assert queue.foreach(sum_of_chunk, [1, 2]) == [1225.0, 3725.0]


def client_ids(_: int) -> tuple[int, int]:
    """Return the connection's number on the server, and the process."""
    assert redisq.get_redis() is redisq.get_redis()
    found: Any = redisq.get_redis().client_id()
    return found, os.getpid()


def test_a_slot_has_one_client_and_it_is_not_what_the_slot_itself_uses(
    queue: Queue, workers: WorkerProcess, link: Link
) -> None:
    """The same connection in all its tasks; an answer that nobody reads there harms no step."""
    found = set(queue.foreach(client_ids, 8, chunk_size=1)) | set(queue.foreach(client_ids, 8))
    assert len(found) == len({pid for _, pid in found})
    lines = link.command("CLIENT", "LIST").decode().splitlines()
    last = {int(w[0][3:]): w for w in (line.split() for line in lines)}
    for number, _ in found:
        assert "cmd=client|id" in last[number]
    assert sum("cmd=evalsha" in w or "cmd=blpop" in w for w in last.values()) >= 2


def count_from_threads_and_children(_: int) -> int:
    """Count in 4 threads, and in a child that is forked meanwhile; return the child's exit code."""
    redisq.get_redis().incr("count")
    threads = [threading.Thread(target=draw, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    child = os.fork()
    if child == 0:
        try:
            draw(0)
        finally:
            os._exit(0)
    for thread in threads:
        thread.join()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_threads_and_forked_children_may_use_it(
    queue: Queue, workers: WorkerProcess, link: Link
) -> None:
    """Each gets its own answers."""
    assert queue.foreach(count_from_threads_and_children, 3) == [0, 0, 0]
    assert link.command("GET", "count") == b"18"


def test_what_it_writes_is_not_sent_again_when_the_answer_is_lost(
    server: PrivateServer, link: Link, tmp_socket: Path
) -> None:
    """redis-py alone would count up to ten times; whoever calls is told, and decides."""
    with Relay(tmp_socket, server.url) as relay:
        code = (
            "import dask_redisq as redisq, redis\n"
            "mine = redisq.get_redis()\n"
            "mine.ping()\n"
            "input()\n"
            "try:\n    mine.incr('count')\n"
            "except redis.ConnectionError:\n    print('told', mine.get('count'))\n"
        )
        env = {**os.environ, "PYTHONPATH": PATH, "DASK_REDISQ__URL": relay.url}
        with subprocess.Popen(
            [sys.executable, "-c", code], env=env, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:  # fmt: skip
            wait_until(lambda: b"cmd=ping" in link.command("CLIENT", "LIST"))
            relay.lose_reply(b"INCRBY")
            said, _ = process.communicate("\n", timeout=60)
    assert said.split() == ["told", "b'1'"]
    assert link.command("GET", "count") == b"1"


def test_a_client_is_made_as_the_queues_own_connections() -> None:
    """It waits for no reply for ever, it sends nothing twice, and it shows no password."""
    with dask.config.set({"redisq.url": "redis://:secret@127.0.0.1:1/0"}):
        options = redisq.get_redis().connection_pool.connection_kwargs
    assert options["password"] == "secret"  # noqa: S105
    assert options["socket_timeout"] == 15.0
    assert options["socket_connect_timeout"] == 5.0
    assert options["retry"]._retries == 0
    with (
        dask.config.set({"redisq.url": "redis://:secret@host:x"}),
        pytest.raises(redisq.BadURL) as info,
    ):
        redisq.get_redis()
    assert "secret" not in str(info.value)
