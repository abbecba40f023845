"""A queue's connections, held between calls and closed when its user says so; and its pickle."""

from __future__ import annotations

import copy
import pickle
from threading import Thread

import dask
import pytest
from conftest import WorkerProcess, wait_until
from dask.base import tokenize

import dask_redisq as redisq
from dask_redisq.codec import pack
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.queue import Queue


def clients(link: Link) -> set[str]:
    """Return the ids of the server's connections."""
    lines = link.command("CLIENT", "LIST").decode().splitlines()
    return {line.split()[0] for line in lines}


def test_a_closed_queue_holds_no_connection(queue: Queue, link: Link) -> None:
    """Closing again is nothing; a later call connects again."""
    before = clients(link)
    for _ in range(2):
        queue.stats()
        held = clients(link) - before
        assert len(held) == 1
        queue.close()
        queue.close()
        wait_until(lambda: not held & clients(link))  # noqa: B023 - it is over by then


def test_the_end_of_a_with_block_closes_a_queue(link: Link) -> None:
    """Also when the block ends with an error."""
    before = clients(link)
    queue = Queue("test", link.url)
    with queue:
        queue.stats()
        held = clients(link) - before
        assert len(held) == 1
    wait_until(lambda: not held & clients(link))
    with pytest.raises(redisq.NoWorkersError), queue:
        queue.wait_for_workers(1, timeout=0)
    wait_until(lambda: clients(link) <= before)


def test_a_call_under_way_outlives_the_close_and_its_connection_does_not(
    queue: Queue, link: Link, keys: Keys
) -> None:
    """Another thread waits for workers: it gets its answer, then nothing is held."""
    before = clients(link)
    waiting = Thread(target=queue.wait_for_workers, args=(1,))
    waiting.start()
    wait_until(lambda: clients(link) - before)
    held = clients(link) - before
    queue.close()
    assert held <= clients(link)
    info = pack({"name": "w"})
    link.call("register", keys, worker="w", info=info, expiry=60_000, slot="s", seq=1, tags=b"")
    waiting.join()
    wait_until(lambda: not held & clients(link))


def test_a_queue_in_the_body_of_a_loop_is_that_of_the_slot(
    queue: Queue, workers: WorkerProcess
) -> None:
    """On the slot's own server, whatever the settings are there; in methods, too."""
    assert queue.foreach(lambda i: sum(queue.foreach(abs, i)), 4) == [0, 0, 1, 3]
    assert queue.foreach(_Holder(queue).total, 3) == [0, 1, 6]
    assert queue.foreach(lambda _: queue.url, 1) == [queue.url]


class _Holder:
    def __init__(self, queue: Queue) -> None:
        self.q = queue

    def total(self, i: int) -> int:
        """Return the sum of a loop."""
        found: int = self.q.foreach(lambda j: j * i, i + 1, combine=sum)
        return found


def test_the_pickle_of_a_queue_is_its_name(queue: Queue) -> None:
    """Neither URL nor password travels; who reads it has the server of its own settings."""
    mine = Queue("jobs", "redis://:sesame@away:6380/0")
    mine.set_chunk_size(7)
    data = pickle.dumps(mine)
    assert b"sesame" not in data
    assert b"away" not in data
    with dask.config.set({"redisq.url": queue.url}):
        other = pickle.loads(data)
        assert (other.name, other.url, other.defaults) == ("jobs", queue.url, {})
    assert copy.copy(mine) is mine
    assert copy.deepcopy([mine])[0] is mine
    assert tokenize(mine) == tokenize(Queue("jobs", "redis://:sesame@away:6380/0"))
    assert tokenize(mine) != tokenize(Queue("jobs", queue.url))
