"""What loops cost: foreach and joblib against peers, a pool that grows, memory that does not."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from operator import neg

import dask
import joblib
import psutil

import dask_redisq
from benchmarks.report import Figure
from benchmarks.shapes import bag
from benchmarks.tasks import inc
from dask_redisq.joblib import register_redisq

BAR_FOREACH, BAR_CHUNK_1_US, BAR_JOBLIB = 1.3, 150.0, 1.0
BAR_GROWTH, BAR_MEMORY_MB = 2.8, 20.0
#: Seconds of each of the tasks that a growing pool runs, and slots at first and later.
NAP, FEW, MORE = 0.02, 2, 4


def foreach(queue: dask_redisq.Queue, tasks: int, repeat: int) -> list[Figure]:
    """Measure empty iterations, against `dask.get` on the same tasks, and one by one."""
    ratios, each = [], []
    graph = bag(tasks)
    queue.foreach(inc, tasks)
    for _ in range(repeat):
        loop = _seconds(lambda: queue.foreach(inc, tasks))
        ratios.append(loop / _seconds(lambda: dask.get(graph.dsk, graph.keys)))
        few = tasks // 10
        each.append(_seconds(partial(queue.foreach, inc, few, chunk_size=1)) / few * 1e6)
    return [
        Figure(f"foreach, {tasks:,} empty / sync", statistics.median(ratios), "x", BAR_FOREACH),
        Figure(
            f"foreach, {tasks // 10:,} empty, chunk 1", statistics.median(each), "us each",
            BAR_CHUNK_1_US,
        ),
    ]  # fmt: skip


def joblib_calls(queue: dask_redisq.Queue, calls: int, repeat: int) -> list[Figure]:
    """Measure joblib on empty calls, with our backend and with loky, 2 processes each; in turns."""
    register_redisq()
    times: dict[str, list[float]] = {"redisq": [], "loky": []}
    # Both have what they had before: processes, or connections.
    options: dict[str, dict[str, object]] = {"redisq": {"queue": queue}, "loky": {}}
    for i in range(repeat + 1):
        for backend, found in times.items():
            with joblib.parallel_config(backend, **options[backend]):
                taken = _seconds(partial(_negate, calls))
            if i > 0:  # the first one starts loky's processes
                found.append(taken)
    medians = {backend: statistics.median(found) for backend, found in times.items()}
    return [
        Figure(
            f"joblib, {calls:,} empty calls, redisq / loky", medians["redisq"] / medians["loky"],
            "x", BAR_JOBLIB,
        ),
        Figure("loky", medians["loky"] / calls * 1e6, "us each"),
    ]  # fmt: skip


def _negate(calls: int) -> object:
    return joblib.Parallel(n_jobs=2)(joblib.delayed(neg)(i) for i in range(calls))


def memory(queue: dask_redisq.Queue, items: int) -> list[Figure]:
    """Measure how the client grows while a loop sums what a generator gives."""
    process = psutil.Process()

    def numbers(n: int) -> Iterator[int]:
        yield from range(n)

    # Not the first windows: what is under way at a time is as much after a tenth.
    queue.foreach(neg, numbers(items // 10), combine=sum, multicombine=True)
    before, most, done = process.memory_info().rss, 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.05):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    total = queue.foreach(neg, numbers(items), combine=sum, multicombine=True)
    done.set()
    watcher.join()
    if total != -sum(range(items)):
        msg = f"the sum came back as {total}"
        raise ValueError(msg)
    grown = max(0.0, (most - before) / 1e6)
    return [Figure(f"client's growth, generator of {items:,}", grown, "MB", BAR_MEMORY_MB)]


def elastic(tasks: int) -> list[Figure]:
    """Measure the rate of sleeping tasks with two slots, and once the sixth is registered."""
    with dask_redisq.LocalCluster(n_workers=FEW, queue="grows") as cluster:
        queue = dask_redisq.Queue("grows", cluster.url)
        loop = threading.Thread(target=lambda: queue.foreach(time.sleep, [NAP] * tasks))
        loop.start()
        time.sleep(1.0)
        before = _rate(queue, 3.0)
        with closing(dask_redisq.start_local_workers(MORE, queue="grows", url=cluster.url)):
            queue.wait_for_workers(FEW + MORE)
            after = _rate(queue, 3.0)
            loop.join()
    figures = [Figure(f"rate of {FEW} slots", before, "tasks/s")]
    grown = f"{FEW + MORE} slots / {FEW}, from the registration of the last on"
    return [*figures, Figure(grown, after / before, "x", BAR_GROWTH, at_least=True)]


def _rate(queue: dask_redisq.Queue, seconds: float) -> float:
    first, started = queue.stats()["finished"], time.perf_counter()
    time.sleep(seconds)
    return (queue.stats()["finished"] - first) / (time.perf_counter() - started)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
