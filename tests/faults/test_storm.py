"""A short storm finds nothing, and one over a scheduler with a rule switched off does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def blow(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a storm of the code in `folder`; remove what it keeps for who looks into it."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "storm", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    for kept in re.findall(r"data, logs and runs are in (\S+)", done.stderr):
        shutil.rmtree(kept)
    return done


@pytest.mark.slow_fault
@pytest.mark.timeout(240)
def test_twenty_seconds_of_storm_do_no_harm() -> None:
    """Row 41 in small: no wrong answer, no hang, no key or process left, few extra runs."""
    done = blow(ROOT, "--minutes", "0.34", "--seed", "7", "--workers", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    faults = re.search(r"^faults +(\d+)$", done.stdout, re.MULTILINE)
    assert faults
    assert int(faults[1]) >= 10


@pytest.mark.slow_fault
@pytest.mark.timeout(240)
def test_a_storm_finds_a_rule_that_is_switched_off(tmp_path: Path) -> None:
    """Without the stored answer of R6, a call whose reply was lost leases a second time.

    Nobody knows the first lease; it is found and given back, and its tasks run for no other cause.
    """
    for package in ("benchmarks", "dask_redisq"):
        shutil.copytree(ROOT / package, tmp_path / package)
    step = tmp_path / "dask_redisq" / "lua" / "step.lua"
    rule = "if seq == tonumber(state[1]) then return state[2] end"
    assert rule in step.read_text()
    step.write_text(step.read_text().replace(rule, ""))
    words = ["--minutes", "0.2", "--patience", "5", "--kinds", "reply lost,slot killed"]
    done = blow(tmp_path, "--seed", "1", *words)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^extra runs.* NOT MET$", done.stdout, re.MULTILINE)
