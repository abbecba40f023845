"""A matrix in chunks, each of which goes only where it is needed: Listing 8 of the vignette.

First as doRedis has it, with keys of one's own that tasks read: each run reads all of them again.
Then with `scatter`, which the vignette does not have: a slot keeps what it read, and tasks go where
their chunk is, so that a second run moves nothing. What the server sent to anybody is shown.
"""

import click
import dask
import numpy as np

import dask_redisq as redisq


@click.command(help=__doc__)
@click.option("--url", envvar="DASK_REDISQ__URL", help="The server; by default a private one.")
@click.option("--queue", default="jobs", show_default=True, help="The queue on it.")
@click.option("--rows", default=1000, show_default=True, help="The matrix is as wide as high.")
def main(url, queue, rows):
    """Sum the two halves of a matrix, several times."""
    dask.config.set({"redisq.url": url, "redisq.queue": queue})
    jobs, client = redisq.Queue(), redisq.get_redis()
    jobs.wait_for_workers(1)
    a = np.random.default_rng(1).normal(size=(rows, rows))  # imagine that it is really big
    halves = np.array_split(a, 2)
    print(f"{a.nbytes:,} bytes, half sums {[round(float(half.sum()), 6) for half in halves]}")

    def sent():
        return client.info("stats")["total_net_output_bytes"]

    def show(title, loop):
        before = sent()
        sums = [round(float(found), 6) for found in loop()]
        print(f"{title:>24}: {sums}, the server sent {sent() - before:,} bytes")

    for j, half in enumerate(halves):
        client.set(f"A{j}", half.tobytes())

    def chunk_sum(j):
        return np.frombuffer(redisq.get_redis().get(f"A{j}")).sum()

    for run in (1, 2):
        show(f"keys, run {run}", lambda: jobs.foreach(chunk_sum, 2))
    client.delete("A0", "A1")

    scattered = [jobs.scatter(half) for half in halves]
    for run in (1, 2):
        # A task waits for the slot that has its chunk for 0.1 s by default; here nobody hurries.
        show(f"scattered, run {run}", lambda: jobs.foreach(np.sum, scattered, locality_wait=5))


if __name__ == "__main__":
    main()
