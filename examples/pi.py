"""Pi by throwing darts: Listing 1 of the doRedis vignette."""

import click
import dask
import numpy as np

import dask_redisq as redisq

TASKS = 10


@click.command(help=__doc__)
@click.option("--url", envvar="DASK_REDISQ__URL", help="The server; by default a private one.")
@click.option("--queue", default="jobs", show_default=True, help="The queue on it.")
@click.option("--draws", default=1_000_000, show_default=True, help="How many, for each task.")
def main(url, queue, draws):
    """Add up what ten tasks found."""
    dask.config.set({"redisq.url": url, "redisq.queue": queue})

    def estimate():
        x, y = np.random.default_rng().random((2, draws))
        return 4 * np.count_nonzero(x**2 + y**2 < 1) / draws

    jobs = redisq.Queue()
    total = jobs.times(TASKS, estimate, combine=sum, multicombine=True, inorder=False)
    print(f"{sum(len(worker['slots']) for worker in jobs.workers())} slots")
    print(f"pi is about {total / TASKS:.4f}")


if __name__ == "__main__":
    main()
