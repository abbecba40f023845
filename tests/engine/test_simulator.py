"""Random worlds with faults end well, replay from their seed, and are shortened when they do not."""

from __future__ import annotations

import logging
import os

import pytest
from simulator.ablations import ABLATIONS
from simulator.choices import Choices
from simulator.runs import Sum, run_world, shrink
from simulator.server import simulated

from dask_redisq.link import Link

#: Jobs here; `tox -e simulate` runs 10,000.
JOBS = int(os.environ.get("REDISQ_SIMULATED_JOBS", "300"))
PARTS = 4


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Say nothing of each rebuild."""
    caplog.set_level(logging.ERROR, logger="dask_redisq")


@pytest.mark.parametrize("part", range(PARTS))
def test_worlds_with_faults_end_well(link: Link, part: int) -> None:
    """Right answers, each in the end, and nothing is left."""
    found, seed = Sum(), part
    with simulated():
        while found.jobs < JOBS / PARTS:
            found.add(run_world(link, seed, every=4))
            seed += PARTS
    assert not found.failed, found.line(0)
    assert found.answers > found.jobs / 2, "most jobs get their answer"
    assert len(found.faults) > 15, f"only {found.faults} happened"


@pytest.mark.parametrize("seed", [3, 8])
def test_a_world_replays_from_its_seed_and_from_its_record(link: Link, seed: int) -> None:
    """The same calls in the same order, whatever the time of day."""
    with simulated():
        first = run_world(link, seed)
        second = run_world(link, seed)
        third = run_world(link, 0, first.record)
    assert first.record == second.record == third.record
    assert first.calls == second.calls == third.calls
    assert first.faults == second.faults == third.faults


def test_a_failure_becomes_a_shorter_story(link: Link) -> None:
    """With a rule switched off, fewer turns fail in the same way, and are told in order."""
    rule = "R6, a new call ends the old lease"
    with simulated(ABLATIONS[rule].patches):
        failed = next(f for seed in range(50) if (f := run_world(link, seed, every=1)).error)
        shorter = shrink(link, failed, seconds=5.0, every=1)
    assert shorter.kind == failed.kind
    assert len(shorter.record) < len(failed.record)
    assert "step" in shorter.story


def test_what_a_record_does_not_say_is_the_plain_choice() -> None:
    """So a turn can be taken out, and what it chose is 0."""
    choices = Choices(0, [[1], [2, 5]])
    choices.begin(0)
    assert choices.chance(0.0)
    choices.begin(1)
    assert [choices.below(3), choices.below(3), choices.below(3)] == [2, 2, 0]
    assert choices.pick(["plain", "other"]) == "plain"
