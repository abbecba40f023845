"""Random jobs, random faults, all invariants after every script."""

from __future__ import annotations

import os

import pytest
from driver import Engine
from world import World

from dask_redisq.keys import Keys
from dask_redisq.link import Link

JOBS = int(os.environ.get("REDISQ_RANDOM_WORLDS", "60"))
EVENTS = 60


@pytest.mark.parametrize("lossy", [False, True], ids=["kept", "lossy"])
@pytest.mark.parametrize("first", range(0, JOBS, 20))
def test_random_worlds_end_well(link: Link, keys: Keys, first: int, lossy: bool) -> None:
    """Whatever happens: all outputs, one run of each task under them, and nothing is left.

    In lossy worlds values vanish and the server comes back older: then all outputs, all the same.
    """
    for seed in range(first, first + 20):
        link.command("FLUSHALL")
        try:
            World(Engine(link, keys, seed=seed), seed, lossy=lossy).run(EVENTS)
        except AssertionError as error:
            error.add_note(f"the seed is {seed}")
            raise
