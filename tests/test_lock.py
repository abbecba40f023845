"""Locks and semaphores over Redis: for what tasks on several hosts must not do at the same time."""

from __future__ import annotations

import gc
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest
from conftest import WorkerProcess, wait_until
from dask._task_spec import DataNode, Task, TaskRef
from test_faults import Background

import dask_redisq as redisq
from dask_redisq.codec import unpack
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.queue import Queue

if TYPE_CHECKING:
    from driver import Engine


def count_up(lock: redisq.Lock, counter: Path, fences: Path) -> None:
    """Read, wait, write: two at a time would lose one."""
    with lock:
        n = int(counter.read_text())
        time.sleep(0.005)
        counter.write_text(str(n + 1))
        with fences.open("a") as file:
            file.write(f"{lock.fence}\n")


def hold_and_wait(semaphore: redisq.Semaphore, log: Path, gate: Path) -> bool:
    """Hold it until the gate is there."""
    with semaphore:
        with log.open("a") as file:
            file.write("held\n")
        while not gate.exists():
            time.sleep(0.01)
    return semaphore.locked()


class Slices:
    """Takes slices like an array in a file, all of whose processes see the same one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __setitem__(self, where: Any, part: Any) -> None:
        whole = np.load(self.path)
        time.sleep(0.005)
        whole[where] = part
        np.save(self.path, whole)


def test_one_task_at_a_time_holds_a_lock(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """In whatever process it runs; each holder has a higher fence than the one before."""
    counter, fences = tmp_path / "counter", tmp_path / "fences"
    counter.write_text("0")
    lock = redisq.Lock("counter", queue)
    dsk = {("up", i): (count_up, lock, counter, fences) for i in range(30)}
    queue.get(dsk, list(dsk), chunk_size=1)
    assert counter.read_text() == "30"
    seen = [int(line) for line in fences.read_text().split()]
    assert seen == sorted(set(seen))


def meet(lock: Any, folder: Path, key: int) -> int:
    """Hold a lock, in whatever it came, and count who else holds it meanwhile."""
    while type(lock) is not redisq.Lock:
        lock = lock[0] if isinstance(lock, list | tuple) else lock["lock"]
    with lock:
        inside = folder / f"inside {key}"
        inside.touch()
        time.sleep(0.1)
        found = len(list(folder.glob("inside *")))
        inside.unlink()
    return found


def meeting(number: int, *, lock: Any, folder: Path) -> tuple[int, int]:
    """Wait until two slots are here, then meet; return how many held it, and our process."""
    (folder / f"here {number}").touch()
    wait_until(lambda: len(list(folder.glob("here *"))) == 2)
    return meet(lock, folder, number), os.getpid()


@pytest.mark.parametrize("way", ["argument", "list", "dict", "nested", "delayed", "ref", "closure"])
def test_a_lock_is_the_same_one_however_it_comes_to_a_task(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, way: str
) -> None:
    """Two slots have it at the same time, and one holds it."""
    lock = redisq.Lock(queue=queue)
    fn = dask.delayed(meeting, pure=False)
    words: dict[str, Any] = {"folder": tmp_path}
    given: dict[str, Any] = {
        "argument": lock,
        "list": [lock],
        "dict": {"lock": lock},
        "nested": {"lock": [(lock,)]},
        "delayed": dask.delayed(lock),
    }
    if way in given:
        tasks = [fn(i, lock=given[way], **words) for i in range(2)]
        found = dask.compute(*tasks, scheduler=queue.get, chunk_size=1)
    elif way == "ref":
        dsk: dict[Any, Any] = {"lock": DataNode("lock", lock)}
        for i in range(2):
            dsk["x", i] = Task(("x", i), meeting, i, lock=TaskRef("lock"), **words)
        found = queue.get(dsk, [("x", 0), ("x", 1)], chunk_size=1)
    else:
        enclosed = dask.delayed(lambda i: meeting(i, lock=lock, **words), pure=False)
        found = dask.compute(enclosed(0), enclosed(1), scheduler=queue.get, chunk_size=1)
    assert [most for most, _ in found] == [1, 1]
    assert len({pid for _, pid in found}) == 2
    assert not lock.locked()


def test_a_store_under_a_lock_writes_every_chunk(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """`da.store`, whose own lock would hold within each process only."""
    target: Any = Slices(tmp_path / "whole.npy")
    np.save(target.path, np.zeros(400))
    x = da.arange(400, chunks=20)
    lock: Any = redisq.Lock(queue=queue)
    da.store(x, target, lock=lock, scheduler=queue.get)
    assert np.array_equal(np.load(target.path), np.arange(400))


def test_a_semaphore_has_so_many_places(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Two of three hold it; the third gets in when the gate opens."""
    start_worker("test", "--nworkers", "3")
    queue.wait_for_workers(3, timeout=90)
    log, gate = tmp_path / "log", tmp_path / "gate"
    semaphore = redisq.Semaphore(2, "places", queue)
    dsk = {("s", i): (hold_and_wait, semaphore, log, gate) for i in range(3)}
    job = Background(queue.get, dsk, list(dsk), chunk_size=1)
    wait_until(lambda: log.exists() and len(log.read_text().split()) == 2)
    assert not semaphore.acquire(blocking=False)
    assert not semaphore.acquire(timeout=0.05)
    assert len(log.read_text().split()) == 2
    gate.touch()
    assert job.result() == (False, False, False)
    assert semaphore.acquire(timeout=5)
    semaphore.release()


def test_who_waits_gets_it_as_soon_as_it_is_free(queue: Queue, link: Link) -> None:
    """Not at its next look, 5 s later, nor when the expiry of its holder is over."""
    first, second = redisq.Lock("x", queue), redisq.Lock("x", queue)
    assert first.acquire()
    waiting = Background(second.acquire)
    wait_until(lambda: b"blocked_clients:1" in link.command("INFO", "clients"))
    began = time.monotonic()
    first.release()
    assert waiting.result() is True
    assert time.monotonic() - began < 2
    assert second.locked()
    assert not first.locked()
    second.release()


@pytest.mark.parametrize("timeout", [None, -1])
def test_a_timeout_of_none_waits_for_ever(queue: Queue, link: Link, timeout: float | None) -> None:
    """It is the word of `distributed.Lock`, whose place this takes; below 0 is threading's."""
    first, second = redisq.Lock("x", queue), redisq.Lock("x", queue)
    assert first.acquire(timeout=timeout)
    waiting = Background(second.acquire, timeout=timeout)
    wait_until(lambda: b"blocked_clients:1" in link.command("INFO", "clients"))
    first.release()
    assert waiting.result() is True
    assert not first.acquire(blocking=False, timeout=timeout)
    second.release()


def test_the_place_of_a_holder_that_died_is_free_after_its_expiry(
    queue: Queue, link: Link, keys: Keys
) -> None:
    """It is called as by a process that was killed: nobody renews, nobody releases."""
    words = {"name": "x", "places": 1, "token": "d" * 16, "slot": ""}
    link.call("acquire", keys, expiry=300, **words)
    lock = redisq.Lock("x", queue)
    assert not lock.acquire(blocking=False)
    assert lock.acquire(timeout=5)
    lock.release()


def fail_later(seen: Path) -> None:
    """Raise once somebody holds the lock."""
    wait_until(seen.exists)
    raise ZeroDivisionError


def hold_for_ever(lock: redisq.Lock, place: redisq.Semaphore, seen: Path, fence: Path) -> None:
    """Hold both until the process is killed."""
    with lock, place:
        fence.write_text(str(lock.fence))
        seen.touch()
        time.sleep(3600)


def hold_and_exit(lock: redisq.Lock, fence: Path) -> bool:
    """End the process the first time, while it holds the lock; tell whether it may go on."""
    with lock:
        if not fence.exists():
            fence.write_text(str(lock.fence))
            os._exit(3)
    return True


def test_what_a_killed_slot_held_of_locks_is_free(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """A sibling failed, so it is killed a second later; the expiry is not waited for."""
    lock = redisq.Lock("file", queue, expiry=3600)
    place = redisq.Semaphore(2, "places", queue, expiry=3600)
    seen, fence = tmp_path / "seen", tmp_path / "fence"
    dsk = {"fails": (fail_later, seen), "holds": (hold_for_ever, lock, place, seen, fence)}
    with pytest.raises(ZeroDivisionError):
        queue.get(dsk, list(dsk), chunk_size=1)
    for one in (lock, place, place):
        assert one.acquire(timeout=40)
    assert lock.fence > int(fence.read_text())
    for one in (lock, place, place):
        one.release()


def test_a_task_that_ends_its_process_leaves_no_lock_behind(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """It runs again, and takes the same lock."""
    lock, fence = redisq.Lock("file", queue, expiry=3600), tmp_path / "fence"
    assert queue.compute(dask.delayed(hold_and_exit)(lock, fence)).result(timeout=80)
    assert lock.acquire(blocking=False)
    assert lock.fence > int(fence.read_text())
    lock.release()


def test_a_call_for_a_lock_that_comes_after_the_end_of_its_slot_takes_nothing(
    queue: Queue, link: Link, keys: Keys, engine: Engine
) -> None:
    """It was under way when the slot was killed: nobody would give that back."""
    slot, other = engine.slot("one"), engine.slot("two")
    words = {"name": "x", "places": 1, "expiry": 60_000}
    taken = unpack(link.call("acquire", keys, token="d" * 16, slot=slot.id, **words))
    assert taken[0] > 0
    assert link.call("hold", keys, name="x", token="d" * 16, expiry=60_000) == 1
    engine.unregister(slot)
    assert link.call("hold", keys, name="x", token="d" * 16, expiry=60_000) == 0
    assert unpack(link.call("acquire", keys, token="e" * 16, slot=slot.id, **words))[0] == 0
    late = unpack(link.call("acquire", keys, token="f" * 16, slot=other.id, **words))
    assert late[0] > taken[0]
    engine.unregister(slot)  # a late copy of that frees nobody else's
    assert not redisq.Lock("x", queue).acquire(blocking=False)
    assert link.call("release", keys, name="x", token="f" * 16) == 1
    assert link.command("EXISTS", keys("places", slot.id), keys("places", other.id)) == 0


def test_the_place_of_a_whole_worker_that_is_missed_stays_until_its_expiry(
    queue: Queue, link: Link, keys: Keys, engine: Engine
) -> None:
    """It may be cut off only, and go on with what the lock guards."""
    slot = engine.slot("one")
    words = {"name": "x", "places": 1, "expiry": 60_000, "token": "d" * 16}
    assert unpack(link.call("acquire", keys, slot=slot.id, **words))[0] > 0
    engine.leave(slot.worker)
    assert not redisq.Lock("x", queue).acquire(blocking=False)


def test_a_holder_that_lives_keeps_it_beyond_its_expiry(
    queue: Queue, link: Link, keys: Keys
) -> None:
    """A thread renews it."""

    def until() -> int:
        fields = link.command("HGETALL", keys("lock", "x"))
        entries = dict(zip(fields[::2], fields[1::2], strict=True))
        return int(unpack(entries[next(f for f in entries if f != b"last")])[0])

    with redisq.Lock("x", queue, expiry=1):
        taken = until()
        wait_until(lambda: until() > taken)


def test_one_object_may_hold_several_places(queue: Queue, link: Link, keys: Keys) -> None:
    """Each is renewed and given back by itself."""
    semaphore = redisq.Semaphore(2, "x", queue)
    assert semaphore.acquire()
    first = semaphore.fence
    assert semaphore.acquire()
    assert semaphore.fence > first
    assert not semaphore.acquire(blocking=False)
    semaphore.release()
    assert semaphore.fence == first
    semaphore.release()
    assert not semaphore.locked()
    assert link.command("HKEYS", keys("lock", "x")) in ([b"last", b"gone"], [b"gone", b"last"])


def test_who_is_interrupted_while_it_takes_a_lock_does_not_hold_it(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between the server's answer and the client."""
    call = Link.call

    def interrupted(self: Link, script: str, keys: Keys, /, **args: Any) -> Any:
        answer = call(self, script, keys, **args)
        if script == "acquire":
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(Link, "call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        redisq.Lock("x", queue).acquire()
    monkeypatch.undo()
    assert redisq.Lock("x", queue).acquire(blocking=False)


def test_a_lock_works_while_the_memory_is_full(queue: Queue, link: Link, keys: Keys) -> None:
    """Who holds it may be who frees some."""
    link.command("CONFIG", "SET", "maxmemory", 1)
    try:
        lock = redisq.Lock("x", queue)
        assert lock.acquire(blocking=False)
        words = {"name": "x", "token": lock._held[0].token, "expiry": 60_000}
        assert link.call("hold", keys, **words) == 1
        lock.release()
    finally:
        link.command("CONFIG", "SET", "maxmemory", 0)


def test_a_holder_that_lost_it_is_told_at_the_release(queue: Queue, link: Link, keys: Keys) -> None:
    """Somebody else may have had it."""
    lock = redisq.Lock("x", queue)
    lock.acquire()
    link.command("DEL", keys("lock", "x"))
    with pytest.raises(redisq.LockLost, match="not renewed for 60 s"):
        lock.release()
    assert not lock.locked()
    with pytest.raises(RuntimeError, match="is not held"):
        lock.release()


def test_a_late_copy_of_a_call_takes_no_lock(queue: Queue, link: Link, keys: Keys) -> None:
    """It comes after the release: nobody would give it back."""
    words = {"name": "x", "places": 1, "token": "d" * 16, "expiry": 60_000, "slot": ""}
    link.call("acquire", keys, **words)
    link.call("release", keys, name="x", token="d" * 16)
    link.call("acquire", keys, **words)
    lock = redisq.Lock("x", queue)
    assert lock.acquire(blocking=False)
    vain = {**words, "token": "e" * 16}
    link.call("acquire", keys, **vain)
    link.call("release", keys, name="x", token="e" * 16)  # it gave up
    lock.release()
    link.call("acquire", keys, **vain)
    assert redisq.Lock("x", queue).acquire(blocking=False)


def test_a_release_whose_reply_was_lost_is_no_loss(link: Link, keys: Keys) -> None:
    """The second call is answered like the first; so is one of a lock that is lost."""
    words = {"name": "x", "places": 1, "expiry": 60_000, "slot": ""}
    link.call("acquire", keys, token="d" * 16, **words)
    for token, answer in (("d", 1), ("e", 0)):
        for _ in range(2):
            assert link.call("release", keys, name="x", token=token * 16) == answer


def test_a_lock_in_another_process_is_held_by_nobody_there(queue: Queue) -> None:
    """It travels without its URL, which may hold a password, and without its token."""
    lock = redisq.Lock("x", queue, expiry=7)
    with lock:
        copy = pickle.loads(pickle.dumps(lock))
        assert lock.fence > 0
        assert not copy.locked()
        assert (copy.name, copy.expiry, copy.fence) == ("x", 7.0, 0)
        assert queue.url.encode() not in pickle.dumps(lock)
    assert redisq.Lock(queue=queue).name != redisq.Lock(queue=queue).name


def release_in_child(lock: redisq.Lock) -> int:
    """Fork; return 0 if the child holds nothing, can give nothing back, and can take nothing."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            held = lock.locked() or lock.fence > 0
            lock.release()
        except RuntimeError:
            code = int(held or lock.acquire(blocking=False))
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


# From Python 3.12 on; the threads are those that renew, and the child takes no lock of theirs.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_holds_nothing_of_its_parent(queue: Queue) -> None:
    """It would give back what its parent counts on."""
    with redisq.Lock("x", queue) as lock:
        assert release_in_child(lock) == 0
        assert not redisq.Lock("x", queue).acquire(blocking=False)


@pytest.mark.parametrize("kind", [redisq.Lock, redisq.Semaphore])
def test_what_nobody_refers_to_is_given_back(queue: Queue, kind: Callable[..., Any]) -> None:
    """A thread would renew it for as long as the process lives."""
    other = kind(name="x", queue=queue)
    kind(name="x", queue=queue, expiry=3600).acquire()
    assert other.acquire(timeout=20)
    other.release()
    kind(name="x", queue=queue).acquire()
    circle: list[Any] = [kind(name="y", queue=queue, expiry=3600)]
    circle.append(circle)
    assert circle[0].acquire()
    del circle
    gc.collect()
    assert kind(name="y", queue=queue).acquire(timeout=20)


def take_and_fail(lock: redisq.Lock) -> None:
    """Raise while it is held."""
    lock.acquire()
    raise ZeroDivisionError


def test_a_task_that_raises_while_it_holds_a_lock_gives_it_back(
    queue: Queue, workers: WorkerProcess
) -> None:
    """Its slot lives, and would renew it; the expiry is not waited for."""
    take = dask.delayed(lambda: take_and_fail(redisq.Lock("x", "test", expiry=3600)))
    with pytest.raises(ZeroDivisionError):
        queue.compute(take()).result(timeout=80)
    assert redisq.Lock("x", queue).acquire(timeout=20)


def test_a_lock_whose_cluster_was_closed_is_lost() -> None:
    """Its holder is told as it gives it back; what renews it says nothing."""
    with redisq.LocalCluster(n_workers=1) as cluster:
        lock = redisq.Lock("x", cluster, expiry=1)
        lock.acquire()
        renews = next(thread for thread in threading.enumerate() if thread.name == "lock")
    renews.join(20)  # it looks within a third of a second
    assert not renews.is_alive()
    with pytest.raises(redisq.LockLost, match="has ended, and its server with it"):
        lock.release()
    assert not lock.locked()


def test_the_lock_of_a_store_is_soon_forgotten(
    queue: Queue, workers: WorkerProcess, link: Link, keys: Keys, tmp_path: Path
) -> None:
    """Each store has one of its own, and nobody asks for its fence; that of a named one stays."""
    target: Any = Slices(tmp_path / "whole.npy")
    np.save(target.path, np.zeros(40))
    da.store(da.arange(40, chunks=20), target, lock=True, scheduler=queue.get)
    (name,) = link.command("KEYS", keys("lock", "dask:*"))
    assert link.command("PTTL", name) <= 600_000
    redisq.Lock("mine", queue).acquire()
    assert link.command("PTTL", keys("lock", "mine")) > 80_000_000


@pytest.mark.parametrize(
    "words",
    [{"max_leases": n} for n in (0, 1.5, "2", True, 10**30)]
    + [{"expiry": s} for s in (0.5, 1e300, "60", True, float("nan"), float("inf"))],
)
def test_a_semaphore_that_makes_no_sense_is_refused(words: dict[str, Any]) -> None:
    """With what was wrong."""
    with pytest.raises(ValueError, match=next(iter(words))):
        redisq.Semaphore(**words)
