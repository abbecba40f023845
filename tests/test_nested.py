"""A task that computes, on threads or on its queue; computing from threads, and after a fork."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import dask.array as da
import joblib
import psutil
import pytest
from conftest import WorkerProcess, wait_until
from dask.base import collections_to_expr
from dask.utils_test import inc

import dask_redisq as redisq
from dask_redisq import dask_input, scheduler, serving
from dask_redisq.joblib import register_redisq
from dask_redisq.page import Page
from dask_redisq.queue import Queue


def deep(levels: int) -> list[int]:
    """Return the process of this task, and of a task within it, and so on."""
    here = [os.getpid()]
    if levels == 0:
        return here
    inner: tuple[list[int]] = dask.compute(dask.delayed(deep)(levels - 1), scheduler=redisq.get)
    return here + inner[0]


def by_default() -> tuple[int, int, bool]:
    """Compute inside a task, and tell where that ran."""
    where = dask.delayed(lambda: (os.getpid(), threading.get_ident()))()
    (pid, thread), _ = dask.compute(where, dask.delayed(inc)(1))
    return os.getpid(), pid, thread != threading.get_ident()


def wait_within(gate: Path) -> int:
    """Wait in a nested job for a file."""
    from test_persist import wait_file

    return int(dask.delayed(wait_file)(gate, 3).compute(scheduler=redisq.get))


def compute_under_lock(number: int) -> int:
    """Hold the lock of all these tasks, and compute."""
    with redisq.Lock("theirs"):
        return int(dask.delayed(inc)(number).compute(scheduler=redisq.get))


def steps_within(folder: Path) -> int:
    """Compute in a nested job, wait for a file, and compute again."""
    from test_persist import wait_file

    one = dask.delayed(inc)(0).compute(scheduler=redisq.get)
    (folder / "begun").touch()
    two = dask.delayed(wait_file)(folder / "gate", one + 1)
    return int(dask.delayed(inc)(two).compute(scheduler=redisq.get))


def wait_for_gate(folder: Path) -> int:
    """Leave the process's number, and wait in a nested job for a file."""
    (folder / f"pid{os.getpid()}").touch()
    return wait_within(folder / "gate")


def open_gate(gate: Path) -> int:
    """Make the file."""
    gate.touch()
    return 4


def add_up(n: int) -> int:
    """Sum numbers by a nested job."""
    parts = [dask.delayed(inc)(i) for i in range(n)]
    return int(dask.delayed(sum)(parts).compute(scheduler=redisq.get))


def one_slot(queue: Queue, start_worker: Callable[..., WorkerProcess]) -> WorkerProcess:
    """Start a worker with one slot."""
    worker = start_worker("test", "--nworkers", "1")
    queue.wait_for_workers(1, timeout=90)
    return worker


def test_depth_three_on_one_slot_ends(
    queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """Each level waits for the next one, which a stand-in runs."""
    worker = one_slot(queue, start_worker)
    (pids,) = dask.compute(dask.delayed(deep)(3), scheduler=queue.get)
    assert len(set(pids)) == 4, "they ran in one process"
    wait_until(lambda: len(worker.slots()) == 1)
    assert dask.compute(dask.delayed(inc)(1), scheduler=queue.get) == (2,)


def test_beyond_the_most_of_stand_ins_a_task_does_the_work_itself(
    queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """Nine levels on one slot: five processes, and the rest in the last of them."""
    one_slot(queue, start_worker)
    (pids,) = dask.compute(dask.delayed(deep)(9), scheduler=queue.get)
    assert len(pids) == 10
    assert len(set(pids)) == 5


def test_tasks_compute_while_they_hold_the_lock_that_others_wait_for(
    queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """Who stands in for one takes what that computes, not the next that waits for the lock."""
    start_worker("test", "--nworkers", "1")
    many = [dask.delayed(compute_under_lock)(i) for i in range(9)]
    assert dask.compute(*many, scheduler=queue.get, chunk_size=1) == tuple(range(1, 10))


def test_what_waits_behind_a_nested_compute_is_given_back(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """The one waits for the other, in one lease, and the nested task has the other slot."""
    gate = tmp_path / "gate"
    first, second = dask.delayed(wait_within)(gate), dask.delayed(open_gate)(gate)
    done = dask.compute(first, second, scheduler=queue.get, chunk_size=2)
    assert done == (3, 4)


def test_many_nested_computes_take_few_processes(queue: Queue, workers: WorkerProcess) -> None:
    """Twenty tasks that wait, on two slots: at most four stand-ins."""
    most = 0

    def look() -> None:
        nonlocal most
        while not over.wait(0.02):
            most = max(most, len(workers.slots()))

    over = threading.Event()
    watch = threading.Thread(target=look)
    watch.start()
    try:
        done = dask.compute(*[dask.delayed(add_up)(n) for n in range(20)], scheduler=queue.get)
    finally:
        over.set()
        watch.join()
    assert done == tuple(sum(range(1, n + 1)) for n in range(20))
    assert 2 < most <= 6


def test_a_compute_inside_a_task_takes_threads_by_default(
    queue: Queue, workers: WorkerProcess
) -> None:
    """As in Dask's processes: in the same process, on another thread."""
    ((task, nested, other_thread),) = dask.compute(dask.delayed(by_default)(), scheduler=queue.get)
    assert task == nested
    assert other_thread


def test_a_persisted_collection_is_waited_for_in_a_task(
    queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """On one slot."""
    one_slot(queue, start_worker)

    def persists() -> int:
        x = dask.delayed(inc)(1).persist(scheduler=redisq.get)
        return int(redisq.futures_of(x)[0].result() + x.compute(scheduler=redisq.get))

    assert dask.compute(dask.delayed(persists)(), scheduler=queue.get) == (4,)


def by_future(n: int) -> int:
    """Wait for a future in a task, and for another one by `wait`."""
    queue = redisq.Queue()
    first = queue.compute(dask.delayed(inc)(n))
    second = queue.compute(dask.delayed(inc)(n + 1))
    redisq.wait([second])
    return int(first.result() + second.result())


def test_futures_are_waited_for_in_tasks(
    queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """Ten on one slot: what they wait for goes before others that would wait, too."""
    one_slot(queue, start_worker)
    done = dask.compute(*[dask.delayed(by_future)(i) for i in range(10)], scheduler=queue.get)
    assert done == tuple(2 * i + 3 for i in range(10))


def persist_and_use(n: int) -> int:
    """Persist a value in a task, and use it in a nested job."""
    x = dask.delayed(inc)(n).persist(scheduler=redisq.get)
    redisq.wait(redisq.futures_of(x))
    return int(dask.delayed(inc)(x).compute(scheduler=redisq.get))


def test_persisted_values_are_known_where_a_task_does_the_work_itself(
    queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """Ten on one slot: beyond the stand-ins some compute in place."""
    one_slot(queue, start_worker)
    done = dask.compute(*[dask.delayed(persist_and_use)(i) for i in range(10)], scheduler=queue.get)
    assert done == tuple(i + 2 for i in range(10))


def by_executor(n: int) -> int:
    """Call two functions on the queue of this task, by an executor, and wait for the results."""
    with redisq.Executor() as executor:
        first, second = executor.submit(inc, n), executor.submit(inc, n + 1)
        concurrent.futures.wait([second])
        return int(first.result() + second.result())


def by_shutdown(folder: Path) -> int:
    """Wait for the calls of an executor at the end of its block, as one does for their effects."""
    with redisq.Executor() as executor:
        executor.submit((folder / "called").touch)
    return len(list(folder.iterdir()))


def by_joblib() -> list[int]:
    """Have joblib's calls run on the queue of this task."""
    register_redisq()
    with joblib.parallel_config(backend="redisq"):
        found: list[int] = joblib.Parallel()(joblib.delayed(inc)(i) for i in range(5))
    return found


def test_a_task_waits_for_an_executor_on_its_own_queue(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """However it waits, on one slot; six at a time, more than computes have stand-ins."""
    one_slot(queue, start_worker)
    words = {"scheduler": queue.get, "timeout": 60}
    assert dask.delayed(by_executor)(1).compute(**words) == 5
    assert dask.delayed(by_shutdown)(tmp_path).compute(**words) == 1
    assert dask.delayed(by_joblib)().compute(**words) == [1, 2, 3, 4, 5]
    done = dask.compute(*[dask.delayed(by_executor)(i) for i in range(6)], **words)
    assert done == tuple(2 * i + 3 for i in range(6))


def test_the_calls_of_a_task_end_with_its_job(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """In the same moment; not when the lease of their client, a slot that is killed, is over."""
    one_slot(queue, start_worker)
    future = queue.compute(dask.delayed(call_for_ever)(tmp_path))
    wait_until((tmp_path / "called").exists)
    future.cancel()
    assert [row["state"] for row in queue.jobs() if row["state"] == "running"] == []


def call_for_ever(folder: Path) -> None:
    """Wait for a call that does not end."""

    def stay() -> None:
        (folder / "called").touch()
        time.sleep(1000)

    redisq.Executor().submit(stay).result()


def test_calls_of_a_task_that_no_slot_is_free_for_fail(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They say why, and what to do; the task would wait for itself for ever."""
    page = Page()
    monkeypatch.setattr(serving, "_served", {(queue.url, "test")})
    monkeypatch.setattr(serving, "_page", page)
    monkeypatch.setattr(serving, "_supervisor", os.getpid())
    before = signal.signal(signal.SIGCHLD, lambda *_: page.answer_wait(granted=False))
    try:
        with redisq.Executor(queue) as executor:
            calls = [executor.submit(inc, i) for i in range(2)]
            errors = [call.exception(30) for call in calls]
    finally:
        signal.signal(signal.SIGCHLD, before)
        page.close()
    assert [type(error) for error in errors] == [redisq.RedisqError] * 2
    assert "start more workers" in str(errors[0])
    assert queue.jobs() == []


def test_a_task_whose_slot_dies_as_it_waits_computes_again(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """What it had submitted is nobody's; what it submits now is its answer."""
    worker = one_slot(queue, start_worker)
    future = queue.compute(dask.delayed(wait_for_gate)(tmp_path))
    wait_until(lambda: len(worker.slots()) == 2)
    (first,) = tmp_path.glob("pid*")
    os.kill(int(first.name.removeprefix("pid")), signal.SIGKILL)
    wait_until(lambda: len(list(tmp_path.glob("pid*"))) == 2)
    (tmp_path / "gate").touch()
    assert future.result(60) == 3
    wait_until(lambda: len(worker.slots()) == 1)


def many_slow(folder: Path) -> None:
    """Compute 400 tasks of 50 ms in a nested job, each of which leaves a mark."""
    parts = [dask.delayed(mark)(folder, i) for i in range(400)]
    dask.compute(*parts, scheduler=redisq.get)


def mark(folder: Path, i: int) -> None:
    """Leave a mark, and take a while."""
    (folder / f"mark{i}").touch()
    time.sleep(0.05)


def test_the_job_of_a_task_ends_soon_after_that_was_cancelled(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Its client is the slot, which is killed."""
    start_worker("test", "--nworkers", "1", "--alive-expiry", "2")
    queue.wait_for_workers(1, timeout=90)
    future = queue.compute(dask.delayed(many_slow)(tmp_path), ft_interval=1)
    wait_until(lambda: len(list(tmp_path.glob("mark*"))) > 3)
    future.cancel()
    wait_until(lambda: not queue.stats()["running"], timeout=13)
    assert len(list(tmp_path.glob("mark*"))) < 300


# From threads, and after a fork.


@contextmanager
def held_elsewhere(lock: threading.Lock) -> Iterator[None]:
    """Have another thread hold a lock."""
    begun, over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            begun.set()
            over.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert begun.wait(10)
        yield
    finally:
        over.set()
        thread.join()


def forked(do: Callable[[], Any]) -> int:
    """Return how a forked child ended that did something: 0 if that ended well, and in time."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(5)
            do()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_many_threads_compute_at_once(queue: Queue, workers: WorkerProcess) -> None:
    """Each gets its own answer."""
    answers: dict[int, Any] = {}

    def run(n: int) -> None:
        parts = [dask.delayed(inc)(n + i) for i in range(10)]
        answers[n] = dask.delayed(sum)(parts).compute(scheduler=queue.get)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {n: 10 * n + 55 for n in range(16)}


def test_a_forked_child_computes(queue: Queue, workers: WorkerProcess) -> None:
    """On connections of its own, while its parent does."""
    assert dask.delayed(inc)(1).compute(scheduler=queue.get) == 2
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = dask.delayed(inc)(41).compute(scheduler=queue.get) - 42
        finally:
            os._exit(code)
    assert dask.delayed(inc)(2).compute(scheduler=queue.get) == 3
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("lock", ["_unfused", "_queues_lock", "Pool._lock"])
def test_a_child_that_was_forked_while_a_lock_was_held_goes_on(queue: Queue, lock: str) -> None:
    """By another thread, which the child does not have: nobody would release it there."""
    with dask.annotate(priority=1):
        expr = collections_to_expr([da.ones(4, chunks=2).sum()])
    held: dict[str, tuple[Any, Callable[[], Any]]] = {
        "_unfused": (dask_input._unfused, lambda: dask_input.plain_graph(expr, ["x"])),
        "_queues_lock": (
            scheduler._queues_lock,
            lambda: scheduler.default_queue("test", queue.url),
        ),
        "Pool._lock": (queue.pool._lock, queue.stats),
    }
    taken, go_on = held[lock]
    with held_elsewhere(taken):
        assert forked(go_on) == 0
    go_on()


def compute_in_a_child() -> int:
    """Compute in a child that was forked while another thread asked for a stand-in."""
    with held_elsewhere(serving._lock):
        return forked(lambda: dask.delayed(inc)(1).compute(scheduler=redisq.get))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_of_a_task_computes_though_it_was_forked_while_a_stand_in_was_asked_for(
    queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """On its own queue; the thread that asked, and held a lock for it, is not in the child."""
    one_slot(queue, start_worker)
    assert dask.delayed(compute_in_a_child)().compute(scheduler=queue.get) == 0


def test_a_child_has_the_setting_back_that_a_thread_of_its_parent_had_changed() -> None:
    """Fusion is off while a graph with annotations is made: in the child it is on again."""
    inside, over = threading.Event(), threading.Event()

    class Slow:
        operands = (
            SimpleNamespace(hlg=SimpleNamespace(layers={"x": SimpleNamespace(annotations=[1])})),
        )

        def __dask_graph__(self) -> dict[str, int]:
            inside.set()
            over.wait(30)
            return {}

        def __dask_annotations__(self) -> dict[str, int]:
            return {}

    def fuses() -> None:
        assert dask.config.get("optimization.fuse.active", None) == before

    before = dask.config.get("optimization.fuse.active", None)
    thread = threading.Thread(target=dask_input.plain_graph, args=(Slow(), []))
    thread.start()
    try:
        assert inside.wait(10)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads
            assert forked(fuses) == 0
    finally:
        over.set()
        thread.join()
    fuses()


def test_a_worker_that_drains_runs_what_its_tasks_wait_for(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Else it would never end: nobody else is there to run it."""
    worker = one_slot(queue, start_worker)
    future = queue.compute(dask.delayed(steps_within)(tmp_path))
    wait_until((tmp_path / "begun").exists)
    worker.process.terminate()
    (tmp_path / "gate").touch()
    assert future.result(60) == 3
    assert worker.wait() == 0


def test_a_stand_in_ends_with_its_worker(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """It is a slot like the others."""
    worker = one_slot(queue, start_worker)
    future = queue.compute(dask.delayed(wait_within)(tmp_path / "never"))
    wait_until(lambda: len(worker.slots()) == 2)
    slots = worker.slots()
    future.cancel()
    psutil.Process(worker.pid).kill()
    worker.wait()
    wait_until(lambda: not any(p.is_running() and p.status() != "zombie" for p in slots))
