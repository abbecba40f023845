"""Random numbers that are the same each time, and on any workers: Listing 7 of the vignette."""

import random

import click
import dask

import dask_redisq as redisq


def draw(_):
    """Return a random number."""
    return random.random()


def seed_worker(_):
    """Seed all iterations alike: doRedis's set.seed.worker."""
    random.seed(55)


@click.command(help=__doc__)
@click.option("--url", envvar="DASK_REDISQ__URL", help="The server; by default a private one.")
@click.option("--queue", default="jobs", show_default=True, help="The queue on it.")
def main(url, queue):
    """Draw five numbers, in five ways."""
    dask.config.set({"redisq.url": url, "redisq.queue": queue})
    jobs = redisq.Queue()
    show("no seed", jobs.foreach(draw, 5))
    show("seed=1", jobs.foreach(draw, 5, seed=1))
    show("again, one by one", jobs.foreach(draw, 5, seed=1, chunk_size=1))
    show("seed=2", jobs.foreach(draw, 5, seed=2))
    show("seed_worker", jobs.foreach(draw, 5, seed_worker=seed_worker))


def show(title, numbers):
    """Print a line."""
    print(f"{title:>18}:", *(f"{number:.8f}" for number in numbers))


if __name__ == "__main__":
    main()
