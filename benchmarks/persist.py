"""Whether a persisted array is read where it is: reduced again and again, with no byte moved."""

import time

import dask.array as da
import redis

import dask_redisq
from benchmarks.locality import bytes_sent
from benchmarks.report import Figure

#: What the engine itself sends in one reduction after the first, as a share of the input: its
#: blocks and results.
BAR_SHARE = 0.001
TIMES = 5


def persist(queue: dask_redisq.Queue, server: redis.Redis, chunks: int, size: int) -> list[Figure]:
    """Persist an array, and sum it five times.

    What the server sends is all that can move: slots have no way to each other.

    Parameters
    ----------
    queue
        With workers.
    server
        Its server.
    chunks, size
        How many, and the bytes of each.
    """
    x = da.random.default_rng(1).random(chunks * size // 8, chunks=size // 8)
    start = time.perf_counter()
    x = queue.persist(x)
    dask_redisq.wait(dask_redisq.futures_of(x))
    took = time.perf_counter() - start
    shares, seconds, sums = [], [], set()
    for _ in range(TIMES):
        before, start = bytes_sent(server), time.perf_counter()
        sums.add(float(x.sum().compute(scheduler=queue.get)))
        seconds.append(time.perf_counter() - start)
        shares.append((bytes_sent(server) - before) / (chunks * size))
    if len(sums) != 1:
        msg = f"the sums of one array differ: {sums}"
        raise ValueError(msg)
    what = f"{chunks * size / 1e9:g} GB in {chunks} chunks"
    return [
        Figure(f"{what}: made, and stored", took, "s"),
        Figure("a sum of it", sorted(seconds)[TIMES // 2], "s"),
        # The first one has slots import what sums, and after `redisq.locality-wait` others help.
        Figure("of it the server sent in the first sum", shares[0], ""),
        Figure(
            f"most of it that it sent in one of {TIMES - 1} more", max(shares[1:]), "", BAR_SHARE
        ),
    ]
