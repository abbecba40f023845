"""The simulator can fail: with one rule switched off it finds what the rule is there for."""

from __future__ import annotations

import logging

import pytest
from simulator.ablations import ABLATIONS
from simulator.runs import run_world
from simulator.server import simulated

from dask_redisq.link import Link

#: Worlds to look at, at most.
SEEDS = 500


@pytest.mark.parametrize("rule", ABLATIONS)
def test_a_rule_switched_off_is_missed(
    link: Link, rule: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the rule some world goes wrong."""
    caplog.set_level(logging.ERROR, logger="dask_redisq")
    patches, off, lossy = ABLATIONS[rule]
    with simulated(patches):
        for seed in range(SEEDS):
            if run_world(link, seed, every=2 + seed % 4, off=off, lossy=lossy).error:
                return
    pytest.fail(f"{SEEDS} worlds go well without {rule!r}")
