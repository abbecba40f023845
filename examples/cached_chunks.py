"""Chunks that slots keep in memory: Listings 10 to 14 of the doRedis vignette.

A slot that has read a chunk says so by its tag, and is given the task of that chunk the next time:
in a loop by the policy `by_tag` (Listing 10's getTask), in a Dask graph by a soft tag. So only the
first run moves data. If a slot is gone, the others do its part, and read it first.
"""

import time

import click
import dask
import numpy as np

import dask_redisq as redisq


@click.command(help=__doc__)
@click.option("--url", envvar="DASK_REDISQ__URL", help="The server; by default a private one.")
@click.option("--queue", default="jobs", show_default=True, help="The queue on it.")
@click.option("--rows", default=1000, show_default=True, help="The matrix is as wide as high.")
def main(url, queue, rows):
    """Sum the two halves of a matrix, three times."""
    dask.config.set({"redisq.url": url, "redisq.queue": queue})
    jobs, client = redisq.Queue(), redisq.get_redis()
    jobs.wait_for_workers(2)
    a = np.random.default_rng(1).normal(size=(rows, rows))  # imagine that it is really big
    for j, half in enumerate(np.array_split(a, 2)):
        client.set(f"A{j}", half.tobytes())
    print(f"{a.nbytes:,} bytes, the sum is {a.sum():.6f}")

    def sent():
        return client.info("stats")["total_net_output_bytes"]

    def show(title, run):
        before = sent()
        found = run()
        moved = sent() - before
        for _, _, log in found:
            print(log)
        downloaded = sum(size for _, size, _ in found)
        total = sum(total for total, _, _ in found)
        print(f"{title}: {total:.6f}, {downloaded:,} bytes read, the server sent {moved:,}\n")

    def loop():
        return jobs.foreach(chunk_sum, 2, get_task=redisq.policies.by_tag, chunk_size=1)

    show("loop, first run", loop)
    show("loop, second run", loop)

    def graph():
        tasks = []
        for j in range(2):
            # Soft: if the slot is gone, or does not come in time, any other one may have the task.
            with dask.annotate(workers=f"{j}", allow_other_workers=True):
                tasks.append(dask.delayed(chunk_sum)(j))
        return dask.compute(*tasks, scheduler=jobs.get, locality_wait=5)

    show("Dask graph", graph)
    client.delete("A0", "A1")


def chunk_sum(j):
    """Return the sum of a chunk, how many bytes were read for it, and what happened."""
    import __main__ as kept  # the slot's, which outlives a job: R's globalenv()

    log = f"My job is to sum chunk A{j}. My tag is {redisq.get_tag()}."
    size = 0
    if hasattr(kept, f"A{j}"):
        log += " I've already got this chunk."
    else:
        log += f" Downloading chunk A{j}."
        redisq.set_tag(f"{j}")
        setattr(kept, f"A{j}", np.frombuffer(redisq.get_redis().get(f"A{j}")))
        size = getattr(kept, f"A{j}").nbytes
    # A big chunk takes its time. Were it at once, one slot could do both before the other comes.
    time.sleep(0.5)
    return getattr(kept, f"A{j}").sum(), size, log


if __name__ == "__main__":
    main()
