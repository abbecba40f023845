"""The simulator can fail: with one rule switched off it finds what the rule is there for.

Some rules are missed by most worlds, some by one in hundreds. Those run in `tox -e simulate`.
"""

from __future__ import annotations

import logging
from functools import cache

import pytest
from simulator.ablations import ABLATIONS
from simulator.runs import run_world
from simulator.server import simulated

from dask_redisq import scripts
from dask_redisq.link import Link

#: Worlds to look at, at most.
SEEDS = 3000
#: Rules that are missed within a dozen worlds.
SOON = {
    "R2, a delayed task is not ready as well",
    "R2, an accepted task leaves ready sets and leases",
    "R3, a task that failed runs alone",
    "R3, what may have run before runs alone",
    "R6, a new call ends the old lease",
    "R6, renew compares the leases",
    "R6, the same call has the same answer",
    "R7, a value is born with an expiry",
    "R9, a failure with tries left is not the end",
    "R10, a missing value is a question",
    "R11, the unregistered do not lease",
    "R11, unregister returns the lease",
    "R12, a frozen job makes nothing ready",
    "R12, what was delayed becomes ready",
    "R14, who was away himself judges nobody",
    "R15, nothing is made of a job that ended",
    "R16, a rebuilt log is read anew",
    "R16, sending is not freeing",
    "R17, a block counts once",
    "R18, a call leaves the idle sets",
    "R18, a job with delayed tasks is active",
    "R18, a job with nothing ready is not active",
    "R18, only the registered are woken",
    "R18, who finds only delayed tasks is told when to look",
    "R19, user code wishes, the engine takes",
    "R20, a job with edges to settle is not done",
    "Tags, all are woken for what is soft",
    "Tags, who carries a soft one comes first for a while",
    "Constants, they live as long as the job",
    "H30, what frees memory works when it is full",
}


#: Worlds in thousands take minutes where others work, too.
LONG = [pytest.mark.long_search, pytest.mark.timeout(1200)]


@pytest.mark.parametrize(
    "rule", [pytest.param(r, marks=() if r in SOON else LONG) for r in ABLATIONS]
)
def test_a_rule_switched_off_is_missed(
    link: Link, rule: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the rule some world goes wrong."""
    caplog.set_level(logging.ERROR, logger="dask_redisq")
    patches, off, often = ABLATIONS[rule]
    with simulated(patches):
        for seed in range(SEEDS):
            if run_world(link, seed, every=2 + seed % 4, off=off, often=often).error:
                return
    pytest.fail(f"{SEEDS} worlds go well without {rule!r}")


@pytest.mark.parametrize("rule", ABLATIONS)
def test_a_rule_can_be_switched_off(rule: str) -> None:
    """The text that its patch replaces is there, in a script that uses it."""
    patches, whole = ABLATIONS[rule].patches, _texts()
    with simulated(patches, clock=False):
        changed = any(scripts.load(name).text != text for name, text in whole.items())
    assert changed == bool(patches)


@cache
def _texts() -> dict[str, str]:
    return {name: scripts.build(name).text for name in scripts.script_names()}
