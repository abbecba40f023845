"""A parallel `boot` with a combine of its own: Listing 6 of the doRedis vignette.

The replicates are made in chunks on the workers. What does not vary from chunk to chunk comes from
one replicate that is made here, and is the `init` of the loop.
"""

from dataclasses import dataclass, replace

import click
import dask
import numpy as np

import dask_redisq as redisq


@dataclass
class Boot:
    """What R's boot returns: the statistic of the data, and of the replicates, one in a row."""

    t0: np.ndarray
    t: np.ndarray

    def __str__(self):
        bias, error = self.t.mean(axis=0) - self.t0, self.t.std(axis=0, ddof=1)
        return "\n".join(
            f"t{i}: original {one:.6f}, bias {b:.4f}, standard error {e:.4f}"
            for i, (one, b, e) in enumerate(zip(self.t0, bias, error, strict=True))
        )


def boot(data, statistic, replicates):
    """Do it here, one after the other."""
    rows = np.random.choice(len(data), (replicates, len(data)))
    one = np.atleast_1d(statistic(data))
    return Boot(one, np.array([np.atleast_1d(statistic(data[picked])) for picked in rows]))


def boot_foreach(data, statistic, replicates, *, chunks=1, seed=None):
    """Do it on the workers, in chunks that are combined as they come."""
    sizes = [(replicates - 1) // chunks] * chunks
    sizes[-1] += (replicates - 1) % chunks
    return redisq.Queue().foreach(
        lambda n: boot(data, statistic, n).t, sizes, combine=combine, multicombine=True,
        init=boot(data, statistic, 1), inorder=False, seed=seed,
    )  # fmt: skip


def combine(first, *more):
    """Put the rows of many results below those of the first."""
    return replace(first, t=np.vstack([first.t, *more]))


def ratio(cities):
    """Return by how much they grew: from 1920 (first column) to 1930."""
    return cities[:, 1].sum() / cities[:, 0].sum()


#: The ten cities of Cochran (1977) that R's help for boot takes, in thousands of inhabitants.
CITY = np.array([
    [138, 143], [93, 104], [61, 69], [179, 260], [48, 75],
    [37, 63], [29, 50], [23, 48], [30, 111], [2, 50],
])  # fmt: skip


@click.command(help=__doc__)
@click.option("--url", envvar="DASK_REDISQ__URL", help="The server; by default a private one.")
@click.option("--queue", default="jobs", show_default=True, help="The queue on it.")
@click.option("--replicates", default=10_000, show_default=True)
@click.option("--chunks", default=7, show_default=True, help="Tasks into which they are divided.")
def main(url, queue, replicates, chunks):
    """Bootstrap the growth of cities."""
    dask.config.set({"redisq.url": url, "redisq.queue": queue})
    found = boot_foreach(CITY, ratio, replicates, chunks=chunks, seed=1)
    print(f"{len(found.t)} replicates")
    print(found)


if __name__ == "__main__":
    main()
