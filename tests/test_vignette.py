"""The scripts in examples/ run, and print what doRedis's vignette shows."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import WorkerProcess, wait_until

from dask_redisq.queue import Queue

EXAMPLES = Path(__file__).parent.parent / "examples"


def start(name: str, *words: str, folder: Path) -> subprocess.Popen[str]:
    """Start an example as a user does; any warning is an error."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("DASK_REDISQ__")}
    path = os.pathsep.join(filter(None, [str(EXAMPLES.parent), env.get("PYTHONPATH", "")]))
    # Workers that end with the script are what it is about; Python would have them closed.
    flags = ["-W", "error", "-W", "ignore::ResourceWarning"]
    return subprocess.Popen(
        [sys.executable, *flags, str(EXAMPLES / name), *words], env={**env, "PYTHONPATH": path},
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def said(running: subprocess.Popen[str]) -> tuple[str, str]:
    """Return what it printed, and what it logged, once it ended well."""
    try:
        out, err = running.communicate(timeout=110)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 0, err
    return out, err


def run(name: str, *words: str, folder: Path) -> str:
    """Run an example; return what it printed."""
    return said(start(name, *words, folder=folder))[0]


def number(pattern: str, text: str) -> float:
    """Return the number that a pattern finds."""
    found = re.search(pattern, text)
    assert found, text
    return float(found[1].replace(",", ""))


def test_the_table_has_each_script() -> None:
    """And no other."""
    named = set(re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text()))
    assert named == {path.name for path in EXAMPLES.glob("*.py")}


def test_listing_1_on_a_private_server(tmp_path: Path) -> None:
    """Without any setting."""
    out = run("pi.py", "--draws", "100000", folder=tmp_path)
    assert abs(number(r"pi is about (\S+)", out) - np.pi) < 0.01


def test_listing_1_on_workers_that_are_there(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """By --url and --queue; they count the slots, too."""
    out = run("pi.py", "--url", queue.url, "--queue", "test", folder=tmp_path)
    assert out.startswith("2 slots\n")
    assert abs(number(r"pi is about (\S+)", out) - np.pi) < 0.003


def test_listing_2_half_of_the_workers_are_killed(tmp_path: Path) -> None:
    """And tasks end their process, and the sum is right; the log tells of both."""
    running = start("fault_tolerance.py", "--seconds", "2", folder=tmp_path)
    out, log = said(running)
    assert out.endswith("sum: 55, of workers there are 2 left\n")
    assert "fault: iteration 0 ended its process" in log
    gone = set(re.findall(r"resubmission: .* since slot (\S+) is gone", log))
    assert len(gone) >= 2, log


def test_listings_3_to_5_workers_join_and_another_process_draws_the_rate(tmp_path: Path) -> None:
    """Each trial is counted once; the picture is a file that is there, whole, all the time."""
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("the picture needs matplotlib, of the extra dask-redisq[examples]")
    running = start("bootstrap.py", "--trials", "240", "--pause", "0.1", folder=tmp_path)
    assert running.stdout is not None
    python, name, *words = shlex.split(running.stdout.readline())
    assert python == "python"
    watching = start(name, *words, "--every", "0.5", folder=tmp_path)
    picture = tmp_path / "rate.svg"
    wait_until(picture.exists, timeout=60)
    while watching.poll() is None:
        assert picture.read_text().endswith("</svg>\n")
        time.sleep(0.2)
    out, _ = said(running)
    assert out.startswith("240 trials, counted 240, 6 slots\n")
    assert 1 < number(r"slope +(\S+),", out) < 3.5
    rates = [float(rate) for rate in re.findall(r"(\S+) tasks/s", said(watching)[0])]
    assert max(rates) > 0


def test_listing_6_replicates_in_chunks_are_one_bootstrap(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """All rows, whatever the number of chunks; R's help prints the same first line."""
    words = ("--url", queue.url, "--queue", "test", "--replicates", "1000")
    out = run("boot.py", *words, folder=tmp_path)
    assert out.startswith("1000 replicates\nt0: original 1.520312, bias ")
    assert 0.1 < number(r"standard error (\S+)", out) < 0.4


def test_listing_7_seeds(queue: Queue, workers: WorkerProcess, tmp_path: Path) -> None:
    """Five numbers that differ, twice the same, others of another seed, and five that are equal."""
    out = run("seeds.py", "--url", queue.url, "--queue", "test", folder=tmp_path)
    found = dict(line.strip().split(": ") for line in out.splitlines())
    drawn = {title: numbers.split() for title, numbers in found.items()}
    assert drawn["seed=1"] == drawn["again, one by one"]
    assert len({*drawn["no seed"], *drawn["seed=1"], *drawn["seed=2"]}) == 15
    assert len(set(drawn["seed_worker"])) == 1


def test_listing_8_scattered_chunks_are_moved_once(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """By keys of one's own each run moves 8 MB, on scattered data the second one nothing of it."""
    out = run("matrix_chunks.py", "--url", queue.url, "--queue", "test", folder=tmp_path)
    assert len(set(re.findall(r"(\[.*?\])", out))) == 1
    for run_number in (1, 2):
        assert number(rf"keys, run {run_number}.* sent (\S+) bytes", out) > 8_000_000
    assert number(r"scattered, run 2.* sent (\S+) bytes", out) < 100_000


def test_listings_10_to_14_cached_chunks_are_not_read_again(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """In the first run all, then nothing, by a policy and by soft tags."""
    start_worker("test", "--nworkers", "2")
    queue.wait_for_workers(2, timeout=90)
    out = run("cached_chunks.py", "--url", queue.url, "--queue", "test", folder=tmp_path)
    first, second, graph = out.strip().split("\n\n")
    assert first.count("Downloading chunk") == 2
    assert number(r"(\S+) bytes read", first) == 8_000_000
    assert number(r"the server sent (\S+)", first) > 8_000_000
    for again in (second, graph):
        for j in range(2):
            assert f"chunk A{j}. My tag is {j}. I've already got this chunk." in again
        assert number(r"(\S+) bytes read", again) == 0
        assert number(r"the server sent (\S+)", again) < 100_000
    assert len(set(re.findall(r"(-?\d+\.\d{6})", out))) == 1


def test_a_slow_host_and_a_fast_one_share_a_loop(tmp_path: Path) -> None:
    """Each does as much as it can: the fast one about four times as much."""
    out = run("two_hosts.py", folder=tmp_path)
    if out.startswith("skipped: "):
        pytest.skip(out.removeprefix("skipped: ").strip())
    fast, slow = number(r"fast: (\d+)", out), number(r"slow: (\d+)", out)
    assert fast + slow == 200
    assert 2 * slow < fast < 20 * slow
