"""Random sequences of calls: the scripts and the model agree in each answer and in what is left."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from machine import QueueMachine
from redis.exceptions import ResponseError
from simulator.ablations import ABLATIONS, Patch
from simulator.server import simulated

from dask_redisq.link import Link

#: Sequences, and calls in each; `tox -e simulate` asks for more.
EXAMPLES = int(os.environ.get("REDISQ_MODEL_EXAMPLES", "60"))
CALLS = 40
#: Rules that are missed within a second, and those that `tox -e simulate` switches off.
SOON = [
    "R12, a frozen job accepts nothing",
    "R2, an accepted task leaves ready sets and leases",
    "R3, what may have run before runs alone",
    "R6, an older call is refused",
    "R17, a block counts once",
]
LATER = [
    "R2, a delayed task is not ready as well",
    "R2, nor when its slot was killed",
    "R2, an accepted task is not delayed",
    "R12, what was delayed becomes ready",
    "R18, a job with delayed tasks is active",
    "R18, who finds only delayed tasks is told when to look",
    "Run again, it has another epoch",
    "Run again, it is rebuilt first",
    "Run again, tries and deaths begin at none",
    "R12, a frozen job makes nothing ready",
    "R16, a rebuilt log is read anew",
    "R19, user code wishes, the engine takes",
    "Suspended, a queue gives no lease",
    "Suspended, an old call does not undo a newer one",
]
#: Further ones, which are no rules of their own.
OWN = {
    "Tags, a wish is its own slots' for a while": [
        Patch(
            "lib/take.lua",
            "elseif age >= patience then\n          table.insert(last, set)\n        else",
            "else\n          table.insert(last, set)\n        end\n        if false then",
        )
    ],
    "Tags, what is leased at a rebuild is in no set": [
        Patch(
            "rebuild.lua",
            "for _, number in ipairs(hard) do redis.call('ZREM', key.tagged(job, 'hard:' .. number), task) end",
            "",
        )
    ],
}
SLOW = [pytest.mark.long_search, pytest.mark.timeout(600)]
LIMITS = {
    "stateful_step_count": CALLS,
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


@pytest.fixture
def machine(link: Link) -> type[QueueMachine]:
    """The machine on the test's server."""
    return type("Machine", (QueueMachine,), {"link": link})


@pytest.mark.timeout(1800)
def test_the_scripts_do_what_the_model_says(machine: type[QueueMachine]) -> None:
    """Whatever is called in whatever order."""
    limits: dict[str, Any] = {**LIMITS, "max_examples": EXAMPLES}
    with simulated():
        run_state_machine_as_test(machine, settings=settings(**limits))


@pytest.mark.parametrize(
    "rule_off", [*SOON, *(pytest.param(r, marks=SLOW) for r in [*LATER, *OWN])]
)
def test_the_model_misses_a_rule(machine: type[QueueMachine], rule_off: str) -> None:
    """With one rule switched off in the Lua they do not agree."""
    # The first example that fails ends it. Job ids are random, and so is which of two is due first.
    limits: dict[str, Any] = {**LIMITS, "max_examples": 2000, "phases": [Phase.generate]}
    limits |= {"report_multiple_bugs": False, "derandomize": True}
    patched = simulated(OWN.get(rule_off) or ABLATIONS[rule_off].patches)
    with patched, pytest.raises((AssertionError, ResponseError, KeyError)):
        run_state_machine_as_test(machine, settings=settings(**limits))
