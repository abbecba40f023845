"""`concurrent.futures` on the workers."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import operator
import os
import random
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import pytest
from conftest import wait_until
from test_foreach import script

import dask_redisq as redisq
from dask_redisq.body import Setup, catching, forget_setup
from dask_redisq.sending import LEAST
from dask_redisq.stream import CallJob


@pytest.fixture(scope="module")
def cluster() -> Iterator[redisq.LocalCluster]:
    """A server and two slots for the module."""
    with redisq.LocalCluster(n_workers=2, queue="test") as running:
        yield running


@pytest.fixture
def executor(cluster: redisq.LocalCluster) -> Iterator[redisq.Executor]:
    """An executor; no job is left when it is shut down."""
    with redisq.Executor("test", cluster.url) as running:
        yield running
    gc.collect()  # the traceback of an error may hold scattered data, in a cycle
    wait_until(lambda: running.queue.jobs() == [])
    running.queue.close()


def seven(i: int) -> int:
    """Raise for seven."""
    if i == 7:
        raise LookupError("seven")
    return i


def test_calls_run_on_workers(executor: redisq.Executor) -> None:
    """By position and by name, in other processes than this one."""
    assert executor.submit(divmod, 17, 5).result(60) == (3, 2)
    assert executor.submit(sorted, [1, 3, 2], reverse=True).result(60) == [3, 2, 1]
    assert executor.submit(os.getpid).result(60) != os.getpid()
    assert executor.submit(lambda: None).result(60) is None


def test_a_method_of_the_global_generator_draws_on_the_worker(executor: redisq.Executor) -> None:
    """A copy of this process's would give each call the same number."""
    calls = [executor.submit(random.random) for _ in range(20)]
    assert len({call.result(60) for call in calls}) == 20


def test_a_keyword_that_there_is_not_is_refused() -> None:
    """With the one that may be meant: ignored, the calls would run otherwise."""
    with pytest.raises(TypeError, match="no keyword 'retrys': did you mean 'retries'"):
        redisq.Executor(url="unix:///nowhere", retrys=1)
    with pytest.raises(TypeError, match="no keyword 'max_worker': did you mean 'max_workers'"):
        redisq.Executor(url="unix:///nowhere", max_worker=1)


def test_each_error_is_that_of_its_call(executor: redisq.Executor) -> None:
    """Also where the process dies, or the result does not pickle; the others have their results."""
    calls = [executor.submit(seven, i) for i in range(10)]
    died = executor.submit(os._exit, 3)
    stays = executor.submit(threading.Lock)
    assert [f.result(60) for f in calls if f is not calls[7]] == [*range(7), 8, 9]
    with pytest.raises(LookupError, match="seven"):
        calls[7].result(60)
    with pytest.raises(redisq.WorkerDied):
        died.result(60)
    with pytest.raises(redisq.TaskNotSerializable):
        stays.result(60)


@pytest.mark.parametrize("chunksize", [1, 7])
def test_map_gives_results_in_order(executor: redisq.Executor, chunksize: int) -> None:
    """As that of the standard library; errors come where they belong."""
    found = executor.map(pow, range(100), itertools.repeat(2), chunksize=chunksize)
    assert list(found) == [i * i for i in range(100)]
    some = executor.map(seven, range(10), chunksize=1)
    assert list(itertools.islice(some, 7)) == list(range(7))
    with pytest.raises(LookupError):
        next(some)
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(abs, [1], chunksize=0)


def test_map_gives_up_after_its_timeout(executor: redisq.Executor) -> None:
    """`TimeoutError`, and what waits is cancelled."""
    with pytest.raises(TimeoutError):
        list(executor.map(time.sleep, [3] + [0.01] * 10, timeout=0.5))


def test_what_was_not_sent_can_be_cancelled(executor: redisq.Executor) -> None:
    """Few are sent ahead of the slots."""
    futures = [executor.submit(time.sleep, 0.2) for _ in range(40)]
    wait_until(lambda: futures[0].running() or futures[0].done())
    cancelled = [future for future in reversed(futures) if future.cancel()]
    assert len(cancelled) > 20
    _, not_done = concurrent.futures.wait(futures, timeout=30)
    assert not not_done
    assert all(future.cancelled() for future in cancelled)


def test_shutdown_takes_no_more_and_cancels_what_waits(cluster: redisq.LocalCluster) -> None:
    """With `cancel_futures`; what runs is waited for."""
    executor = redisq.Executor("test", cluster.url)
    futures = [executor.submit(time.sleep, 0.1) for _ in range(40)]
    executor.shutdown(wait=True, cancel_futures=True)
    assert all(future.done() for future in futures)
    assert sum(future.cancelled() for future in futures) > 20
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)
    executor.shutdown()
    executor.queue.close()


def test_an_abort_ends_what_runs(cluster: redisq.LocalCluster) -> None:
    """Its future fails, within seconds and not after a minute."""
    executor = redisq.Executor("test", cluster.url)
    future = executor.submit(time.sleep, 60)
    wait_until(lambda: executor.queue.stats()["running"] == 1)
    executor.abort("enough")
    with pytest.raises(redisq.JobCancelled, match="enough"):
        future.result(60)
    executor.shutdown()
    executor.queue.close()


class _Slow:
    """Takes as long to pickle as `gate` is closed."""

    reached, gate = threading.Event(), threading.Event()

    def __reduce__(self) -> Any:
        self.reached.set()
        assert self.gate.wait(60)
        return int, (60,)


def _abort_meanwhile(executor: redisq.Executor, future: Any, held: Any) -> None:
    """Abort while a call is where `held` holds it."""
    assert held.reached.wait(60)
    executor.abort("enough")
    held.gate.set()
    with pytest.raises(redisq.JobCancelled, match="enough"):
        future.result(60)
    executor.shutdown()
    executor.queue.close()


def test_an_abort_ends_what_is_on_its_way(cluster: redisq.LocalCluster) -> None:
    """A job that is being submitted has no name yet that could be cancelled."""
    executor = redisq.Executor("test", cluster.url)
    _abort_meanwhile(executor, executor.submit(time.sleep, _Slow()), _Slow)


class _Late(redisq.Executor):
    """Its threads begin when `gate` opens."""

    reached, gate = threading.Event(), threading.Event()

    def _follow(self, work: Any) -> None:
        self.reached.set()
        assert self.gate.wait(60)
        super()._follow(work)


def test_an_abort_ends_what_a_thread_was_just_started_for(cluster: redisq.LocalCluster) -> None:
    """The calls wait no more, and the thread has not made its first step."""
    executor = _Late("test", cluster.url)
    _abort_meanwhile(executor, executor.submit(time.sleep, 60), _Late)


def test_no_more_calls_run_at_a_time_than_max_workers(
    cluster: redisq.LocalCluster, tmp_path: Path
) -> None:
    """Fewer than there are slots."""

    def at_once(log: Path) -> int:
        mine = log / str(time.monotonic_ns())
        mine.touch()
        time.sleep(0.05)
        found = len(list(log.iterdir()))
        mine.unlink()
        return found

    with redisq.Executor("test", cluster.url, max_workers=1) as executor:
        assert set(executor.map(at_once, [tmp_path] * 6)) == {1}
        executor.queue.close()
    with pytest.raises(ValueError, match="max_workers"):
        redisq.Executor("test", cluster.url, max_workers=0)


def test_an_initializer_can_be_called() -> None:
    """As in the standard library it is looked at at once."""
    with pytest.raises(TypeError, match="initializer is a function, not 3"):
        redisq.Executor("test", initializer=3)  # type: ignore[arg-type]


def test_a_delayed_value_among_the_arguments_is_refused(executor: redisq.Executor) -> None:
    """Whatever kind of delayed it is: nothing would be computed, and nobody told."""
    for delayed in (dask.delayed(3), dask.delayed(abs)(3)):
        with pytest.raises(TypeError, match="to be persisted first"):
            executor.submit(operator.add, 1, delayed).result(60)
        with pytest.raises(TypeError, match="to be persisted first"):
            executor.queue.foreach(abs, [delayed])


def test_an_initializer_runs_once_per_slot(cluster: redisq.LocalCluster, tmp_path: Path) -> None:
    """With its arguments, before the first call there."""

    def begin(log: Path) -> None:
        with (log / str(os.getpid())).open("a") as file:
            file.write("x")

    with redisq.Executor("test", cluster.url, initializer=begin, initargs=(tmp_path,)) as executor:
        list(executor.map(abs, range(50)))
        executor.queue.close()
    assert {path.read_text() for path in tmp_path.iterdir()} == {"x"}


def test_initializers_of_several_executors_run_once_per_slot_each(
    cluster: redisq.LocalCluster, tmp_path: Path
) -> None:
    """Four of them in turns: a slot ran them again and again, and calls missed what they set."""
    names = script(
        "import os, time\n"
        "def init(k, log):\n"
        "    global M\n"
        "    M = k\n"
        "    with log.open('a') as file: file.write(f'{os.getpid()} ')\n"
        "def use(i):\n"
        "    time.sleep(0.01)\n"
        "    return M\n"
    )
    logs = [tmp_path / str(k) for k in range(4)]
    executors = [
        redisq.Executor("test", cluster.url, initializer=names["init"], initargs=(k, log))
        for k, log in enumerate(logs)
    ]
    for _ in range(3):
        asked = [(k, e.submit(names["use"], i)) for i in range(8) for k, e in enumerate(executors)]
        assert [future.result(60) for _, future in asked] == [k for k, _ in asked]
    for executor in executors:
        executor.shutdown()
        executor.queue.close()
    for log in logs:
        pids = log.read_text().split()
        assert sorted(pids) == sorted(set(pids))


def test_an_initializer_that_runs_again_in_its_names_shows_them_again() -> None:
    """Many others came between, and its block is still there: it sets what is set already."""
    init = script("def init():\n    global M\n    M = 7\n")["init"]
    setup = Setup("again", worker_init=init, kept_for=init)
    for _ in range(2):
        later = script("def use(): return M\n")["use"]
        assert catching(setup, later) == 7
        forget_setup("again")


def test_what_an_initializer_sets_is_there_for_all_calls(executor: redisq.Executor) -> None:
    """Functions of a script are read anew with each of its calls, and other names with them."""
    names = script(
        "MODEL = None\n"
        "def init(start):\n"
        "    global MODEL\n"
        "    MODEL = [start]\n"
        "def helper(i): return MODEL[0] + i\n"
        "def use(i): return helper(i)\n"
    )
    queue, init, use = executor.queue, names["init"], names["use"]
    with redisq.Executor(queue, initializer=partial(init, 8)) as mine:
        assert [mine.submit(use, i).result(60) for i in range(3)] == [8, 9, 10]
    with redisq.Executor(queue, initializer=init, initargs=(9,)) as mine:
        assert [mine.submit(use, i).result(60) for i in range(5)] == [9, 10, 11, 12, 13]
        assert list(mine.map(use, range(5), chunksize=2)) == [9, 10, 11, 12, 13]
        assert mine.submit(abs, -1).result(60) == 1
    assert names["MODEL"] is None


def test_dask_takes_it_for_a_scheduler(executor: redisq.Executor) -> None:
    """Through `dask.local.get_async`, as any executor."""
    x: Any = da.arange(1000, chunks=100)
    assert x.sum().compute(scheduler=executor) == 499_500


def test_thousands_of_small_calls_are_sent_together(executor: redisq.Executor) -> None:
    """In jobs of many: each has its result."""
    futures = [executor.submit(operator.neg, i) for i in range(5000)]
    assert [future.result(60) for future in futures] == [-i for i in range(5000)]


def opened(gate: Path) -> str:
    """Wait until a file is there."""
    wait_until(gate.exists)
    return "opened"


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many calls each job has that is submitted, while any job is taken for a brief one."""
    found: list[int] = []
    submit = CallJob.submit

    def noted(job: CallJob) -> str:
        found.append(len(job.plan))
        return submit(job)

    monkeypatch.setattr(CallJob, "submit", noted)
    monkeypatch.setattr("dask_redisq.executor.BRIEF", 600.0)
    return found


def test_calls_that_come_soon_after_others_wait_for_these(
    executor: redisq.Executor, sizes: list[int], tmp_path: Path
) -> None:
    """They go together then: a job of one costs as much as one of many."""
    first = executor.submit(opened, tmp_path / "gate")
    wait_until(lambda: sizes == [1])
    others = [executor.submit(abs, -i) for i in range(2)]
    assert sizes == [1]
    (tmp_path / "gate").touch()
    assert [one.result(60) for one in (first, *others)] == ["opened", 0, 1]
    assert sizes == [1, 2]


def test_as_many_calls_as_there_is_room_for_wait_for_nothing(
    executor: redisq.Executor, sizes: list[int], tmp_path: Path
) -> None:
    """The first one is still under way."""
    first = executor.submit(opened, tmp_path / "gate")
    wait_until(lambda: sizes == [1])
    others = []
    for i in range(LEAST):
        others.append(executor.submit(abs, -i))
        time.sleep(0.05)  # the leader looks at each, and waits again
    assert [one.result(60) for one in others[: LEAST - 1]] == list(range(LEAST - 1))
    (tmp_path / "gate").touch()
    assert first.result(60) == "opened"


def test_calls_of_another_kind_are_not_all_sent(executor: redisq.Executor, tmp_path: Path) -> None:
    """Thousands of short ones were, at a time; one call is under way all along."""
    first = executor.submit(opened, tmp_path / "gate")
    futures = [executor.submit(operator.neg, i) for i in range(3000)]
    assert futures[-1].result(60) == -2999
    concurrent.futures.wait(futures, 60)
    later = [executor.submit(opened, tmp_path / "gate") for _ in range(60)]
    time.sleep(0.5)  # none of them comes back: with the room of before all would be sent by now
    assert sum(one.cancel() for one in later) > 40
    (tmp_path / "gate").touch()
    assert first.result(60) == "opened"


class _Alone(redisq.Executor):
    """Has one thread, which begins when `gate` opens: the system has no more."""

    gate = threading.Event()

    def _start(self) -> None:
        if self._threads:
            raise RuntimeError("can't start new thread")
        super()._start()

    def _lead(self) -> Any:
        assert self.gate.wait(60)
        return super()._lead()


def test_one_thread_makes_all_jobs_if_there_can_be_no_more(cluster: redisq.LocalCluster) -> None:
    """One after the other."""
    with _Alone("test", cluster.url) as executor:
        futures = [executor.submit(operator.neg, i) for i in range(40)]
        executor.gate.set()
        assert [one.result(60) for one in futures] == [-i for i in range(40)]
    executor.queue.close()


def test_a_thread_that_cannot_lead_fails_the_calls(
    executor: redisq.Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those that come later find another one."""

    def broken() -> None:
        raise OSError("no more processes")

    with monkeypatch.context() as patched:
        patched.setattr("dask_redisq.client_lease.look", broken)
        with pytest.raises(OSError, match="no more processes"):
            executor.submit(abs, -1).result(60)
    assert executor.submit(abs, -1).result(60) == 1


def test_the_last_results_of_a_job_are_asked_for_at_once(
    executor: redisq.Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many to come there is a moment between two questions, here one without an end."""
    monkeypatch.setattr("dask_redisq.follow.PAUSE", 600.0)
    naps = [dask.delayed(after)(0.1 * i, i) for i in range(4)]
    assert dask.compute(*naps, scheduler=executor.queue.get) == (0, 1, 2, 3)


def after(seconds: float, value: int) -> int:
    """Return a value, later."""
    time.sleep(seconds)
    return value


def test_scattered_data_is_an_argument(executor: redisq.Executor) -> None:
    """By position and by name."""
    data = executor.queue.scatter([3, 1, 2])
    assert executor.submit(len, data).result(60) == 3
    assert executor.submit(sorted, data, key=operator.neg).result(60) == [3, 2, 1]
    assert list(executor.map(pow, [data] * 0, [2], chunksize=2)) == []


def item(table: list[int], i: int) -> int:
    """Return an item of scattered data."""
    return table[i]


def test_scattered_data_is_an_argument_of_chunks(executor: redisq.Executor) -> None:
    """What stands for it is not hidden in the list of a chunk, of which the last one is shorter."""
    data = executor.queue.scatter([3, 1, 2])
    assert list(executor.map(item, [data] * 3, range(3), chunksize=2)) == [3, 1, 2]


def test_a_call_that_cannot_be_sent_fails_alone(cluster: redisq.LocalCluster) -> None:
    """Those that are sent with it have their results, and each other one has its own error."""
    executor = _Together("test", cluster.url)
    lock = threading.Lock()
    broken = dask.delayed(operator.truediv)(1, 0).persist(scheduler=executor.queue.get)
    calls = [
        executor.submit(abs, -1),
        executor.submit(id, lock),
        executor.submit(abs, -2),
        executor.submit(id, lock),
        executor.submit(len, dask.delayed(list)()),
        executor.submit(abs, broken),
        executor.submit(seven, 7),
        executor.submit(abs, -3),
    ]
    _Together.gate.set()
    assert [calls[i].result(60) for i in (0, 2, 7)] == [1, 2, 3]
    for i, kind in [
        (1, redisq.TaskNotSerializable),
        (3, redisq.TaskNotSerializable),
        (4, TypeError),
        (5, ZeroDivisionError),
        (6, LookupError),
    ]:
        with pytest.raises(kind):
            calls[i].result(60)
    executor.shutdown()
    executor.queue.close()


class _Together(redisq.Executor):
    """Sends nothing until `gate` opens, then all of it."""

    gate = threading.Event()

    def _lead(self) -> Any:
        assert self.gate.wait(60)
        self._room._size = 100
        return super()._lead()


def test_no_more_calls_are_sent_than_max_workers_while_there_is_no_slot(
    cluster: redisq.LocalCluster,
) -> None:
    """Any number of slots may come, and would take what was sent."""
    with redisq.Queue("nobody", cluster.url) as queue:
        executor = redisq.Executor(queue, max_workers=1)
        futures = [executor.submit(abs, -i) for i in range(4)]
        wait_until(lambda: queue.stats()["ready"] > 0)
        assert [future.running() for future in futures] == [True, False, False, False]
        executor.abort()
        executor.shutdown()


def test_futures_of_calls_come_as_they_are_done(executor: redisq.Executor, tmp_path: Path) -> None:
    """Next to those of the queue; what is no future is told."""
    call = executor.submit(abs, -1)
    whole = executor.queue.compute(dask.delayed(abs)(-2))
    found = {future.result() for future in redisq.as_completed([call, whole], timeout=60)}
    assert found == {1, 2}
    failed, later = executor.submit(seven, 7), executor.submit(wait_file, tmp_path / "gate")
    first = redisq.wait([failed, later], timeout=60, return_when="FIRST_EXCEPTION")
    assert first.done == {failed}
    (tmp_path / "gate").touch()
    assert redisq.wait([failed, later], timeout=60).not_done == set()
    assert later.result() is None
    for not_one in (5, dask.delayed(abs)(-1)):
        with pytest.raises(TypeError, match="futures"):
            redisq.wait([not_one])


def wait_file(path: Path) -> None:
    """Return once a file is there."""
    while not path.exists():
        time.sleep(0.005)
