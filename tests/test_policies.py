"""Policies of jobs, `get_task=`: they choose, and whatever they do, each task is run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import dask
import pytest
from conftest import WorkerProcess, wait_until

import dask_redisq as redisq
from dask_redisq import policies
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.queue import Queue

REVERSED = "local order = {} for i = #candidates, 1, -1 do order[#order + 1] = i end return order"
#: Ends on what is made up for its check, and not on tasks that have a key.
ENDLESS = "while candidates[1] and candidates[1].key ~= '' do end return {}"


def note(i: int, log: Path) -> int:
    """Write i down; return it."""
    with log.open("a") as file:
        file.write(f"{i}\n")
    return i


def order_of(log: Path) -> list[int]:
    """Return what was written down, in order."""
    return [int(word) for word in log.read_text().split()]


@pytest.fixture
def one(queue: Queue, start_worker: Callable[..., WorkerProcess]) -> Queue:
    """A queue with one slot."""
    start_worker("test", "--nworkers", "1")
    queue.wait_for_workers(1, timeout=90)
    return queue


# What is chosen.


def test_a_policy_decides_which_iteration_comes_next(one: Queue, tmp_path: Path) -> None:
    """Of a loop, with all its tasks before it, the last one too."""
    log = tmp_path / "log"
    got = one.foreach(note, 200, [log] * 200, get_task=REVERSED, chunk_size=1)
    assert got == list(range(200))
    assert order_of(log) == list(range(199, -1, -1))


def test_a_policy_decides_with_several_slots_too(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Who comes second to a wish has the next one, and not what the default would choose."""
    start_worker("test", "--nworkers", "2")
    queue.wait_for_workers(2, timeout=90)
    log = tmp_path / "log"
    queue.foreach(slow_note, 80, [log] * 80, get_task=REVERSED)
    assert set(order_of(log)[:40]) <= set(range(20, 80))


def slow_note(i: int, log: Path) -> int:
    """Do so, and take 10 ms."""
    time.sleep(0.01)
    return note(i, log)


class SlowList(list[int]):
    """Takes its time to give an item."""

    def __iter__(self) -> Iterator[int]:
        for item in super().__iter__():
            time.sleep(0.005)
            yield item


def test_a_policy_sees_a_loop_whole_though_it_is_drawn_slowly(one: Queue, tmp_path: Path) -> None:
    """Without one the first iterations would be sent at once; with a generator they still are."""
    log = tmp_path / "log"
    one.foreach(note, SlowList(range(40)), [log] * 40, get_task=REVERSED, chunk_size=1)
    assert order_of(log) == list(range(39, -1, -1))
    slowly = iter(SlowList(range(40)))
    got = one.foreach(note, slowly, [log] * 40, get_task=REVERSED, chunk_size=1)
    assert got == list(range(40))
    assert order_of(log)[40] == 0


def test_a_policy_decides_which_task_of_a_graph_comes_next(one: Queue, tmp_path: Path) -> None:
    """By `get`, by `compute`, of what is ready then."""
    log = tmp_path / "log"
    first = [dask.delayed(note)(i, log, dask_key_name=f"a{i}") for i in range(4)]
    last = dask.delayed(sum)(first)
    by_key = (
        "local order = {} for _, key in ipairs({'a2', 'a0', 'a3', 'a1'}) do "
        "for i, one in ipairs(candidates) do "
        "if one.key == key then order[#order + 1] = i end end end "
        "if #order == 0 then return {1} end return order"
    )
    assert last.compute(scheduler=one.get, get_task=by_key, chunk_size=1) == 6
    assert order_of(log) == [2, 0, 3, 1]
    log.unlink()
    assert one.compute(last, get_task=by_key, chunk_size=1).result(60) == 6
    assert order_of(log) == [2, 0, 3, 1]


def test_a_policy_sees_priorities_and_tags(one: Queue, tmp_path: Path) -> None:
    """Those that are annotated, of tasks that Dask would run in another order."""
    log = tmp_path / "log"
    plain = [dask.delayed(note)(i, log) for i in range(3)]
    with dask.annotate(priority=-3):
        low = dask.delayed(note)(7, log)
    with dask.annotate(workers=redisq.get_tag()):
        tagged = dask.delayed(note)(8, log)
    rank = (
        "local best = 1 for i, one in ipairs(candidates) do "
        "if one.priority < candidates[best].priority then best = i end end "
        "for i, one in ipairs(candidates) do if one.tag == tags[1] then best = i end end "
        "return {best}"
    )
    dask.compute(*plain, low, tagged, scheduler=one.get, get_task=rank, chunk_size=1)
    assert order_of(log)[:2] == [8, 7]


def test_largest_first_begins_with_the_largest_input(one: Queue, tmp_path: Path) -> None:
    """As it lies on the server, inside of the job or scattered."""
    log = tmp_path / "log"
    sizes = [3, 200_000, 40, 70_000, 9_000]
    tables = [one.scatter(bytes(size)) for size in sizes]
    one.foreach(note_size, tables, [log] * 5, get_task=policies.largest_first, chunk_size=1)
    assert order_of(log) == sorted(sizes, reverse=True)
    log.unlink()
    made = [dask.delayed(bytes)(size) for size in sizes]
    gate = dask.delayed(lambda *_: None)(*made)
    used = [dask.delayed(note_size)(data, log, gate) for data in made]
    dask.compute(*used, scheduler=one.get, get_task=policies.largest_first, chunk_size=1)
    assert order_of(log) == sorted(sizes, reverse=True)


def note_size(data: bytes, log: Path, _: Any = None) -> None:
    """Write down how large it is."""
    note(len(data), log)


#: What slots have in memory, as in Listing 11.
_chunks: dict[int, float] = {}


def chunk_sum(j: int, wait: Path) -> tuple[int, bool, float]:
    """Listing 11: read a chunk of the data, keep it, and say so by the slot's tag.

    Both at a time: else the slot that is first would do both, before the other one is awake.
    """
    (wait / str(j)).touch()
    wait_until(lambda: len(list(wait.iterdir())) >= 2, 20)
    if j in _chunks:
        return os.getpid(), True, _chunks[j]
    redisq.set_tag(str(j))
    _chunks[j] = sum(map(float, redisq.get_redis().lrange(f"A{j}", 0, -1)))
    return os.getpid(), False, _chunks[j]


def test_listings_10_to_14_the_second_run_moves_no_data(
    queue: Queue, start_worker: Callable[..., WorkerProcess], link: Link, tmp_path: Path
) -> None:
    """Each slot is given the chunk that it has; a slot that is gone is made good by the others."""
    start_worker("test", "--nworkers", "2")
    for j in range(2):
        link.command("RPUSH", f"A{j}", *range(50 * j, 50 * j + 50))

    def run() -> list[tuple[int, bool, float]]:
        both = Path(mkdtemp(dir=tmp_path))
        found: list[tuple[int, bool, float]] = queue.foreach(
            chunk_sum, 2, [both] * 2, get_task=policies.by_tag, chunk_size=1
        )
        assert [total for _, _, total in found] == [1225.0, 3725.0]
        return found

    first = run()
    assert [cached for _, cached, _ in first] == [False, False]
    for _ in range(5):
        again = run()
        assert [cached for _, cached, _ in again] == [True, True]
        assert [pid for pid, _, _ in again] == [pid for pid, _, _ in first]
    os.kill(first[0][0], signal.SIGKILL)
    third = run()
    assert third[1][0] in {first[1][0], third[0][0]}
    start_worker("test", "--nworkers", "1")
    queue.wait_for_workers(3, timeout=90)
    run()


# What is wrong with it.


@pytest.fixture
def soon_busy(link: Link) -> Iterator[None]:
    """Let the server say after 0.3 s that it is busy; it allows nobody to kill a script before."""
    link.command("CONFIG", "SET", "busy-reply-threshold", 300)
    yield
    link.command("CONFIG", "SET", "busy-reply-threshold", 5000)


@pytest.mark.usefixtures("soon_busy")
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("return {", "expected near|unexpected symbol"),
        ("end os.exit() do", "expected near"),
        ("while true do end", "it does not end"),
        ("while #candidates > 0 do end", "it does not end"),
    ],
)
def test_a_policy_is_checked_before_anything_is_sent(
    queue: Queue, link: Link, text: str, why: str
) -> None:
    """By the server's own compiler; one that never ends is killed, and the server goes on."""
    with pytest.raises(ValueError, match=why):
        queue.get({"x": (sum, [1, 2])}, "x", get_task=text)
    with pytest.raises(ValueError, match="get_task is the body of a function in Lua"):
        queue.foreach(abs, 3, get_task="return {")
    assert link.command("KEYS", "*:job:*") == []


def test_a_policy_is_text(queue: Queue) -> None:
    """Not a function, say."""
    with pytest.raises(TypeError, match="get_task is text, the body of a function in Lua"):
        queue.foreach(abs, 3, get_task=len)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("error('not today')", "failed: get_task:1: not today"),
        ("return redis.call('FLUSHALL')", "failed: .*redis"),
        ("return 'all'", "failed: it returned a string, not an array of positions"),
        ("return {}", "chose none"),
        ("return {0, 1000, 'x'}", "chose none"),
    ],
)
def test_a_policy_that_fails_costs_a_warning_and_no_result(
    queue: Queue, workers: WorkerProcess, text: str, why: str
) -> None:
    """The default chooses; the client is told, once."""
    with pytest.warns(RuntimeWarning, match=why) as told:
        assert queue.foreach(abs, 20, get_task=text, chunk_size=1) == list(range(20))
    assert len(told) == 1


@pytest.mark.usefixtures("soon_busy")
def test_a_policy_that_does_not_end_is_stopped_and_asked_no_more(one: Queue) -> None:
    """It holds the server up for as long as Redis lets it; then the default chooses."""
    started = time.monotonic()
    with pytest.warns(RuntimeWarning, match="did not end, and is not asked again"):
        assert one.foreach(abs, 20, get_task=ENDLESS, chunk_size=1) == list(range(20))
    assert time.monotonic() - started < 8


@pytest.mark.usefixtures("soon_busy")
def test_a_policy_without_end_whose_caller_is_gone_is_stopped_by_the_client(
    queue: Queue, link: Link
) -> None:
    """Its slot was killed while it asked; the job's client hears that the server is busy.

    Once its own blocking call, whose answer does not come, is given up after 15 s.
    """
    future = queue.compute(dask.delayed(abs)(-1), get_task=REVERSED)
    with ThreadPoolExecutor(1) as pool, closing(Link(link.url)) as other:
        waits = pool.submit(future.result, 60)
        wait_until(lambda: b"cmd=blpop" in link.command("CLIENT", "LIST"))
        gone = Link(link.url)
        gone.connect()
        gone.send("EVAL", "#!lua flags=no-writes\nwhile true do end", 0)
        gone.close()
        started = time.monotonic()
        other.command("PING")  # as a client that knows of no policy it waits
        assert 0.2 < time.monotonic() - started < 25
        future.cancel()
        with pytest.raises(redisq.JobCancelled):
            waits.result()


def test_what_a_policy_never_wishes_is_computed(one: Queue, tmp_path: Path) -> None:
    """It leaves out what is odd for as long as there is something else, and then for ever."""
    log = tmp_path / "log"
    even = (
        "local order = {} for i, one in ipairs(candidates) do "
        "if one.task % 2 == 0 then order[#order + 1] = i end end return order"
    )
    with pytest.warns(RuntimeWarning, match="chose none"):
        got = one.foreach(note, 10, [log] * 10, get_task=even, chunk_size=1)
    assert got == list(range(10))
    assert order_of(log) == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]


def test_a_job_with_a_policy_leaves_nothing_behind(one: Queue, link: Link) -> None:
    """What was stored of its tasks is swept with it."""
    assert one.foreach(abs, 300, get_task=REVERSED) == list(range(300))
    wait_until(lambda: not one.jobs())
    names = [name for name in link.command("KEYS", Keys("test").pattern()) if b":job:" in name]
    assert names == []


def test_retries_deaths_and_lost_slots_are_the_engines_and_no_policys(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """A task kills its slot, another raises, under a policy: each runs again."""
    got = queue.foreach(
        stumble, 6, [tmp_path] * 6, get_task=REVERSED, retries=1, allowed_failures=3, chunk_size=2
    )
    assert got == list(range(6))


def stumble(i: int, folder: Path) -> int:
    """Kill the process, or raise, the first time."""
    mark = folder / str(i)
    if i in (2, 4) and not mark.exists():
        mark.touch()
        if i == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("the first time")
    return i
