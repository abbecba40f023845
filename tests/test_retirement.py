"""When a worker ends by itself, and what its slots may still begin; time is an argument."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dask_redisq.allowance import Allowance
from dask_redisq.codec import Block
from dask_redisq.lease import Lease, LeaseRun
from dask_redisq.pace import Pace
from dask_redisq.page import Page
from dask_redisq.retirement import ASK, Activity, Retirement, Terms

NOTHING = Activity(busy=False, up=True, leases={"a": 0})
BUSY = Activity(busy=True, up=True, leases={"a": 1})


def full() -> bool:
    """Say that there is work."""
    return True


def empty() -> bool:
    """Say that there is none."""
    return False


def test_a_worker_stays_if_nothing_else_was_said() -> None:
    """For ever, and asks nobody."""
    retirement = Retirement(Terms(), 0.0)
    assert retirement.reason(1e9, NOTHING, pytest.fail) is None
    assert not retirement.lingers(0.0)


@pytest.mark.parametrize(("chance", "end"), [(0.0, 8.0), (0.5, 10.0), (1.0, 12.0)])
def test_a_lifetime_is_staggered_to_either_side(chance: float, end: float) -> None:
    """As distributed's: uniformly, by up to the stagger."""
    retirement = Retirement(Terms(lifetime=10.0, lifetime_stagger=2.0), 0.0, lambda: chance)
    assert retirement.reason(end - 0.01, BUSY, full) is None
    assert retirement.reason(end, BUSY, full) == "its lifetime of 10 s is over"


def test_a_worker_is_idle_from_when_its_first_slot_is_there() -> None:
    """Before that it is no worker yet: were a slow import idleness, it would never get to work."""
    retirement = Retirement(Terms(max_idle=5.0), 0.0)
    starting = Activity(busy=False, up=False, leases={"a": 0})
    assert retirement.reason(60.0, starting, full) is None
    assert retirement.reason(61.0, NOTHING, full) is None
    assert retirement.reason(65.9, NOTHING, full) is None
    assert retirement.reason(66.0, NOTHING, full) == "it had no task for 5 s"


def test_a_lease_between_two_looks_is_no_idleness() -> None:
    """It is over when the page is read, but one more was counted."""
    retirement = Retirement(Terms(max_idle=5.0), 0.0)
    assert retirement.reason(1.0, NOTHING, full) is None
    assert retirement.reason(5.0, NOTHING._replace(leases={"a": 7}), full) is None
    assert retirement.reason(9.0, NOTHING._replace(leases={"a": 7}), full) is None
    # A slot ended, and the one in its place is new: that is no task.
    fresh = NOTHING._replace(leases={"b": 0})
    assert retirement.reason(10.0, fresh, full) == "it had no task for 5 s"


def test_a_long_task_is_no_idleness() -> None:
    """The time counts from its end."""
    retirement = Retirement(Terms(max_idle=5.0), 0.0)
    assert retirement.reason(100.0, BUSY, full) is None
    assert retirement.reason(104.9, BUSY._replace(busy=False), full) is None
    assert retirement.reason(105.0, BUSY._replace(busy=False), full) is not None


def test_a_burst_asks_only_while_all_slots_are_idle_and_not_often() -> None:
    """The question goes to the server; a slot with a task is the answer."""
    asked: list[float] = []

    def ask(now: float) -> str | None:
        def has_work() -> bool:
            asked.append(now)
            return now < 3.0

        return retirement.reason(now, BUSY if now == 1.0 else NOTHING, has_work)

    retirement = Retirement(Terms(burst=True), 0.0)
    assert [ask(0.0), ask(ASK - 0.01), ask(ASK), ask(1.0)] == [None] * 4
    assert asked == [0.0, ASK]
    assert ask(3.0) == "its queues are empty"


def test_a_burst_ends_at_once_if_nothing_is_there() -> None:
    """Before any slot was started."""
    retirement = Retirement(Terms(burst=True), 0.0)
    assert retirement.reason(0.0, Activity(busy=False, up=False, leases={}), empty) is not None


def test_it_ends_when_no_task_may_begin() -> None:
    """However many still run."""
    retirement = Retirement(Terms(max_tasks=3), 0.0)
    assert retirement.reason(1.0, BUSY._replace(tasks_left=1), full) is None
    assert retirement.reason(1.0, BUSY._replace(tasks_left=0), full) == "it has begun its 3 tasks"


def test_it_lingers_from_the_removal_of_its_last_queue() -> None:
    """And for nothing else."""
    retirement = Retirement(Terms(linger=2.0), 0.0)
    assert not retirement.lingers(1.0)
    retirement.queues_gone(10.0)
    assert retirement.lingers(11.9)
    assert not retirement.lingers(12.0)


# ------------------------------------------------------------------------------ the shared number

TAKE = """\
import sys
from dask_redisq.allowance import Allowance
allowance = Allowance(fd=int(sys.argv[1]))
sys.stdin.read(1)
print(sum(allowance.take() for _ in range(20_000)))
"""


@pytest.fixture
def allowance() -> Iterator[Allowance]:
    """Room for 30,000 tasks."""
    made = Allowance(30_000)
    yield made
    made.close()


def test_processes_take_no_more_than_there_is(allowance: Allowance) -> None:
    """Two that want 40,000 in all, at the same time: none is taken twice, and none is lost."""
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", TAKE, str(allowance.fd)],
            pass_fds=[allowance.fd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=os.path.dirname(os.path.dirname(__file__)),  # noqa: PTH120
        )
        for _ in range(2)
    ]
    for taker in takers:
        assert taker.stdin is not None
        taker.stdin.write("\n")
        taker.stdin.flush()
    assert sum(int(taker.communicate(timeout=60)[0]) for taker in takers) == 30_000
    assert allowance.left == 0
    assert not allowance.take()


def test_a_page_counts_the_leases_of_its_slot() -> None:
    """Its supervisor has a mapping of its own."""
    page = Page()
    slots = Page(os.dup(page.fd))
    assert page.leases() == 0
    for seq in (1, 2):
        slots.hold(0, "job", seq, 0, 1)
        slots.rest()
    assert page.leases() == 2
    slots.close()
    page.close()


def one(*_: int) -> int:
    """Be a task."""
    return 1


@pytest.mark.parametrize("chain", [True, False])
def test_a_lease_runs_no_task_that_it_could_not_take(chain: bool) -> None:
    """Neither one that it was given nor one that follows; what it did not begin stays whole."""
    inputs: list[tuple[int, ...]] = [(), (0,), (1,), (2,)] if chain else [()] * 4
    users = [tuple(u for u in range(4) if t in inputs[u]) for t in range(4)]
    tasks = [(one, inputs[t], ()) for t in range(4)]
    ends = frozenset(t for t in range(4) if not users[t])
    block = Block(tasks, inputs, users, ends, {}, {}, {}, {}, kept=False)
    left = iter([True, True, False, False, False])
    run = LeaseRun(
        Lease("job", "epoch", 4, 128, False, [0] if chain else [0, 1, 2, 3], 1), {0: block}, {},
        Pace(), frozenset(), lambda: 0.0, lambda *_: None, lambda *_: None,
        lambda: True, lambda _: 2**29, take=lambda: next(left),
    )  # fmt: skip
    run.run()
    assert list(run.made) == [0, 1]
