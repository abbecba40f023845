"""A storm's graphs and schedule are functions of its seed, and its judgement can be bad."""

from pathlib import Path
from typing import Any

import pytest
from dask.local import get_sync

from benchmarks.storm.clients import Client
from benchmarks.storm.graphs import Puzzle
from benchmarks.storm.ledger import Ledger
from benchmarks.storm.outcome import Outcome
from benchmarks.storm.runs import Hit, Outage, Run, all_runs, find_repeats, recoveries, runs_of
from benchmarks.storm.schedule import KINDS, schedule

SECOND = 10**9


@pytest.mark.parametrize("seed", range(30))
def test_the_answer_of_a_graph_is_known(seed: int, tmp_path: Path) -> None:
    """Dask's own scheduler finds the same, and each task counted one run."""
    puzzle = Puzzle.make(seed, 7, str(tmp_path))
    hasty = [piece._replace(pause=0.0) for piece in puzzle.pieces]
    puzzle = Puzzle(puzzle.wiring, hasty, puzzle.constants, puzzle.options)
    answer = puzzle.answer()
    assert list(get_sync(puzzle.graph(), puzzle.keys)) == answer
    assert answer == Puzzle.make(seed, 7, str(tmp_path)).answer()
    assert answer != Puzzle.make(seed, 8, str(tmp_path)).answer()
    assert sorted(run.task for run in all_runs(tmp_path)) == list(range(len(puzzle.pieces)))


def test_a_schedule_is_a_function_of_its_seed() -> None:
    """Ten minutes have their 500 faults, of every kind, and each at the same time."""
    faults = schedule(1, 600)
    assert faults == schedule(1, 600)
    assert faults != schedule(2, 600)
    assert {fault.kind for fault in faults} == set(KINDS)
    assert len(faults) > 600
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)


class Liar:
    """A queue whose answers are wrong by one byte."""

    def get(self, dsk: Any, keys: Any, **_: Any) -> Any:
        """Compute, and change the last value."""
        values = list(get_sync(dsk, keys))
        return [*values[:-1], values[-1][:-1] + bytes([values[-1][-1] ^ 1])]

    def compute(self, *_: Any, **__: Any) -> Any:
        """Refuse a detached job."""
        raise ValueError("not today")


def test_a_client_sees_a_wrong_answer_and_an_error(tmp_path: Path) -> None:
    """Each of them makes the storm fail, and is told with the seed of its graph."""
    ledger = Ledger(tmp_path)
    queue: Any = Liar()
    client = Client(queue, "t0", 1, 0, tmp_path, ledger.report)
    for seed, detach in ((3, False), (4, True)):
        client._job(  # noqa: SLF001 - `run` goes on until a time
            Puzzle.make(seed, seed, str(tmp_path)), seed, detach=detach, leave=False
        )
    outcome = Outcome(1.0, 1, ledger.jobs)
    assert [job.state for job in ledger.jobs.values()] == ["wrong", "failed"]
    assert not outcome.held
    assert "'seed': 3" in outcome.troubles()[0]
    assert "not today" in outcome.troubles()[1]


def test_a_repeat_needs_a_hit_that_explains_it() -> None:
    """The first runner was killed after it began; a hit of another slot, or before, is none."""
    runs = [Run(1, 5, 10, 100), Run(1, 6, 11, 100), Run(1, 5, 30, 200)]
    killed = Hit("slot killed", 20, 100, frozenset({(1, 5)}), 2, (1, 5))
    found = find_repeats(runs, [killed])
    assert (found.extra, found.bound, found.strange) == (1, 3, [])
    for other in (Hit("slot killed", 20, 300), Hit("slot killed", 5, 100)):
        assert find_repeats(runs, [other]).strange == [(runs[0], runs[2])]
        assert not Outcome(1.0, 1, repeats=find_repeats(runs, [other])).held


def test_what_a_restart_makes_again_is_told_apart() -> None:
    """Of impure jobs all is made again; of others what ran before the rebuild, and no more."""
    killed, back = 20 * SECOND, 21 * SECOND
    for began, impure, want in (
        (10, {1}, (0, 1, 0)),
        (10, set[int](), (1, 0, 1)),
        (22, set[int](), (1, 0, 0)),
        (90, {1}, (1, 0, 1)),
    ):
        runs = [Run(1, 5, began * SECOND, 100), Run(1, 5, 99 * SECOND, 200)]
        found = find_repeats(runs, [], [Outage(killed, back)], impure)
        assert (found.extra, found.anew, len(found.strange)) == want


def test_a_recovery_is_timed_to_the_next_run() -> None:
    """Of the task that ran when its slot was killed; not of one that never ran again."""
    runs = [Run(1, 5, 0, 100), Run(1, 5, 3 * SECOND, 200)]
    again = Hit("slot killed", SECOND, 100, frozenset({(1, 5)}), 0, (1, 5))
    never = Hit("slot killed", SECOND, 100, frozenset({(1, 6)}), 0, (1, 6))
    assert recoveries(runs, [again, never]) == [(2.0, again)]


def test_a_record_that_was_not_written_whole_is_not_read(tmp_path: Path) -> None:
    """A process may be killed as it writes."""
    (tmp_path / "17").write_bytes(bytes(30))
    assert len(runs_of(tmp_path, 17)) == 1
    assert runs_of(tmp_path, 18) == []
