"""Workers that are killed while a loop runs: Listing 2 of the doRedis vignette.

Two tasks end their process if they begin within the first seconds, and two of four workers are
killed from outside, supervisor and all, as if their hosts had gone. The sum is right.
"""

import logging
import os
import signal
import threading
import time

import click
import dask

import dask_redisq as redisq


@click.command(help=__doc__)
@click.option("--url", envvar="DASK_REDISQ__URL", help="The server; by default a private one.")
@click.option("--queue", default="faults", show_default=True, help="A queue without workers on it.")
@click.option("--seconds", default=3.0, show_default=True, help="For which tasks are unlucky.")
def main(url, queue, seconds):
    """Start four workers, lose two of them, and compute the sum all the same."""
    logging.basicConfig(format="%(relativeCreated)6d ms  %(message)s")
    logging.getLogger("dask_redisq.foreach").setLevel(logging.INFO)
    private = None if url else redisq.LocalCluster(0, queue)  # a server, as yet without workers
    url = url or private.url
    # A worker counts as dead after 2 s without a beat; it is looked for each second.
    dask.config.set({"redisq.alive-expiry": 2.0, "redisq.ft-interval": 1.0})
    workers = [redisq.start_local_workers(1, queue, url) for _ in range(4)]
    jobs = redisq.Queue(queue, url)
    jobs.wait_for_workers(4)
    print("Workers started.")

    start = time.time()

    def unlucky(j):
        if j <= 2 and time.time() - start < seconds:
            os._exit(1)
        time.sleep(0.5)
        return j

    def lose_two():
        for worker in workers[:2]:
            os.kill(worker.pid, signal.SIGKILL)

    threading.Timer(1.0, lose_two).start()
    # Each of those two tasks dies several times: by default three deaths are an error.
    total = jobs.foreach(
        unlucky, range(1, 11), combine=sum, chunk_size=2, verbose=True, allowed_failures=50
    )
    print(f"sum: {total}, of workers there are {len(jobs.workers())} left")


if __name__ == "__main__":
    main()
