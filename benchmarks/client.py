"""What this project's client takes for a large array, once Dask has made the graph."""

import statistics
import time
from typing import Any
from unittest import mock

import dask.array as da

import dask_redisq
from benchmarks.report import Figure
from dask_redisq.job import Job

BAR, BAR_ALONE = 20.0, 10.0


def client(queue: dask_redisq.Queue, side: int, repeat: int) -> list[Figure]:
    """Measure ``(x + x.T).sum()``, after Dask's own materialising.

    Two figures per task: the processor time of the client's thread inside ``get``; and how long
    nothing could run for its sake, before the first block is sent, and after the last answer.

    Parameters
    ----------
    queue
        With workers.
    side
        Chunks along an edge of the array.
    repeat
        Runs; the medians are told.
    """
    x = da.ones((side, side), chunks=1)
    busy, alone = [], []
    for _ in range(repeat):
        total = (x + x.T).sum()
        graph, keys = dict(total.__dask_graph__()), total.__dask_keys__()
        marks: list[float] = []
        upload, gather = _marked(Job._upload, marks, before=True), _marked(Job.gather, marks)  # noqa: SLF001
        with mock.patch.multiple(Job, _upload=upload, gather=gather):
            start, cpu = time.perf_counter(), time.thread_time()
            answer = queue.get(graph, keys)
            busy.append(time.thread_time() - cpu)
            alone.append(marks[0] - start + time.perf_counter() - marks[-1])
        if answer[0] != 2 * side * side:
            msg = f"the sum is {2 * side * side}, not {answer[0]}"
            raise ValueError(msg)
    per_task = 1e6 / len(graph)
    return [
        Figure(f"client, a task of {len(graph):,}", per_task * statistics.median(busy), "us", BAR),
        Figure("of it while nothing can run", per_task * statistics.median(alone), "us", BAR_ALONE),
    ]


def _marked(method: Any, marks: list[float], *, before: bool = False) -> Any:
    """Return `method`, noting when it begins, or when it ends."""

    def noted(*args: Any, **kwargs: Any) -> Any:
        if before:
            marks.append(time.perf_counter())
        answer = method(*args, **kwargs)
        if not before:
            marks.append(time.perf_counter())
        return answer

    return noted
