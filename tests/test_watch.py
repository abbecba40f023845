"""What a supervisor makes of a slot's page; time is an argument."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from dask_redisq.crew import Crew
from dask_redisq.keys import Keys
from dask_redisq.page import Cursor, Limit, Page
from dask_redisq.registration import Registration
from dask_redisq.slot_process import SlotProcess
from dask_redisq.watch import Overdue, due_at, find_overdue, hostages_since

JOB = "0" * 32


@pytest.fixture
def page() -> Iterator[Page]:
    """The page of a slot that got lease 7, three tasks, at second 10."""
    made = Page()
    made.hold(0, JOB, 7, 10_000, 3)
    yield made
    made.close()


def test_a_task_is_overdue_from_its_limit_on(page: Page) -> None:
    """Not before it begins, and not once it ended."""
    page.limit(5, 7, Limit(10_000, 1500, 2))
    assert due_at(page.read(), page.read_limit(page.read())) is None
    page.begin(5, 0)
    cursor = page.read()
    limit = page.read_limit(cursor)
    assert limit == (10_000, 1500, 2)
    assert due_at(cursor, limit) == 11.5
    assert find_overdue(cursor, limit, 11.4) is None
    assert find_overdue(cursor, limit, 11.5) == Overdue(5, 7, 1.5)
    page.begin(-1, 2)
    assert find_overdue(page.read(), page.read_limit(page.read()), 99) is None


def test_a_limit_holds_for_its_task_only(page: Page) -> None:
    """The next task of the lease writes none, nor does the same task in a later lease."""
    page.limit(5, 7, Limit(10_000, 1500, 2))
    page.begin(6, 1)
    assert page.read_limit(page.read()) == (0, 0, -1)
    page.hold(0, JOB, 8, 20_000, 1)
    page.begin(5, 0)
    assert page.read_limit(page.read()) == (0, 0, -1)


def test_hostages_are_those_behind_a_running_task(page: Page) -> None:
    """From twice the budget of a lease on; before the first begins there is no long one."""
    assert hostages_since(page.read()) is None
    page.begin(5, 1)
    assert hostages_since(page.read()) == 10.1
    page.begin(6, 2)
    assert hostages_since(page.read()) is None
    page.rest()
    assert hostages_since(page.read()) is None


@pytest.mark.parametrize("answer", [b"given", b"nobody", b"over"])
def test_a_slot_hears_first_that_its_tasks_are_given_to_others(page: Page, answer: bytes) -> None:
    """Or it begins one while the server hands it out; if nobody waits for work it goes on."""
    page.begin(5, 0)
    asked = []

    class Server:
        def give_back(self, keys: Keys, slot: SlotProcess, cursor: Cursor) -> bytes:
            asked.append((page.stopped(JOB.encode(), 7), cursor.position))
            return answer

    crew, child = Crew.__new__(Crew), SlotProcess.__new__(SlotProcess)
    crew.keys, crew.registration = [Keys("test")], cast("Registration", Server())
    child.page, child.queues = page, ("test",)
    cursor = page.read()
    page.begin(6, 1)  # it went on since the supervisor looked
    crew._give_back(child, cursor, 20.0)
    assert asked == [(True, 1)]
    assert page.stopped(JOB.encode(), 7) is (answer != b"nobody")
    page.hold(0, JOB, 8, 21_000, 3)
    crew._give_back(child, cursor, 21.0)
    assert len(asked) == 1


def test_a_slot_leaves_what_was_given_back(page: Page) -> None:
    """Of that lease; and whatever is of a job that was cancelled."""
    job = JOB.encode()
    assert not page.stopped(job, 7)
    page.give_back(7)
    assert page.stopped(job, 7)
    assert not page.stopped(job, 8)
    page.stop(job, 8)
    assert page.stopped(job, 8)
    assert not page.stopped(job, 9)
    assert not page.stopped(b"1" * 32, 8)
