"""What happens to a job while its client still sends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import wait_until
from dask.utils_test import inc

import dask_redisq as redisq
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.queue import Queue

pytestmark = pytest.mark.usefixtures("workers")


class Gate:
    """An argument that keeps its client from pickling it until `until` holds."""

    def __init__(self, until: Callable[[], object]) -> None:
        self.until = until

    def __reduce__(self) -> Any:
        wait_until(self.until)
        return (int, ())


def raise_first(i: int) -> int:
    """Fail in the first task only."""
    if i == 0:
        raise ZeroDivisionError("the first one")
    return i


def _job(link: Link, keys: Keys) -> str:
    """Return the id of the only job."""
    wait_until(lambda: link.command("ZCARD", keys("jobs")) == 1)
    return str(link.command("ZRANGE", keys("jobs"), 0, -1)[0].decode())


def test_a_task_that_fails_during_the_upload_tells_its_own_error(
    queue: Queue, link: Link, keys: Keys
) -> None:
    """The rest of the blocks is not sent, and nobody speaks of an incomplete upload."""
    gate = Gate(lambda: link.command("HGET", keys("job", _job(link, keys)), "state") == b"failed")
    dsk: dict[Any, Any] = {("x", i): (raise_first, i) for i in range(3000)}
    dsk["x", 1500] = (inc, gate)
    with pytest.raises(ZeroDivisionError, match="the first one"):
        queue.get(dsk, list(dsk))


def test_a_job_that_is_cancelled_during_the_upload_tells_why(
    queue: Queue, link: Link, keys: Keys
) -> None:
    """As one that is cancelled later does."""
    gate = Gate(
        lambda: (
            link.call("cancel", keys, job=_job(link, keys), reason="nobody wants it", tomb="1")
            or True
        )
    )
    dsk: dict[Any, Any] = {("x", i): (inc, i) for i in range(3000)}
    dsk["x", 1500] = (inc, gate)
    with pytest.raises(redisq.JobCancelled, match="nobody wants it"):
        queue.get(dsk, list(dsk))
