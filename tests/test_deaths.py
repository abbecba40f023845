"""Tasks that kill their process where one does not look: as it reads, as it pickles, in order."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import dask
import pytest
from conftest import WorkerProcess, wait_until
from dask.delayed import Delayed
from dask.utils_test import inc

import dask_redisq as redisq
from dask_redisq.queue import Queue


class ActsOn:
    """Does something wherever it is pickled, or wherever it is read back."""

    def __init__(self, pickled: Any = None, read: Any = None) -> None:
        self.pickled = pickled
        self.read = read

    def __reduce__(self) -> Any:
        if self.pickled is not None:
            self.pickled[0](*self.pickled[1:])
        return _read, (self.read,)


def _read(read: Any) -> str:
    return "read" if read is None else read[0](*read[1:])


class Holds:
    """An argument that acts when a worker reads it; this process may pickle it."""

    def __init__(self, *act: Any) -> None:
        self.act = act

    def __reduce__(self) -> Any:
        return _read, (self.act,)


def quit_in_worker(code: int) -> str:
    """End this process at once if it is a slot."""
    if "DASK_REDISQ__URL" in os.environ:
        os._exit(code)
    return "read"


def raise_in_worker(error: BaseException) -> None:
    """Raise if this process is a slot."""
    if "DASK_REDISQ__URL" in os.environ:
        raise error


def make(thing: Any, *args: Any) -> Any:
    """Return a new `thing` of `args`."""
    return thing(*args)


def ignore(*_args: Any) -> int:
    """Take anything, return 1."""
    return 1


def sleep_on(_: Any) -> None:
    """Sleep until this process is killed."""
    time.sleep(600)


def die_first(mark: Path) -> int:
    """End this process, but the second time do not."""
    if not mark.exists():
        mark.touch()
        os._exit(3)
    return 2


def mark_and_nap(mark: Path) -> None:
    """Say that this runs, then run for a little while."""
    mark.touch()
    time.sleep(0.3)


def test_a_death_is_charged_to_a_slot_that_had_just_been_told_to_cancel_another_job(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """What was cancelled ended by itself; for a second it may still be killed for that."""
    start_worker("test", "--nworkers", "1")
    future = queue.compute(dask.delayed(mark_and_nap)(tmp_path / "runs"))
    wait_until((tmp_path / "runs").exists)
    future.cancel()
    with pytest.raises(redisq.WorkerDied, match="exit code 3"):
        queue.get({"x": (die_first, tmp_path / "mark")}, "x", allowed_failures=1)


@pytest.fixture
def dies(queue: Queue, workers: WorkerProcess) -> Callable[..., str]:
    """Give a function that computes what kills its process, and returns the error's text."""

    def compute(dsk: dict[Any, Any], keys: Any, **options: Any) -> str:
        with pytest.raises(redisq.WorkerDied) as info:
            queue.get(dsk, keys, allowed_failures=2, timeout=60, **options)
        queue.wait_for_workers(2, timeout=90)
        assert queue.get({"x": (inc, 1)}, "x", timeout=60) == 2
        return str(info.value)

    return compute


def test_a_task_that_ends_its_process_with_code_0_is_charged(dies: Callable[..., str]) -> None:
    """It is no end in order, whatever the code says."""
    assert "'x' was in hand" in (text := dies({"x": (os._exit, 0)}, "x"))
    assert "exit code 0 while it ran" in text


def test_a_result_whose_pickling_kills_is_charged_to_its_task(dies: Callable[..., str]) -> None:
    """Its function has returned by then; the neighbours in the lease are not to blame."""
    dsk: dict[Any, Any] = {("ok", i): (inc, i) for i in range(20)}
    dsk["bad"] = (make, ActsOn, [os._exit, 3])
    text = dies(dsk, [*dsk])
    assert "'bad' was in hand" in text
    assert "exit code 3 while its result was pickled" in text


def test_an_argument_whose_reading_kills_is_charged_to_a_task_that_takes_it(
    dies: Callable[..., str],
) -> None:
    """It comes with the block, which is read before any of it runs."""
    text = dies({"x": (ignore, Holds(quit_in_worker, 4))}, "x")
    assert "'x' was in hand" in text
    assert "exit code 4 while what it needs was read" in text


def beside(bad: Any, n: int) -> dict[Any, Any]:
    """Return a graph of `n` innocent tasks and one that takes `bad`, and needs one of them."""
    big = ["x" * 1000] * 20 + [str(i) * 1000 for i in range(90)]  # stored apart from the block
    dsk: dict[Any, Any] = {("ok", i): (ignore, big, i) for i in range(n)}
    dsk["bad"] = (ignore, ("ok", 0), [bad])
    return dsk


@pytest.mark.parametrize("n", [1, 300])
def test_an_argument_that_kills_among_others_in_its_block_names_its_own_task(
    dies: Callable[..., str], n: int
) -> None:
    """A block is read in one piece, mostly for another task: that one is innocent."""
    dsk = beside(Holds(quit_in_worker, 4), n)
    text = dies(dsk, [*dsk])
    assert "task 'bad' was in hand at 2 deaths" in text
    assert "'ok'" not in text


def test_at_the_first_death_of_a_block_that_is_read_all_of_its_tasks_are_suspects(
    queue: Queue, workers: WorkerProcess
) -> None:
    """If there is no second one, none is blamed alone."""
    assert workers.slots()
    with pytest.raises(redisq.WorkerDied, match=r"one of \('ok', 0\) to 'bad'\) was in hand"):
        queue.get(beside(Holds(quit_in_worker, 4), 20), "bad", allowed_failures=1, timeout=60)


@pytest.mark.parametrize("n", [1, 300])
@pytest.mark.parametrize("retries", [0, 1])
def test_an_argument_that_raises_as_it_is_read_names_its_own_task(
    queue: Queue, workers: WorkerProcess, n: int, retries: int
) -> None:
    """And so does `Queue.failed`."""
    assert workers.slots()
    dsk = beside(Holds(raise_in_worker, ValueError("odd")), n)
    with pytest.raises(ValueError, match="odd") as info:
        queue.get(dsk, [*dsk], retries=retries, timeout=60)
    told = "".join(info.value.__notes__)
    assert "raised by task 'bad'" in told
    assert "'ok'" not in told


def test_a_function_whose_module_a_worker_lacks_names_its_own_task(
    queue: Queue, workers: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its innocent input, which is read with it, is not told of."""
    assert workers.slots()
    module = ModuleType("only_here")
    exec("def add(x): return x + 1", module.__dict__)  # noqa: S102
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(ModuleNotFoundError, match="only_here") as info:
        queue.get({"a": (inc, 1), "x": (module.add, "a")}, "x", timeout=60)
    assert "raised by task 'x'" in "".join(info.value.__notes__)


def test_a_call_that_cannot_be_read_fails_and_its_neighbours_do_not(
    queue: Queue, workers: WorkerProcess
) -> None:
    """Whose error is passed on as its result: the others have theirs."""
    assert workers.slots()
    bad = Holds(raise_in_worker, ValueError("odd"))
    found = queue.foreach(ignore, [0, 1, bad, 3], errorhandling="pass")
    assert [type(result) for result in found] == [int, int, ValueError, int]


def test_a_detached_job_that_cannot_be_read_is_told_of_by_its_own_task(
    queue: Queue, workers: WorkerProcess
) -> None:
    """In `Queue.failed`, too."""
    assert workers.slots()
    dsk = beside(Holds(raise_in_worker, ValueError("odd")), 5)
    x = Delayed("bad", dsk)
    with pytest.raises(ValueError, match="odd"):
        queue.compute(x, detach=True, optimize_graph=False).result(timeout=60)
    (row,) = queue.failed()
    assert row["key"] == "bad"


def test_an_input_whose_reading_kills_is_charged_to_the_task_that_needs_it(
    dies: Callable[..., str],
) -> None:
    """Not to the task that made it. Of its users one runs where it was made, the other reads it."""
    dsk: dict[Any, Any] = {"made": (make, ActsOn, None, [os._exit, 5])}
    dsk.update({("user", i): (sleep_on, "made") for i in range(2)})
    text = dies(dsk, [("user", 0), ("user", 1)], chunk_size=1)
    assert "task ('user', " in text
    assert "exit code 5 while what it needs was read" in text


@pytest.mark.parametrize("error", [SystemExit(2), KeyError("k"), KeyboardInterrupt()])
def test_what_is_raised_as_a_task_is_read_is_the_users_error(
    queue: Queue, workers: WorkerProcess, error: BaseException
) -> None:
    """Exits and key errors too: they are no words to the slot."""
    slots = [slot.pid for slot in workers.slots()]
    with pytest.raises(type(error)):
        queue.get({"x": (ignore, Holds(raise_in_worker, error))}, "x", timeout=60)
    assert [slot.pid for slot in workers.slots()] == slots


@pytest.mark.parametrize("leave", [sys.exit, raise_in_worker], ids=["exit", "interrupt"])
def test_a_result_that_exits_when_it_is_pickled_names_its_task(
    queue: Queue, workers: WorkerProcess, leave: Any
) -> None:
    """The process goes on."""
    slots = [slot.pid for slot in workers.slots()]
    act = [leave, 3 if leave is sys.exit else KeyboardInterrupt()]
    with pytest.raises(redisq.TaskNotSerializable, match="'x'"):
        queue.get({"x": (make, ActsOn, act)}, "x", timeout=60)
    assert [slot.pid for slot in workers.slots()] == slots


def compute_inside(queue: str, n: int) -> int:
    """Compute a sum on a queue from inside of a task."""
    numbers = [dask.delayed(inc)(i) for i in range(n)]
    total: int = dask.delayed(sum)(numbers).compute(scheduler=redisq.get, queue=queue)
    return total


def test_as_many_tasks_as_slots_may_compute_on_their_own_queue(
    queue: Queue, workers: WorkerProcess
) -> None:
    """Without stand-ins they would wait for one another for ever."""
    dsk = {("x", i): (compute_inside, queue.name, 9) for i in range(4)}
    assert queue.get(dsk, [*dsk], chunk_size=1) == (45,) * 4
