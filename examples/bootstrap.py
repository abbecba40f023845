"""Bootstrap of a logistic regression while workers join: Listings 3 and 5 of the doRedis vignette.

It begins with two slots, and after a third of the trials four more join. Tasks count in a key of
their own what they did; `rate.py` watches that counter from another process and draws it.
"""

import threading
import time

import click
import dask
import numpy as np
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

import dask_redisq as redisq


@click.command(help=__doc__)
@click.option("--url", envvar="DASK_REDISQ__URL", help="The server; by default a private one.")
@click.option("--queue", default="boot", show_default=True, help="A queue without workers on it.")
@click.option("--trials", default=100_000, show_default=True)
@click.option("--pause", default=0.0, help="Seconds that a trial sleeps: if you have few cores.")
def main(url, queue, trials, pause):
    """Estimate the coefficients, and how sure they are."""
    private = None if url else redisq.LocalCluster(0, queue)  # a server, as yet without workers
    dask.config.set({"redisq.url": url or private.url, "redisq.queue": queue})
    # A URL that was given may have a password in it.
    print(f"python rate.py --url {'...' if url else private.url} --until {trials}", flush=True)

    iris = load_iris()
    flowers = iris.target != 0  # no setosa
    x, y = iris.data[flowers, :1], iris.target[flowers]

    def fit(_):
        rows = np.random.choice(100, 100)
        model = LogisticRegression(C=np.inf).fit(x[rows], y[rows])
        time.sleep(pause)
        redisq.get_redis().incr("count")
        return model.intercept_[0], model.coef_[0, 0]

    def join():
        while int(redisq.get_redis().get("count")) < trials / 3:
            time.sleep(0.2)
        workers.append(redisq.start_local_workers(4))

    redisq.get_redis().set("count", 0)
    workers = [redisq.start_local_workers(2)]
    threading.Thread(target=join, daemon=True).start()

    jobs = redisq.Queue()
    # An iteration that ran twice, as its worker was lost, would count twice: here none is.
    found = jobs.foreach(fit, trials, combine=stack, multicombine=True, inorder=False, seed=1)
    slots = sum(len(worker["slots"]) for worker in jobs.workers())
    print(f"{len(found)} trials, counted {int(redisq.get_redis().get('count'))}, {slots} slots")
    for name, values in zip(("intercept", "slope"), found.T, strict=True):
        low, high = np.quantile(values, [0.025, 0.975])
        print(f"{name:>9} {np.median(values):7.2f}, 95 % between {low:.2f} and {high:.2f}")


def stack(*rows):
    """Put results below each other: R's rbind."""
    return np.vstack(rows)


if __name__ == "__main__":
    main()
