"""Tasks per second, drawn live from another process: Listing 4 and Figure 1 of the vignette.

Run it beside `bootstrap.py`, which prints the command. The picture is written anew with each
sample, so whatever shows it and looks for changes shows it live.
"""

import time
from contextlib import suppress
from pathlib import Path

import click
from matplotlib.figure import Figure
from redis import ConnectionError as ServerGone
from redis import Redis


@click.command(help=__doc__)
@click.option("--url", envvar="DASK_REDISQ__URL", required=True, help="The server.")
@click.option("--key", default="count", show_default=True, help="The counter.")
@click.option("--every", default=2.0, show_default=True, help="Seconds from sample to sample.")
@click.option("--until", default=float("inf"), help="What it counts to; then this ends.")
@click.option("--file", default="rate.svg", show_default=True, type=click.Path(path_type=Path))
def main(url, key, every, until, file):
    """Look at the counter from time to time, until it is there, or its server gone."""
    counter = Redis.from_url(url)
    start = before = time.monotonic()
    seen, times, rates = int(counter.get(key) or 0), [], []
    with suppress(ServerGone):
        while seen < until:
            time.sleep(every)
            now, count = time.monotonic(), int(counter.get(key) or 0)
            times.append(now - start)
            rates.append((count - seen) / (now - before))
            before, seen = now, count
            print(f"{times[-1]:6.1f} s  {rates[-1]:8.1f} tasks/s", flush=True)
            draw(times, rates, file)


def draw(times, rates, file):
    """Write the picture, in one step: who looks at it never sees half of it."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    axes.plot(times, rates, linewidth=2)
    axes.set(xlabel="Time (s)", ylabel="Tasks/second", ylim=(0, None))
    half = file.with_name(f".{file.name}.half{file.suffix}")
    figure.savefig(half)
    half.replace(file)


if __name__ == "__main__":
    main()
