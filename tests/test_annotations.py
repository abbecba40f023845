"""Annotations and keywords reach the tasks they are meant for: section 1.3 of Dask's contract."""

from __future__ import annotations

import ast
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from conftest import WorkerProcess, wait_until

from dask_redisq.errors import NoWorkersError
from dask_redisq.queue import Queue


def stumble(block: Any, log: Path) -> Any:
    """Raise the first time that it runs on each block."""
    mark = log.with_name(f"{log.name}-{int(np.sum(block))}")
    if not mark.exists():
        mark.touch()
        raise ValueError("the first time")
    return block


def where(_: Any = None) -> str:
    """Return the name of the worker, as its test gave it."""
    return os.environ["WHERE"]


def where_block(block: Any) -> Any:
    """Return a block of the name of the worker."""
    return np.full(block.shape, os.environ["WHERE"])


@pytest.fixture
def two(queue: Queue, start_worker: Callable[..., WorkerProcess]) -> Queue:
    """A queue with workers left and right, one slot each."""
    for name in ("left", "right"):
        start_worker("test", "--nworkers", "1", "--name", name, env={"WHERE": name})
    queue.wait_for_workers(2, timeout=90)
    return queue


def test_annotations_of_an_array_survive_its_fusion(two: Queue) -> None:
    """Dask fuses tasks over the borders of layers, and would lose them."""
    with dask.annotate(workers="right"):
        x = da.ones(40, chunks=2).map_blocks(where_block, dtype="U5")
    names = x.compute(scheduler=two.get)
    assert set(names) == {"right"}
    assert dask.config.get("optimization.fuse.active", None) is None


def test_retries_of_an_array_hold_for_its_tasks_alone(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """What is built outside of the annotation has none."""
    x = da.arange(8, chunks=4)
    with dask.annotate(retries=1):
        y = x.map_blocks(stumble, tmp_path / "y", dtype=x.dtype)
    assert y.sum().compute(scheduler=queue.get) == 28
    z = x.map_blocks(stumble, tmp_path / "z", dtype=x.dtype)
    with pytest.raises(ValueError, match="the first time"):
        z.sum().compute(scheduler=queue.get)


def test_what_is_annotated_around_compute_holds_for_the_computation(two: Queue) -> None:
    """Also where a callable says it by key."""
    tasks = [dask.delayed(where)(i, dask_key_name=f"t{i}") for i in range(12)]
    with dask.annotate(workers="left"):
        assert set(dask.compute(*tasks, scheduler=two.get)) == {"left"}
    with dask.annotate(workers=lambda key: "left" if key < "t3" else "right"):
        got = dask.compute(*tasks, scheduler=two.get)
    assert got == tuple("left" if f"t{i}" < "t3" else "right" for i in range(12))


def test_the_graph_goes_before_a_keyword_and_that_before_the_ambient(two: Queue) -> None:
    """In distributed's order."""
    with dask.annotate(workers="left"):
        built = dask.delayed(where)(1)
    plain = dask.delayed(where)(2)
    with dask.annotate(workers="left"):
        got = dask.compute(built, plain, scheduler=two.get, workers="right")
    assert got == ("left", "right")


def test_a_detached_job_takes_what_is_annotated_around_it(two: Queue) -> None:
    """As any other."""
    with dask.annotate(workers="right"):
        future = two.compute([dask.delayed(where)(i) for i in range(8)], detach=True)
    assert set(future.result(60)) == {"right"}


# Workers, by whatever name.


@pytest.mark.parametrize("wanted", ["right", ["right", "nobody"], "tagged"])
def test_workers_are_names_or_tags(
    queue: Queue, start_worker: Callable[..., WorkerProcess], wanted: Any
) -> None:
    """As an annotation, or a keyword for all tasks."""
    start_worker("test", "--nworkers", "1", "--name", "left", env={"WHERE": "left"})
    start_worker(
        "test", "--nworkers", "1", "--name", "right", "--tag", "tagged", env={"WHERE": "right"}
    )
    queue.wait_for_workers(2, timeout=90)
    with dask.annotate(workers=wanted):
        some = [dask.delayed(where)(i) for i in range(8)]
    assert set(dask.compute(*some, scheduler=queue.get)) == {"right"}
    others = [dask.delayed(where)(i) for i in range(8)]
    assert set(dask.compute(*others, scheduler=queue.get, workers=wanted)) == {"right"}


def test_the_host_is_a_tag_of_all_its_workers(two: Queue) -> None:
    """A task that wants this host runs; one that wants another one waits for it."""
    some = [dask.delayed(where)(i) for i in range(8)]
    here = dask.compute(*some, scheduler=two.get, workers=socket.gethostname())
    assert set(here) <= {"left", "right"}
    with pytest.raises(NoWorkersError, match="elsewhere"):
        dask.compute(*some, scheduler=two.get, workers="elsewhere", no_workers_timeout=0.1)


def test_with_allow_other_workers_a_task_does_not_wait_for_its_own(two: Queue) -> None:
    """Nobody has that name, and it runs all the same."""
    with dask.annotate(workers="nobody", allow_other_workers=True):
        some = [dask.delayed(where)(i) for i in range(4)]
    assert set(dask.compute(*some, scheduler=two.get)) <= {"left", "right"}
    more = [dask.delayed(where)(i) for i in range(4)]
    done = dask.compute(*more, scheduler=two.get, workers="nobody", allow_other_workers=True)
    assert set(done) <= {"left", "right"}


def test_with_allow_other_workers_a_tasks_own_go_first(two: Queue, tmp_path: Path) -> None:
    """The other one, as idle, takes none while they are served, and some once they are not."""
    with dask.annotate(workers=["left"], allow_other_workers=True):
        some = [dask.delayed(where)(i) for i in range(40)]
    options: dict[str, Any] = {"scheduler": two.get, "chunk_size": 1, "locality_wait": 60}
    assert set(dask.compute(*some, **options)) == {"left"}
    with dask.annotate(workers=["left"], allow_other_workers=True):
        more = [dask.delayed(hold_left)(i, tmp_path / "go") for i in range(3)]
    options["locality_wait"] = 0.1
    assert sorted(dask.compute(*more, **options)) == ["left", "right", "right"]


def hold_left(i: int, go: Path) -> str:
    """Return the worker's name; the left one stays until the right one did its part twice."""
    del i
    if os.environ["WHERE"] == "left":
        wait_until(go.exists)
    elif go.with_name("once").exists():
        go.touch()
    else:
        go.with_name("once").touch()
    return os.environ["WHERE"]


def test_layers_that_ask_for_different_workers_each_get_theirs(two: Queue) -> None:
    """Dask would fuse them, and ask for a worker that is both, which it takes for any."""
    x = da.ones(8, chunks=2)
    with dask.annotate(workers="left"):
        y = x.map_blocks(where_block, dtype="U5")
    with dask.annotate(workers="right"):
        z = y.map_blocks(both_blocks, dtype="U11")
    assert set(z.compute(scheduler=two.get)) == {"left-right"}


def both_blocks(block: Any) -> Any:
    """Return the names in a block, and that of the worker."""
    return np.array([f"{name}-{os.environ['WHERE']}" for name in block])


def test_workers_as_a_keyword_may_be_a_function_of_the_key(two: Queue) -> None:
    """As for `dask.annotate`."""
    tasks = [dask.delayed(where)(i, dask_key_name=f"t{i}") for i in range(4)]
    got = dask.compute(
        *tasks, scheduler=two.get, workers=lambda key: "left" if key < "t2" else "right"
    )
    assert got == ("left", "left", "right", "right")


# Priority.


def stamp(log: Path, name: str, *_: Any) -> None:
    """Append a line."""
    with log.open("a") as file:
        file.write(f"{name}\n")


def test_tasks_of_higher_priority_run_first_with_what_they_need(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """The others in between."""
    log = tmp_path / "log"
    low = [dask.delayed(stamp)(log, f"low{i}", dask_key_name=f"low{i}") for i in range(3)]
    needed = dask.delayed(stamp)(log, "needed", dask_key_name="needed")
    with dask.annotate(priority=5):
        high = dask.delayed(stamp)(log, "high", needed, dask_key_name="high")
    with dask.annotate(priority=-1):
        last = dask.delayed(stamp)(log, "last", dask_key_name="last")
    future = queue.compute(last, *low, high, chunk_size=1)
    start_worker("test", "--nworkers", "1")
    future.result(60)
    words = log.read_text().split()
    assert [words[0], words[1], words[-1]] == ["needed", "high", "last"]
    assert {word[:3] for word in words[2:5]} == {"low"}  # among them as dask.order has it


def test_a_job_is_as_urgent_as_the_least_of_its_tasks(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Annotated at build, as by a keyword; numbers of any kind."""
    log = tmp_path / "log"
    low = [dask.delayed(stamp)(log, f"low{i}") for i in range(3)]
    with dask.annotate(priority=np.float64(1.5)):
        high = [dask.delayed(stamp)(log, f"high{i}") for i in range(3)]
    futures = [queue.compute(some, chunk_size=1) for some in (low, high)]
    futures.append(queue.compute(dask.delayed(stamp)(log, "first"), priority=np.int64(2)))
    start_worker("test", "--nworkers", "1")
    for future in futures:
        future.result(60)
    words = log.read_text().split()
    assert words[0] == "first"
    assert {word[:4] for word in words[1:4]} == {"high"}


def test_a_priority_is_a_number(queue: Queue) -> None:
    """Said before anything is sent."""
    with dask.annotate(priority=lambda _: "high"):
        x = dask.delayed(where)()
    with pytest.raises(TypeError, match="is a number, not 'high'"):
        x.compute(scheduler=queue.get)


# Resources, and how many slots work for a job.


def at_once(log: Path, name: str, least: int = 1) -> int:
    """Return how many of `name` run now; stay a moment, and until `least` were seen once."""
    mine, met = log / f"{name}-{os.getpid()}-{time.monotonic_ns()}", log / f"met {name}"
    mine.touch()
    found, until = 1, time.monotonic() + 20
    while found < least and not met.exists() and time.monotonic() < until:
        time.sleep(0.005)
        found = len(list(log.glob(f"{name}-*")))
    if found >= least:
        met.touch()
    time.sleep(0.1)
    found = max(found, len(list(log.glob(f"{name}-*"))))
    mine.unlink()
    return found


def test_a_worker_runs_no_more_than_its_resources_allow(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Four slots share one GPU; half a one each lets two run; what needs none runs beside them."""
    start_worker("test", "--nworkers", "4", "--resources", "GPU=1,MEMORY=17179869184")
    queue.wait_for_workers(4, timeout=90)
    with dask.annotate(resources={"GPU": 1}):
        alone = [dask.delayed(at_once)(tmp_path, "alone") for _ in range(6)]
    with dask.annotate(resources={"GPU": 0.5, "MEMORY": 1e9}):
        pairs = [dask.delayed(at_once)(tmp_path, "pair", 2) for _ in range(12)]
    assert set(dask.compute(*alone, scheduler=queue.get)) == {1}
    assert max(dask.compute(*pairs, scheduler=queue.get, chunk_size=1)) == 2
    free = [dask.delayed(at_once)(tmp_path, "free", 2) for _ in range(12)]
    done = dask.compute(*alone, *free, scheduler=queue.get, chunk_size=1)
    assert set(done[:6]) == {1}
    assert max(done[6:]) >= 2
    x = dask.delayed(draw)(0)
    assert x.compute(scheduler=queue.get, resources={"MEMORY": 17179869184}, timeout=20)


def test_a_resource_is_not_held_by_what_follows_without_need(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """A GPU's task, then one that waits until the other GPU's task ran: on the only GPU."""
    start_worker("test", "--nworkers", "2", "--resources", "GPU=1")
    queue.wait_for_workers(2, timeout=90)
    with dask.annotate(resources={"GPU": 1}):
        quick = [dask.delayed(stamp)(tmp_path / "log", f"gpu{i}") for i in range(2)]
    after = [dask.delayed(both_ran)(tmp_path / "log", x) for x in quick]
    assert dask.compute(*after, scheduler=queue.get) == (True, True)


def both_ran(log: Path, _: Any) -> bool:
    """Wait until two tasks left their line."""
    wait_until(lambda: len(log.read_text().split()) == 2)
    return True


def compute_on_gpu(url: str) -> int:
    """Compute something that needs a GPU, too."""
    with Queue("test", url) as queue, dask.annotate(resources={"GPU": 1}):
        return int(dask.delayed(abs)(-7).compute(scheduler=queue.get))


def test_a_task_lends_its_resource_while_it_waits_for_one_that_needs_it(
    queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """Else it would wait for itself."""
    start_worker("test", "--nworkers", "1", "--resources", "GPU=1")
    queue.wait_for_workers(1, timeout=90)
    with dask.annotate(resources={"GPU": 1}):
        outer = dask.delayed(compute_on_gpu)(queue.url)
    assert outer.compute(scheduler=queue.get) == 7


def test_a_resource_that_nobody_has_is_told(queue: Queue, workers: WorkerProcess) -> None:
    """As for tags; a worker that has too little of it does not count."""
    x = dask.delayed(where)()
    with pytest.raises(NoWorkersError, match=r"has the resources \['GPU=1'\]"):
        x.compute(scheduler=queue.get, resources={"GPU": 1}, no_workers_timeout=0.1)
    with pytest.raises(ValueError, match="names with numbers above 0"):
        x.compute(scheduler=queue.get, resources={"GPU": 0})
    with pytest.raises(ValueError, match="names with numbers above 0"):
        x.compute(scheduler=queue.get, resources={"GPU": 10**400})


def test_a_resource_is_free_again_when_its_slot_died(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """It is what leases hold, and the dead hold none."""
    start_worker("test", "--nworkers", "2", "--resources", "GPU=1")
    queue.wait_for_workers(2, timeout=90)

    def die_once(mark: Path) -> int:
        if not mark.exists():
            mark.touch()
            os._exit(1)
        return 7

    x = dask.delayed(die_once)(tmp_path / "died")
    assert x.compute(scheduler=queue.get, resources={"GPU": 1}) == 7


def test_resources_are_refused_when_they_cannot_be_read(
    start_worker: Callable[..., WorkerProcess],
) -> None:
    """In one line, as each wrong option."""
    worker = start_worker("test", "--resources", "GPU")
    assert worker.wait() == 2
    assert "GPU=1,MEMORY=10e9" in worker.output()


def test_num_workers_is_how_many_slots_work_for_a_job(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Dask's word for the size of a pool, as a keyword and a setting."""
    start_worker("test", "--nworkers", "4")
    queue.wait_for_workers(4, timeout=90)
    some = [dask.delayed(at_once)(tmp_path, "x") for _ in range(16)]
    assert max(dask.compute(*some, scheduler=queue.get, chunk_size=1)) > 2
    assert set(dask.compute(*some, scheduler=queue.get, num_workers=1)) == {1}
    with dask.config.set(num_workers=2):
        assert max(dask.compute(*some, scheduler=queue.get, chunk_size=1)) == 2
    with pytest.raises(ValueError, match="num_workers is a whole number"):
        dask.compute(*some, scheduler=queue.get, num_workers=0)


# Random numbers.


def draw(_: int) -> tuple[float, float]:
    """Return a random number of Python's and one of NumPy's."""
    return random.random(), float(np.random.rand())  # noqa: NPY002


def draw_after(*_: Any) -> float:
    """Return a random number, after others."""
    return random.random()


def test_a_seed_makes_random_numbers_that_do_not_depend_on_who_draws(
    queue: Queue, workers: WorkerProcess
) -> None:
    """Each task has other ones, the same each time."""
    dsk = {("draw", i): (draw, i) for i in range(20)}
    once, again = (queue.get(dsk, list(dsk), seed=1, chunk_size=k) for k in (1, 7))
    assert once == again
    assert len(set(once)) == 20
    assert queue.get(dsk, list(dsk), seed=2) != once
    with dask.annotate(seed=3):
        x = dask.delayed(draw)(1, dask_key_name="x")
    y = dask.delayed(draw)(1, dask_key_name="y")
    first, second = (
        dask.compute(x, dask.delayed(draw_after)(x, y), scheduler=queue.get, workers="one")
        for _ in range(2)
    )
    assert first[0] == second[0]
    assert first[1] != second[1], "what has no seed draws others each time"


def test_a_delayed_method_of_the_global_generator_obeys_the_seed(
    queue: Queue, workers: WorkerProcess
) -> None:
    """Python's and NumPy's; each task draws other numbers."""
    calls = [dask.delayed(random.random)(), dask.delayed(random.random)()]
    calls += [dask.delayed(np.random.rand)(), dask.delayed(np.random.rand)()]
    drawn = dask.compute(*calls, scheduler=queue.get, seed=1)
    assert len(set(drawn)) == 4
    assert dask.compute(*calls, scheduler=queue.get, seed=1) == drawn


#: Each task draws: of delayed calls, of blocks that Dask fuses, of more than `dask.order` sees.
DRAWS = """
import random, sys, uuid
import dask, dask.array as da, numpy as np
import dask_redisq as redisq

def draw(*_, **__): return round(random.random(), 4)
def tell(*args, **kwargs): return [draw(), *args, kwargs]
def blocks():
    name = f"x-{uuid.uuid4()}"
    return da.ones((4, 4), chunks=2).map_blocks(lambda b: np.random.rand(*b.shape), name=name)

call, queue = dask.delayed(tell), redisq.Queue("test", sys.argv[1])
tree = call(call([call(), call()]), {"a": call(), "b": [call()]}, c=call(call()), d=call())
x = blocks() - blocks() * blocks()
for asked in [[call() for _ in range(5)], [tree, call()], [x], [x.sum(), tree, blocks()],
              [call(call(), call()) for _ in range(50)]]:
    values = dask.compute(*asked, scheduler=queue.get, seed=1)
    print([v.tolist() if hasattr(v, "tolist") else v for v in values])
"""


def test_a_seed_draws_the_same_when_a_script_runs_again(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Whatever names Dask makes, and in another process, whose sets have another order."""
    (tmp_path / "draws.py").write_text(DRAWS)
    runs = []
    for hashes in "1", "2":
        command = [sys.executable, str(tmp_path / "draws.py"), queue.url]
        environ = os.environ | {"PYTHONHASHSEED": hashes}
        runs.append(subprocess.check_output(command, env=environ, text=True, timeout=60))
    assert runs[0] == runs[1]
    assert runs[0].count("\n") == 5
    first = ast.literal_eval(runs[0].splitlines()[0])
    assert len({number for number, _ in first}) == 5
