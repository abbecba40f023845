"""Large constants of a graph: stored once, read once by each slot, writable, not too large."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
from conftest import wait_until

import dask_redisq as redisq
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.queue import Queue


def length(x: Any) -> int:
    """Return how long the argument is."""
    return len(x)


def reads(link: Link) -> int:
    """Return how many GETs the server answered since `CONFIG RESETSTAT`."""
    stats = link.command("INFO", "commandstats").decode()
    lines = [line for line in stats.splitlines() if line.startswith("cmdstat_get:")]
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in lines)


def clip(a: np.ndarray) -> float:
    """Change the argument, and return what is left of it."""
    a[a < 0.5] = 0
    return float(a.sum())


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("size", [100, 100_000], ids=["small", "large"])
def test_a_task_may_write_into_an_array_of_its_own(queue: Queue, size: int) -> None:
    """A large one, too, which is stored apart; here nothing changes."""
    array = np.linspace(0, 1, size)
    array_before = array.copy()
    expected = float(array[array >= 0.5].sum())
    assert queue.get({("x", i): (clip, array) for i in range(4)}, ("x", 3)) == expected
    assert (array == array_before).all()


@pytest.mark.usefixtures("workers")
def test_an_array_that_is_read_only_stays_so(queue: Queue) -> None:
    """As under Dask's other schedulers."""
    array = np.linspace(0, 1, 100_000)
    array.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        queue.get({"x": (clip, array)}, "x")


def element(a: np.ndarray, i: int) -> float:
    """Return an element."""
    return float(a[i])


@pytest.mark.usefixtures("workers")
def test_many_jobs_at_a_time_read_their_constants_once_per_slot(queue: Queue, link: Link) -> None:
    """12 jobs that take turns, one task at a time: a slot keeps what it has of each."""
    link.command("CONFIG", "RESETSTAT")
    together = threading.Barrier(12)

    def compute(k: int) -> None:
        array = np.full(20_000, float(k))
        dsk = {("x", i): (element, array, i) for i in range(40)}
        together.wait()
        assert queue.get(dsk, list(dsk), chunk_size=1) == (float(k),) * 40

    threads = [threading.Thread(target=compute, args=(k,)) for k in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads(link) <= 2 * 12


class Settings:
    """An object that takes 60 kB times `k` in many small pieces."""

    def __init__(self, k: int) -> None:
        self.texts = {f"k{i}": f"{i}".rjust(900) for i in range(60 * k)}


def hold(_i: Any, _constant: Any) -> None:
    """Take an argument that is large."""


def held_in_closure(settings: Settings) -> Callable[..., None]:
    """Return a function that holds it."""
    return lambda i, _: settings.texts.clear() if i < 0 else None


FEW = [np.full(5000, float(k)) for k in range(4)]
CONSTANTS: dict[str, tuple[Callable[..., None], Any]] = {
    "instance": (hold, Settings(10)),
    "frame": (hold, pd.DataFrame({"s": [f"{i}".rjust(200) for i in range(900)]}, dtype=object)),
    "dict": (hold, Settings(10).texts),
    "list": (hold, list(Settings(10).texts.values())),
    "set": (hold, set(Settings(10).texts.values())),
    "closure": (held_in_closure(Settings(10)), None),
    # Dask gives each task a copy of these, and no part of them is large.
    "few arrays in a list": (hold, FEW),
    "few arrays in a tuple": (hold, tuple(FEW)),
    "few arrays in a dict": (hold, dict(enumerate(FEW))),
    "few arrays in lists": (hold, [FEW[:2], [0, FEW[2:]]]),
}


def wait_for(path: Path) -> bool:
    """Wait until a file is there."""
    wait_until(path.exists, 60)
    return True


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("lost", ["*:const:*", "*:blocks"])
def test_a_job_that_lost_what_its_tasks_are_made_of_is_sent_again(
    queue: Queue, link: Link, tmp_path: Path, lost: str
) -> None:
    """Its tasks were leased and given back for ever, and nobody was told."""
    gate, constant = tmp_path / "gate", bytes(200_000)
    dsk: dict[Any, Any] = {("wait", i): (wait_for, gate) for i in range(500)}
    dsk |= {("use", i): (length, constant) for i in range(500)}
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(queue.get, dsk, list(dsk), chunk_size=10)
        wait_until(queue.tasks)
        (blocks,) = link.command("KEYS", "*:blocks")
        job = blocks.removesuffix(b":blocks")
        wait_until(lambda: link.command("HEXISTS", job, "sealed"))
        (name,) = link.command("KEYS", lost)  # slots have read the first of eight blocks
        link.command("DEL", name)
        gate.touch()
        assert list(answer.result(60)) == [True] * 500 + [200_000] * 500


@pytest.mark.parametrize(("function", "constant"), CONSTANTS.values(), ids=list(CONSTANTS))
def test_what_many_tasks_share_is_stored_once(
    queue: Queue, link: Link, keys: Keys, function: Callable[..., None], constant: Any
) -> None:
    """500 kB are one constant, whatever they are, and 1,000 tasks are small beside it."""
    dsk = {("x", i): (function, i, constant) for i in range(1000)}
    stored: list[int] = []

    def look() -> None:
        wait_until(lambda: link.command("ZCARD", keys("jobs")))
        (job,) = (job.decode() for job in link.command("ZRANGE", keys("jobs"), 0, -1))
        wait_until(lambda: link.command("HEXISTS", keys("job", job), "sealed"))
        stored.append(link.command("SCARD", keys("consts", job)))
        stored.append(sum(map(len, link.command("HVALS", keys("blocks", job)))))
        link.call("cancel", keys, job=job, reason="seen", tomb="1")

    thread = threading.Thread(target=look)
    thread.start()
    with pytest.raises(redisq.JobCancelled):
        queue.get(dsk, list(dsk))
    thread.join()
    assert stored[0] == 1
    assert stored[1] < 150_000


@pytest.mark.usefixtures("workers")
def test_what_many_tasks_share_is_read_once_per_slot(queue: Queue, link: Link) -> None:
    """An instance of 500 kB, in 1,000 tasks."""
    settings = Settings(10)
    link.command("CONFIG", "RESETSTAT")
    dsk = {("x", i): (text_of, settings, f"k{i % 600}") for i in range(1000)}
    assert queue.get(dsk, list(dsk)) == tuple(f"{i % 600}".rjust(20) for i in range(1000))
    assert 1 <= reads(link) <= 2


@pytest.mark.usefixtures("workers")
def test_few_arrays_in_containers_are_read_once_per_slot(queue: Queue, link: Link) -> None:
    """Beside inputs as well; each task has its own, whatever the others hold."""
    link.command("CONFIG", "RESETSTAT")
    dsk: dict[Any, Any] = {("x", i): (weigh, [FEW, i], i) for i in range(500)}
    dsk |= {("y", i): (weigh, [FEW[::-1], i], [("x", i), 1]) for i in range(500)}
    keys = [("y", i) for i in range(500)]
    assert queue.get(dsk, keys) == tuple(3 * 5000.0 + i + (i + 1) for i in range(500))
    assert 1 <= reads(link) <= 4


@pytest.mark.usefixtures("workers")
def test_a_large_array_beside_small_things_is_sent_once(queue: Queue, link: Link) -> None:
    """Each list of it and of what few tasks share has a place of its own for the rest alone."""
    large, groups = np.ones(2**17), [Settings(0) for _ in range(20)]
    dsk = {("x", i): (hold, f"{i} ".rjust(1000), [large, groups[i // 6]]) for i in range(120)}
    before = sent(link)
    queue.get(dsk, list(dsk))
    assert sent(link) - before < 2 * large.nbytes


def sent(link: Link) -> int:
    """Return how many bytes the server has received."""
    lines = link.command("INFO", "stats").split()
    return int(next(x for x in lines if x.startswith(b"total_net_input_bytes:")).split(b":")[1])


def weigh(held: list[Any], more: Any) -> float:
    """Return a number by which one sees what is held, and where."""
    arrays, i = held
    return float(arrays[0].sum() + i + (sum(more) if isinstance(more, list) else 0))


def text_of(settings: Settings, name: str) -> str:
    """Return a piece of the object; small, for a lease that brings much stores values apart."""
    return settings.texts[name][-20:]


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module that workers cannot import, registered to travel by value."""
    module = ModuleType("nowhere_to_be_found")
    exec("def twice(x, *_):\n    return 2 * x", module.__dict__)  # noqa: S102
    monkeypatch.setitem(sys.modules, module.__name__, module)
    cloudpickle.register_pickle_by_value(module)
    yield module
    cloudpickle.unregister_pickle_by_value(module)


@pytest.mark.usefixtures("workers")
def test_a_module_that_is_registered_for_it_travels_by_value(
    queue: Queue, nowhere: ModuleType
) -> None:
    """`cloudpickle.register_pickle_by_value` holds; inside a large constant, too."""
    assert queue.get({"x": (nowhere.twice, 2)}, "x") == 4
    dsk = {("x", i): (nowhere.twice, i, [nowhere.twice, *range(20_000)]) for i in range(3)}
    assert queue.get(dsk, list(dsk)) == (0, 2, 4)
