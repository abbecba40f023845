"""What stays on the workers: persisted collections, futures of jobs, and who holds them."""

from __future__ import annotations

import gc
import os
import pickle
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from conftest import WorkerProcess, looked, wait_until
from dask._task_spec import Task, TaskRef
from dask.utils_test import inc
from test_detach import job_keys, run_python

import dask_redisq as redisq
from dask_redisq import client_lease, part_names, persist
from dask_redisq.codec import unpack
from dask_redisq.link import Link
from dask_redisq.queue import Queue


def chunks(rows: int = 800) -> Any:
    """Return an array of four chunks of 100 kB each at least, which is stored apart."""
    return da.arange(rows * 100, chunks=rows * 25).astype("f8")


def wait_file(path: Path, value: Any = 7) -> Any:
    """Return once a file is there."""
    while not path.exists():
        time.sleep(0.005)
    return value


def boom() -> None:
    """Raise."""
    raise OSError(5, "the disk is on fire")


def draw() -> bytes:
    """Return 100 kB that no second call returns."""
    return secrets.token_bytes(100_000)


def first(data: bytes) -> bytes:
    """Return the first bytes."""
    return data[:8]


def bytes_out(link: Link) -> int:
    """Return how many bytes the server has sent, to anybody."""
    info: bytes = link.command("INFO", "stats")
    return int(info.split(b"total_net_output_bytes:")[1].split()[0])


# persist.


def test_a_persisted_array_is_reduced_where_it_is(
    queue: Queue, link: Link, workers: WorkerProcess
) -> None:
    """Its chunks are read by the slots that made them; none goes over the wire again."""
    x = chunks(4000).persist(scheduler=queue.get)
    assert redisq.wait(redisq.futures_of(x), 20).not_done == set()
    expected = chunks(4000)
    for reduce in ("sum", "max", "mean", "min", "std"):
        before = bytes_out(link)
        got = getattr(x, reduce)().compute(scheduler=queue.get)
        assert got == pytest.approx(getattr(expected, reduce)().compute(scheduler="sync"))
        assert bytes_out(link) - before < 100_000, "a chunk of 800 kB moved"


@pytest.mark.parametrize("how", ["method", "function", "queue", "module", "name"])
def test_all_ways_to_persist_are_one(
    queue: Queue, workers: WorkerProcess, how: str, link: Link
) -> None:
    """By the collection, by dask, by the queue, by the default scheduler or its name."""
    x = chunks()
    with dask.config.set({"redisq.url": queue.url, "redisq.queue": queue.name}):
        if how == "method":
            y = x.persist(scheduler=queue.get)
        elif how == "function":
            (y,) = dask.persist(x, scheduler=queue.get)
        elif how == "queue":
            y = queue.persist(x)
        else:
            y = x.persist(scheduler=redisq.get if how == "module" else "redisq")
    assert len(redisq.futures_of(y)) == 4
    assert np.array_equal(y.compute(scheduler=queue.get), x.compute(scheduler="sync"))


def test_collections_of_all_kinds_are_persisted(queue: Queue, workers: WorkerProcess) -> None:
    """And used by later graphs: array, dataframe, bag, delayed."""
    frame = pd.DataFrame({"a": range(100), "b": [i % 7 for i in range(100)]})
    d = dd.from_pandas(frame, npartitions=5).persist(scheduler=queue.get)
    a, b, v = dask.persist(chunks(), db.range(20, 4), dask.delayed(inc)(4), scheduler=queue.get)
    assert (a + 1).sum().compute(scheduler=queue.get) == np.arange(80_000).sum() + 80_000
    got = d.groupby("b").a.sum().compute(scheduler=queue.get)
    assert got.sort_index().to_dict() == frame.groupby("b").a.sum().to_dict()
    assert len(d.shuffle("b").compute(scheduler=queue.get)) == 100
    assert b.map(inc).sum().compute(scheduler=queue.get) == 210
    assert v.compute(scheduler=queue.get) == 5  # its very key is asked for again
    assert dask.delayed(inc)(v).compute(scheduler=queue.get) == 6
    assert v.persist(scheduler=queue.get).compute(scheduler=queue.get) == 5
    expected = (np.arange(80_000).sum(), 20, 5)
    assert dask.compute(a.sum(), b.count(), v, scheduler=queue.get) == expected


def test_persist_does_not_wait_and_its_user_does(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """The collection is there at once; a graph that uses it begins when it is there."""
    gate = tmp_path / "gate"
    x = dask.delayed(wait_file)(gate).persist(scheduler=queue.get)
    (part,) = redisq.futures_of(x)
    assert not part.done()
    with pytest.raises(TimeoutError):
        part.result(timeout=0.1)
    later = queue.persist(dask.delayed(inc)(5))
    gate.touch()
    assert dask.delayed(inc)(x).compute(scheduler=queue.get) == 8
    assert part.done()
    assert part.result() == 7
    assert part.exception() is None
    assert later.compute(scheduler=queue.get) == 6


def test_values_go_when_the_last_collection_that_needs_them_goes(
    queue: Queue, link: Link, workers: WorkerProcess
) -> None:
    """They stay for another collection that is made of them, and no longer."""
    x = chunks().persist(scheduler=queue.get)
    y = (x + 1).persist(scheduler=queue.get)
    redisq.wait(redisq.futures_of(y))
    first_job = redisq.futures_of(x)[0].job
    del x
    gc.collect()
    assert y.sum().compute(scheduler=queue.get) == np.arange(80_000).sum() + 80_000
    del y
    gc.collect()
    wait_until(lambda: not link.command("EXISTS", queue.keys("client", first_job)))
    wait_until(lambda: looked(link, queue.keys) or not job_keys(link))
    wait_until(lambda: not job_keys(link))


def test_the_same_collection_persisted_twice_is_found_by_either(
    queue: Queue, workers: WorkerProcess
) -> None:
    """Their parts have the same names, and the later one is garbage first."""
    x = chunks() + 1
    first_one = x.persist(scheduler=queue.get)
    second = x.persist(scheduler=queue.get)
    assert second.sum().compute(scheduler=queue.get) == np.arange(80_000).sum() + 80_000
    del second
    gc.collect()
    assert first_one.sum().compute(scheduler=queue.get) == np.arange(80_000).sum() + 80_000
    assert np.array_equal(first_one.persist(scheduler=queue.get).compute(scheduler=queue.get),
        np.arange(80_000) + 1)  # fmt: skip


def test_what_is_persisted_under_a_name_that_lives_is_that_value(
    queue: Queue, workers: WorkerProcess
) -> None:
    """As in distributed: whoever came first still has what it had, and the second one the same."""
    a = dask.delayed(inc)(1, dask_key_name="k").persist(scheduler=queue.get)
    b = dask.delayed(inc)(100, dask_key_name="k").persist(scheduler=queue.get)
    assert dask.compute(a, scheduler=queue.get) == dask.compute(b, scheduler=queue.get) == (2,)
    assert redisq.futures_of(a) == redisq.futures_of(b)
    random = dask.delayed(draw)()
    once = random.persist(scheduler=queue.get, pure=False)
    value = once.compute(scheduler=queue.get)
    twice, user = dask.persist(random, dask.delayed(first)(random), scheduler=queue.get)
    assert twice.compute(scheduler=queue.get) == value == once.compute(scheduler=queue.get)
    assert user.compute(scheduler=queue.get) == value[:8]
    del a, b
    gc.collect()
    c = dask.delayed(inc)(100, dask_key_name="k").persist(scheduler=queue.get)
    assert c.compute(scheduler=queue.get) == 101


def test_a_shuffle_that_is_persisted_twice_is_one(queue: Queue, workers: WorkerProcess) -> None:
    """One "to disk" is rewritten, and has other keys than those that Dask asks for."""
    frame = pd.DataFrame({"a": range(100), "b": [i % 7 for i in range(100)]})
    shuffled = dd.from_pandas(frame, npartitions=5).shuffle("b")
    one, two = shuffled.persist(scheduler=queue.get), shuffled.persist(scheduler=queue.get)
    assert set(redisq.futures_of(one)) == set(redisq.futures_of(two))
    for some in (one, two):
        got = some.compute(scheduler=queue.get).sort_values("a")
        pd.testing.assert_frame_equal(got, frame)
        assert some.partitions[1].compute(scheduler=queue.get).b.nunique() < 7


def test_a_name_on_another_queue_is_another_value(queue: Queue, workers: WorkerProcess) -> None:
    """What lives there could not be read here."""
    with redisq.Queue("other", queue.url) as other:
        a = dask.delayed(inc)(1, dask_key_name="k").persist(scheduler=other.get)
        b = dask.delayed(inc)(100, dask_key_name="k").persist(scheduler=queue.get)
        assert b.compute(scheduler=queue.get) == 101
        assert redisq.futures_of(a)[0].cancel()


def test_persisting_what_is_on_its_way_does_not_wait_for_it(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Only what a new task reads is waited for."""
    gate = tmp_path / "gate"
    slow = dask.delayed(wait_file)(gate)
    x = slow.persist(scheduler=queue.get)
    again, new = dask.persist(slow, dask.delayed(inc)(5), scheduler=queue.get)
    assert not redisq.futures_of(x)[0].done()
    assert new.compute(scheduler=queue.get) == 6
    gate.touch()
    assert again.compute(scheduler=queue.get) == 7


def test_what_failed_or_was_cancelled_is_persisted_anew(
    queue: Queue, link: Link, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Its parts are still held, under that name: that is what "persist it again" mends."""
    gate = tmp_path / "gate"
    slow = dask.delayed(wait_file)(gate)
    cancelled = slow.persist(scheduler=queue.get)
    redisq.futures_of(cancelled)[0].cancel()
    gate.touch()
    lost = slow.persist(scheduler=queue.get)
    assert lost.compute(scheduler=queue.get) == 7
    for name in job_keys(link):
        link.command("DEL", name)
    assert slow.persist(scheduler=queue.get).compute(scheduler=queue.get) == 7


# Names of values that were freed.


def freed_array(queue: Queue) -> tuple[Any, Any]:
    """Return an array and a delayed value that are made of chunks which nobody holds any more."""
    x = chunks().persist(scheduler=queue.get)
    redisq.wait(redisq.futures_of(x))
    (total,) = dask.optimize(x + 1)
    return total, dask.delayed(np.sum)(x)


def test_a_graph_that_outlives_what_it_was_made_of_says_so(
    queue: Queue, workers: WorkerProcess
) -> None:
    """It names what is missing, and what to do; other names that are missing are not called so."""
    for lazy in freed_array(queue):
        gc.collect()
        with pytest.raises(ValueError, match=r"Missing dependency.*was persisted.*keep a ref"):
            lazy.compute(scheduler=queue.get)
        with pytest.raises(ValueError, match=r"Missing dependency.*was persisted.*keep a ref"):
            lazy.persist(scheduler=queue.get)
    x = chunks().persist(scheduler=queue.get)
    key = redisq.futures_of(x)[0].key
    del x
    gc.collect()
    with pytest.raises(KeyError, match=r"astype.*was persisted.*keep a reference"):
        queue.get({}, key)
    with pytest.raises(ValueError, match="Missing dependency") as caught:
        queue.get({"y": Task("y", inc, TaskRef("x"))}, "y")
    assert "persisted" not in str(caught.value)
    with pytest.raises(KeyError) as bare:
        queue.get({}, "x")
    assert bare.value.args == ("x",)


def test_names_of_freed_values_are_remembered_up_to_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that were freed last; one that is persisted again is no longer freed."""
    monkeypatch.setattr(part_names, "MOST_FREED", 3)
    table = part_names._Table()
    for key in "abcdea":
        part = persist.Part(cast("Any", None), key, 0)
        table.enter(key, part)
        assert not table.was_freed(key)
        del part
        gc.collect()
    assert [key for key in "abcdef" if table.was_freed(key)] == ["a", "d", "e"]


def test_a_job_holds_what_it_uses_when_its_client_lets_go(
    queue: Queue, link: Link, workers: WorkerProcess, tmp_path: Path
) -> None:
    """C drops x while a detached job that reads x is on its way."""
    x = chunks().persist(scheduler=queue.get)
    (used,) = {part.job for part in redisq.futures_of(x)}
    gate = tmp_path / "gate"
    slow = dask.delayed(wait_file)(gate, 1)
    future = queue.compute(dask.delayed(lambda a, b: float(a.sum()) + b)(x, slow), detach=True)
    del x
    gc.collect()
    wait_until(lambda: not link.command("EXISTS", queue.keys("client", used)))
    assert looked_again(link, queue)
    assert looked_again(link, queue)
    gate.touch()
    assert future.result(60) == np.arange(80_000).sum() + 1
    future.forget()
    assert looked_again(link, queue)
    wait_until(lambda: not job_keys(link))


def test_a_detached_job_that_is_done_holds_what_a_lost_result_is_made_of(
    queue: Queue, link: Link, workers: WorkerProcess
) -> None:
    """C lets x go then; who comes later finds no result, and gets it all the same."""
    x = chunks().persist(scheduler=queue.get)
    (used,) = {part.job for part in redisq.futures_of(x)}
    future = queue.compute(x.sum(), detach=True)
    assert future.result(60) == np.arange(80_000).sum()
    del x
    gc.collect()
    wait_until(lambda: not link.command("EXISTS", queue.keys("client", used)))
    assert looked_again(link, queue)
    link.command("DEL", queue.keys("values", future.id))
    assert queue.attach(future.id).result(60) == np.arange(80_000).sum()
    future.forget()
    assert looked_again(link, queue)
    wait_until(lambda: not job_keys(link))


def looked_again(link: Link, queue: Queue) -> bool:
    """Have a monitor look, whenever the last look was."""
    link.command("DEL", queue.keys("monitor"))
    return looked(link, queue.keys)


def persisted_and_lost(
    queue: Queue, link: Link, start_worker: Callable[..., WorkerProcess], slots: int
) -> Any:
    """Return a persisted array whose values are gone, from the server and from the slots."""
    worker = start_worker("test", "--nworkers", f"{slots}", "--alive-expiry", "2")
    queue.wait_for_workers(slots, timeout=90)
    x = chunks().persist(scheduler=queue.get, ft_interval=1)
    redisq.wait(redisq.futures_of(x))
    for name in job_keys(link):
        if b":value:" in name:
            link.command("DEL", name)
    for slot in worker.slots():
        slot.kill()
    return x


def test_a_persisted_value_that_is_lost_is_made_again(
    queue: Queue, link: Link, start_worker: Callable[..., WorkerProcess]
) -> None:
    """Its graph stays as long as it does."""
    x = persisted_and_lost(queue, link, start_worker, 2)
    assert x.sum().compute(scheduler=queue.get, ft_interval=1) == np.arange(80_000).sum()
    assert np.array_equal(x.compute(scheduler=queue.get), np.arange(80_000))


def test_values_of_an_impure_graph_that_were_made_again_fail_their_user(
    queue: Queue, link: Link, workers: WorkerProcess, tmp_path: Path
) -> None:
    """One answer would hold both: the value that was, and the one that is."""
    gate = tmp_path / "gate"
    x = dask.delayed(draw)()
    y = x.persist(scheduler=queue.get, pure=False)
    (part,) = redisq.futures_of(y)
    part.result()
    one = dask.delayed(first)(y)
    two = dask.delayed(lambda a, _: a)(one, dask.delayed(wait_file)(gate))
    three = dask.delayed(lambda a, b: (a, b[:8]))(two, y)
    future = queue.compute(three)
    wait_until(lambda: link.command("HGET", queue.keys("job", future.id), "finished") == b"1")
    epoch = link.command("HGET", queue.keys("job", part.job), "epoch")
    for name in job_keys(link, part.job):
        if b":value:" in name:
            link.command("DEL", name)
    link.call("report_missing", queue.keys, job=part.job, task=-1, input=part.task)
    part.result()  # it is made again
    assert link.command("HGET", queue.keys("job", part.job), "epoch") != epoch
    gate.touch()
    with pytest.raises(redisq.JobLost, match="pure=False"):
        future.result(60)


def test_a_persisted_collection_that_is_gone_says_what_to_do(
    queue: Queue, link: Link, workers: WorkerProcess
) -> None:
    """The server lost it, or it was cancelled."""
    x = chunks().persist(scheduler=queue.get)
    redisq.wait(redisq.futures_of(x))
    part = redisq.futures_of(x)[0]
    for name in job_keys(link):
        link.command("DEL", name)
    with pytest.raises(redisq.JobLost, match="gone"):
        x.sum().compute(scheduler=queue.get)
    assert isinstance(part.exception(), redisq.JobLost)


def test_a_persisted_task_that_raises_raises_where_it_is_used(
    queue: Queue, workers: WorkerProcess
) -> None:
    """With its own type; its future is done, with that exception."""
    x = dask.delayed(boom)().persist(scheduler=queue.get)
    with pytest.raises(OSError, match="on fire"):
        dask.delayed(inc)(x).compute(scheduler=queue.get)
    (part,) = redisq.futures_of(x)
    assert part.done()
    assert isinstance(part.exception(), OSError)


def test_cancelling_a_part_cancels_its_collection(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Who waits for it hears why."""
    x = dask.delayed(wait_file)(tmp_path / "never").persist(scheduler=queue.get)
    (part,) = redisq.futures_of(x)
    assert part.cancel("enough")
    with pytest.raises(redisq.JobCancelled, match="enough"):
        x.compute(scheduler=queue.get)


def test_a_part_is_not_pickled(queue: Queue, workers: WorkerProcess) -> None:
    """Its process holds it; elsewhere it would be a name for nothing."""
    x = chunks().persist(scheduler=queue.get)
    with pytest.raises(TypeError, match="this process holds it"):
        pickle.dumps(redisq.futures_of(x)[0])


def test_a_forked_child_lets_go_of_nothing(queue: Queue, workers: WorkerProcess) -> None:
    """Its copies of the collections end with it."""
    x = chunks().persist(scheduler=queue.get)
    redisq.wait(redisq.futures_of(x))
    pid = os.fork()
    if pid == 0:
        del x
        gc.collect()
        os._exit(0)
    os.waitpid(pid, 0)
    time.sleep(0.3)
    assert x.sum().compute(scheduler=queue.get) == np.arange(80_000).sum()


def test_a_client_that_ends_leaves_nothing(
    queue: Queue, link: Link, workers: WorkerProcess
) -> None:
    """In good order at once; one that is killed, by the end of its lease."""
    code = (
        "import os, dask, sys; import dask_redisq as redisq; import dask.array as da\n"
        f"queue = redisq.Queue('test', {queue.url!r})\n"
        "x = queue.persist(da.ones(80_000, chunks=20_000))\n"
        "redisq.wait(redisq.futures_of(x))\n"
        "print(x.sum().compute(scheduler=queue.get))\n"
    )
    assert run_python(code) == "80000.0"
    wait_until(lambda: not job_keys(link))
    killed = f"{code}sys.stdout.flush()\nos._exit(0)\n"
    assert run_python(killed, DASK_REDISQ__CLIENT_LEASE="1") == "80000.0"
    wait_until(lambda: not link.command("KEYS", "*:client"))
    assert looked_again(link, queue)
    wait_until(lambda: not job_keys(link))


def test_a_value_that_is_lost_is_made_again_for_a_more_urgent_user(
    queue: Queue, link: Link, start_worker: Callable[..., WorkerProcess]
) -> None:
    """One slot: the user comes back at once, and would be leased for ever."""
    x = persisted_and_lost(queue, link, start_worker, 1)
    got = x.sum().compute(scheduler=queue.get, ft_interval=1, priority=10)
    assert got == np.arange(80_000).sum()


def test_persisting_in_a_loop_keeps_the_last_one(
    queue: Queue, link: Link, workers: WorkerProcess
) -> None:
    """What it was made of is nobody's any more once it is there."""
    z = chunks()
    for _ in range(4):
        z = (z + 1).persist(scheduler=queue.get)
        redisq.wait(redisq.futures_of(z))
    gc.collect()
    (last,) = {part.job for part in redisq.futures_of(z)}
    wait_until(lambda: link.command("KEYS", "*:client") == [queue.keys("client", last).encode()])
    assert looked_again(link, queue)
    wait_until(lambda: [row["id"] for row in queue.jobs()] == [last])
    assert z.sum().compute(scheduler=queue.get) == np.arange(80_000).sum() + 4 * 80_000


def test_a_client_that_ends_at_once_lets_go_as_well(
    queue: Queue, link: Link, workers: WorkerProcess
) -> None:
    """Its helper has not even started."""
    code = (
        "import dask; import dask_redisq as redisq\n"
        f"queue = redisq.Queue('test', {queue.url!r})\n"
        "x = queue.persist(dask.delayed(sum)([1, 2]))\n"
    )
    run_python(code)
    wait_until(lambda: not job_keys(link))


def test_the_successor_of_a_helper_that_was_killed_holds_all(
    queue: Queue, link: Link, workers: WorkerProcess
) -> None:
    """The lease of a persisted collection is renewed by nobody else."""
    with dask.config.set({"redisq.client-lease": 3}):
        x = chunks().persist(scheduler=queue.get)
        redisq.wait(redisq.futures_of(x))
        (helper,) = client_lease._helpers.values()
        helper.process.kill()
        helper.process.wait()
        assert dask.delayed(inc)(1).compute(scheduler=queue.get) == 2
        lease, left = queue.keys("client", redisq.futures_of(x)[0].job), 0

        def renewed() -> bool:
            nonlocal left
            before, left = left, link.command("PTTL", lease)
            assert left > 0, "it ran out"
            return bool(0 < before < left)

        wait_until(renewed)
        wait_until(renewed)
        assert x.sum().compute(scheduler=queue.get) == np.arange(80_000).sum()


# Futures.


def test_forgetting_a_future_leaves_what_a_job_uses(
    queue: Queue, link: Link, workers: WorkerProcess, tmp_path: Path
) -> None:
    """It ends at once otherwise, also while it runs."""
    never = queue.compute(dask.delayed(wait_file)(tmp_path / "never"))
    never.forget()
    wait_until(lambda: not job_keys(link))
    assert never.done()
    with pytest.raises(redisq.JobLost):  # and it is not submitted again
        never.result(30)
    assert queue.jobs() == []
    kept = queue.compute(dask.delayed(inc)(1))
    assert kept.result() == 2
    user = "f" * 32
    link.command("HSET", queue.keys("job", user), "state", "running")
    link.command("SADD", queue.keys("holders", kept.id), user)
    kept.forget()
    assert link.command("HGET", queue.keys("job", kept.id), "state") == b"done"


def test_a_future_that_is_dropped_cancels_its_job(
    queue: Queue, link: Link, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Nobody could ever read it."""
    future = queue.compute(dask.delayed(wait_file)(tmp_path / "never"))
    wait_until(lambda: queue.stats()["running"] == 1)
    assert not future.done()
    del future
    gc.collect()
    wait_until(lambda: not job_keys(link))


def test_futures_come_as_they_are_done(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Parts and futures of jobs, mixed; the others can be waited for with a time."""
    gates = [tmp_path / str(i) for i in range(2)]
    whole = queue.compute(dask.delayed(wait_file)(gates[1], "whole"))
    parts = redisq.futures_of(
        dask.persist(*[dask.delayed(wait_file)(gates[0], i) for i in range(3)], scheduler=queue.get)
    )
    with pytest.raises(TimeoutError, match="4 futures"):
        list(redisq.as_completed([whole, *parts], timeout=0.1))
    assert redisq.wait([whole, *parts], timeout=0.1).done == set()
    gates[0].touch()
    done = redisq.as_completed([whole, *parts])
    assert sorted(next(done).result() for _ in parts) == [0, 1, 2]
    gates[1].touch()
    assert next(done) is whole
    assert whole.result() == "whole"
    first_done = redisq.wait([whole, *parts], return_when="FIRST_COMPLETED")
    assert len(first_done.done) == 1
    failed = queue.compute(dask.delayed(boom)())
    assert failed in redisq.wait([failed], return_when="FIRST_EXCEPTION").done
    with pytest.raises(ValueError, match="FIRST_COMPLETED"):
        redisq.wait([], return_when="SOMETIMES")


def test_the_result_of_a_future_can_be_read_twice(queue: Queue, workers: WorkerProcess) -> None:
    """By two objects too: nothing is freed by reading."""
    future = queue.compute(chunks().sum(), chunks())
    again = redisq.Future(queue.pool, queue.keys, future.id, future._answer, future.kept)
    assert future.result()[0] == again.result()[0] == np.arange(80_000).sum()
    assert np.array_equal(again.result()[1], np.arange(80_000))


def test_what_a_kept_value_is_called_says_who_made_it(
    queue: Queue, link: Link, workers: WorkerProcess
) -> None:
    """So that a task that reads it is offered to that slot first."""
    x = chunks().persist(scheduler=queue.get)
    parts = redisq.futures_of(x)
    redisq.wait(parts)
    slots = {slot.encode() for row in queue.workers() for slot in row["slots"]}
    made = link.command("HMGET", queue.keys("values", parts[0].job), *[p.task for p in parts])
    assert {record[1:17] for record in made} <= slots
    leased = link.command("HGETALL", queue.keys("leases", parts[0].job))
    assert [unpack(lease)[1] for lease in leased[1::2]] == []
