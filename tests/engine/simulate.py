"""Simulate clients, slots, supervisors and monitors on a private server, with faults, by seeds.

    python tests/engine/simulate.py --jobs 10000
    python tests/engine/simulate.py --seed 17
    python tests/engine/simulate.py --seed 17 --off "R8, nothing is kept before its verdict"

The first runs worlds until there were so many jobs, and ends with one line of sums. The second
runs one world again and tells its story, shortened if it fails. The third switches a rule off.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import reduce
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent))  # as pytest does it

from simulator.ablations import ABLATIONS, Ablation
from simulator.runs import Outcome, Sum, run_world, shrink
from simulator.server import simulated

from dask_redisq.link import Link
from dask_redisq.server import PrivateServer

#: Seconds for which a story is shortened.
SHRINK = 60.0


def run_many(first: int, step: int, jobs: int, every: int) -> Sum:
    """Run the worlds of seeds first, first + step, ... on a server of their own."""
    found, seed = Sum(), first
    with PrivateServer() as server, simulated():
        link = Link(server.url)
        while found.jobs < jobs:
            found.add(run_world(link, seed, every=every))
            seed += step
        link.close()
    return found


def run_one(seed: int, rule: str, every: int) -> Outcome:
    """Run one world, and shorten its story if it fails."""
    ablation = ABLATIONS[rule] if rule else Ablation()
    with PrivateServer() as server, simulated(ablation.patches):
        link = Link(server.url)
        settings: dict[str, Any] = {"every": every, "off": ablation.off, "often": ablation.often}
        outcome = run_world(link, seed, **settings)
        if outcome.error:
            click.echo(f"it fails: {outcome.error}\nlooking for a shorter story ...")
            outcome = shrink(link, outcome, SHRINK, **settings)
        link.close()
    return outcome


def main(words: list[str] | None = None) -> int:
    """Read the command line; return 1 if something did not hold."""
    parser = argparse.ArgumentParser(prog="python tests/engine/simulate.py")
    parser.add_argument("--jobs", type=int, default=10_000, help="how many, over all worlds")
    parser.add_argument("--processes", type=int, default=2, help="each with its own server")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--every", type=int, default=0, help="check all state after so many calls")
    parser.add_argument("--seed", type=int, help="run this world alone, and tell its story")
    parser.add_argument("--off", default="", choices=["", *ABLATIONS], metavar="RULE")
    options = parser.parse_args(words)
    logging.getLogger("dask_redisq").setLevel(logging.ERROR)
    if options.seed is not None:
        outcome = run_one(options.seed, options.off, options.every or 1)
        click.echo(outcome.story)
        click.echo(
            outcome.error or f"all is well: {outcome.answers} of {outcome.jobs} jobs answered"
        )
        return int(bool(outcome.error))
    started, share = time.monotonic(), -(-options.jobs // options.processes)
    with ProcessPoolExecutor(options.processes) as pool:
        parts = [
            pool.submit(run_many, options.first + i, options.processes, share, options.every or 5)
            for i in range(options.processes)
        ]
        total = reduce(Sum.plus, [part.result() for part in parts])
    for seed, error in total.failed:
        click.echo(f"seed {seed}: {error}")
    click.echo(total.line(time.monotonic() - started))
    return int(bool(total.failed))


if __name__ == "__main__":
    sys.exit(main())
