"""How many tasks a slot asks for; durations are arguments."""

from __future__ import annotations

from dask_redisq.foreach import AHEAD
from dask_redisq.pace import JOBS, Pace


def test_a_job_that_is_not_known_gets_one_task() -> None:
    """They may take an hour each."""
    pace = Pace()
    assert (pace.want, pace.bounds(), pace.others()) == (1, (1, 1), [])


def test_the_jobs_that_a_slot_works_for_in_turns_are_all_known() -> None:
    """The last one by `want`, the others beside it; those of long ago are not."""
    pace = Pace(budget=0.05)
    pace.leased("a", 10, 0.01, 10)
    pace.leased("b", 1, 0.025, 2)
    assert (pace.job, pace.want) == ("b", 2)
    assert pace.others() == ["a", 50, 1]
    for i in range(JOBS):
        pace.leased(f"c{i}", 1, 0.01, 1)
    assert len(pace.others()) == 3 * (JOBS - 1)
    assert "b" not in pace.others()


def test_durations_of_a_job_are_averaged_whatever_lies_between() -> None:
    """Half of each new one."""
    pace = Pace(budget=0.05)
    pace.leased("a", 1, 0.01, 1)
    pace.leased("b", 1, 0.001, 1)
    pace.leased("a", 1, 0.04, 1)
    assert pace.want == 2


def test_a_surprise_makes_it_one_task_again() -> None:
    """Of that job, and no other."""
    pace = Pace(budget=0.05)
    pace.leased("a", 1, 0.01, 1)
    pace.leased("b", 1, 0.01, 1)
    pace.surprised()
    assert (pace.want, pace.others()) == (1, ["a", 5, 1])


def test_the_windows_of_a_loop_are_all_known() -> None:
    """With one more each is forgotten before its next turn: one task a lease, for ever."""
    assert AHEAD < JOBS
