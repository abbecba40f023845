"""Whoever reads a forged payload, by whichever door: it is refused, and the queue counts it.

And what says why a job ended, or is gone, may be anything: it is told in our words.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from conftest import wait_until
from test_forgery import Bomb

import dask_redisq as redisq
from dask_redisq.codec import pack
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.queue import Queue


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[bytes]:
    """A pickle that nobody may read."""
    yield pickle.dumps(Bomb(tmp_path / "mark"))
    assert not (tmp_path / "mark").exists()


def failed_job(queue: Queue) -> str:
    """Return the id of a detached job whose task raised."""
    future = queue.compute(dask.delayed(divmod)(1, 0), detach=True)
    wait_until(future.done)
    return future.id


def forge_error(link: Link, keys: Keys, job: str, pickled: bytes) -> None:
    """Say that task 0 of a job raised what a pickle holds."""
    link.command("HSET", keys("job", job), "error", pack(["raised", 0, pickled, "s"]))


def refused(queue: Queue) -> int:
    """Return what the queue counts."""
    return queue.stats()["refused_payloads"]


# ------------------------------------------------------------------------------- the doors


@pytest.mark.usefixtures("secret", "workers")
def test_a_forged_error_of_a_detached_job_is_counted_by_all_who_read_it(
    bomb: bytes, queue: Queue, link: Link, keys: Keys
) -> None:
    """By who attaches, and by who looks at what failed."""
    job = failed_job(queue)
    forge_error(link, keys, job, bomb)
    with pytest.raises(redisq.BadSignature, match="the error of task number 0"):
        queue.attach(job).result()
    assert refused(queue) == 1
    (row,) = queue.failed()
    assert isinstance(row["error"], redisq.BadSignature)
    assert refused(queue) == 2


@pytest.mark.usefixtures("secret", "workers")
def test_forged_names_of_tasks_are_counted_and_hide_no_error(
    bomb: bytes, queue: Queue, link: Link, keys: Keys
) -> None:
    """What the task raised is told all the same; it has its number for a name."""
    job = failed_job(queue)
    link.command("SET", keys("names", job), bomb)
    with pytest.raises(ZeroDivisionError) as caught:
        queue.attach(job).result()
    assert "raised by task 'number 0'" in str(caught.value.__notes__)
    assert refused(queue) == 1
    (row,) = queue.failed()
    assert (type(row["error"]), row["task"], row["key"]) == (ZeroDivisionError, 0, None)
    assert refused(queue) == 2


@pytest.mark.usefixtures("secret", "workers")
def test_forged_names_are_counted_by_who_looks_at_the_tasks(
    bomb: bytes, queue: Queue, link: Link, keys: Keys
) -> None:
    """The row has no key."""
    job = queue.compute(dask.delayed(time.sleep)(60), detach=True)
    wait_until(queue.tasks)
    link.command("SET", keys("names", job.id), bomb)
    assert [row["key"] for row in queue.tasks()] == [None]
    assert refused(queue) == 1
    job.cancel()


@pytest.mark.usefixtures("secret", "workers")
def test_a_forged_value_of_a_persisted_collection_is_counted_each_time(
    bomb: bytes, queue: Queue, link: Link, keys: Keys
) -> None:
    """By who computes it, and by who asks its future."""
    kept = queue.persist(dask.delayed(bytes)(200_000))
    (part,) = redisq.futures_of(kept)
    redisq.wait([part])
    record = link.command("HGET", keys("values", part.job), part.task)
    link.command("SET", keys("value", part.job, part.task, record[1:25].decode()), bomb)
    with pytest.raises(redisq.BadSignature, match="the value of task number 0"):
        dask.compute(kept, scheduler=queue.get)
    assert refused(queue) == 1
    with pytest.raises(redisq.BadSignature, match="the value of task number 0"):
        part.result()
    assert refused(queue) == 2


@pytest.mark.usefixtures("secret", "workers")
def test_who_may_only_look_is_told_what_was_refused(
    bomb: bytes, queue: Queue, link: Link, keys: Keys
) -> None:
    """It may not count it, which hides nothing."""
    job = failed_job(queue)
    forge_error(link, keys, job, bomb)
    link.command("ACL", "SETUSER", "looks", "reset", "on", ">looks", "%R~*", "+@read")
    try:
        with Queue("test", f"{link.url}?username=looks&password=looks") as looking:
            (row,) = looking.failed()
    finally:
        link.command("ACL", "DELUSER", "looks")
    assert isinstance(row["error"], redisq.BadSignature)
    assert refused(queue) == 0


# ------------------------------------------------------------------------------- reasons

NO_REASONS = [
    b"junk",
    b"",
    pack(["raised"]),
    pack(["died", 0, b"junk", "s"]),
    pack(["timeout", 0, pack([1]), "s"]),
    pack(["no kind", -1, b"", "s"]),
    pack(["cancelled", "text", b"", "s"]),
    pack(["unseen", 7, b"1", "s"]),
]


@pytest.mark.usefixtures("secret", "workers")
def test_a_reason_that_cannot_be_read_is_a_typed_error_that_says_so(
    queue: Queue, link: Link, keys: Keys
) -> None:
    """To who waits, and in the row of what failed."""
    job = failed_job(queue)
    for reason in NO_REASONS:
        link.command("HSET", keys("job", job), "error", reason)
        with pytest.raises(redisq.JobFailed, match=f"job {job} has ended, .* cannot be read"):
            queue.attach(job).result()
        (row,) = queue.failed()
        assert isinstance(row["error"], redisq.JobFailed)
        assert row["key"] is None or row["task"] == 0
    assert refused(queue) == 0


@pytest.mark.parametrize(
    "tomb",
    [
        b"junk",
        pack(["cancelled"]),
        pack(["no state", b""]),
        *(pack(["cancelled", reason]) for reason in NO_REASONS[:-2]),
        pack(["cancelled", pack(["raised", 0, b"a pickle", "s"])]),
        pack(["cancelled", pack(["cancelled", -1, 3, "s"])]),
    ],
)
def test_a_tomb_that_cannot_be_read_is_a_typed_error_that_says_so(
    tomb: bytes, queue: Queue, link: Link, keys: Keys
) -> None:
    """No payload is ever left in one, so none is looked at."""
    link.command("SET", keys("tomb", "j1"), tomb)
    with pytest.raises(redisq.JobLost, match="the word that it left cannot be read"):
        queue.attach("j1")
