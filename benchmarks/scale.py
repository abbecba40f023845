"""Whether a task costs as much among 100,000 as among 10,000, and what it takes in Redis."""

import statistics
import threading
import time
from contextlib import suppress

import redis

import dask_redisq
from benchmarks.cluster import open_queue
from benchmarks.peers import Get
from benchmarks.report import Figure
from benchmarks.run import timed
from benchmarks.shapes import bag

BAR_GROWTH = 1.2
BAR_BYTES = 300.0

#: The memory is read once it has not grown for so long, or after the limit.
QUIET_SECONDS = 1.0
LIMIT_SECONDS = 120.0
#: Bytes more from which the upload has begun: a connection takes some, too.
BEGUN = 2**17


def growth(get: Get, few: int, many: int, repeat: int) -> list[Figure]:
    """Measure the time per task of `many` independent tasks against that of `few`."""
    times: dict[int, list[float]] = {few: [], many: []}
    for _ in range(repeat):
        for n in (few, many):
            seconds, _ = timed(get, bag(n))
            times[n].append(seconds / n * 1e6)
    small, large = (statistics.median(times[n]) for n in (few, many))
    return [
        Figure(f"time per task among {few}", small, "us"),
        Figure(f"time per task among {many}", large, "us"),
        Figure("the second as a multiple of the first", large / small, "", BAR_GROWTH),
    ]


def memory(tasks: int) -> list[Figure]:
    """Measure what a task that has not run takes, in a queue that nobody serves."""
    with open_queue(n_workers=0) as (queue, server):
        before = used_memory(server)
        submitter = threading.Thread(target=_submit, args=(queue, tasks), daemon=True)
        submitter.start()
        after = _settled_memory(server, before)
        stats = queue.stats()
        if stats["waiting"] + stats["ready"] != tasks:
            msg = f"of {tasks} tasks the queue holds {stats}"
            raise RuntimeError(msg)
        queue.remove()  # ends the submitter's wait too
        submitter.join(10)
    return [
        Figure(f"Redis memory per task, of {tasks}", (after - before) / tasks, "bytes", BAR_BYTES)
    ]


def used_memory(server: redis.Redis) -> int:
    """Return the bytes that the server has allocated."""
    return int(server.info("memory")["used_memory"])


def _submit(queue: dask_redisq.Queue, tasks: int) -> None:
    graph = bag(tasks)
    with suppress(Exception):  # the job is cancelled under it
        queue.get(graph.dsk, graph.keys)


def _settled_memory(server: redis.Redis, before: int) -> int:
    """Wait until the upload is over, and return the memory then.

    The upload has no end that could be seen from outside, so it is taken to be over when the
    memory no longer grows. The least of the quiet readings counts: the others hold buffers.
    """
    highest, readings = before, [before]
    quiet_since = time.monotonic()
    limit = quiet_since + LIMIT_SECONDS
    while time.monotonic() < limit:
        time.sleep(0.05)
        used = used_memory(server)
        if used > highest + 4096 or highest < before + BEGUN:
            highest, readings, quiet_since = max(used, highest), [], time.monotonic()
        readings.append(used)
        if time.monotonic() - quiet_since > QUIET_SECONDS:
            break
    return min(readings)
