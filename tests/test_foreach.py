"""Loops as a user of doRedis runs them: many of the scenarios of its promises, and further."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import operator
import os
import pickle
import random
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import WorkerProcess, wait_until
from worker_process import command_of

import dask_redisq as redisq
from dask_redisq import foreach, staying
from dask_redisq.body import MOST_KEPT, Setup, forget_setup
from dask_redisq.combine import Combiner
from dask_redisq.link import Link
from dask_redisq.loop import Loop
from dask_redisq.queue import Queue
from dask_redisq.staying import MOST, let_go, stay


@pytest.fixture(scope="module")
def cluster() -> Iterator[redisq.LocalCluster]:
    """A server and two slots for the module."""
    with redisq.LocalCluster(n_workers=2, queue="test") as running:
        yield running


@pytest.fixture
def loops(cluster: redisq.LocalCluster) -> Iterator[Queue]:
    """The module's queue; no job is left on it."""
    with Queue("test", cluster.url) as queue:
        yield queue
        gc.collect()  # the traceback of an error may hold scattered data, in a cycle
        wait_until(lambda: queue.jobs() == [])


def uniform(_: int) -> float:
    """Draw from the global state."""
    return random.random()


def pi(_: int, n: int = 1_000_000) -> float:
    """Return an estimate of pi from some draws."""
    x, y = np.random.default_rng().random((2, n))
    return 4 * float(np.count_nonzero(x * x + y * y < 1)) / n


def test_scenario_1_pi_by_ten_tasks(queue: Queue, workers: WorkerProcess, link: Link) -> None:
    """Listing 1; workers leave with exit code 0 when the queue is removed, and no key stays."""
    assert len(queue.workers()[0]["slots"]) == 2
    total = queue.foreach(pi, 10, combine=sum, multicombine=True, inorder=False)
    assert abs(total / 10 - np.pi) < 0.003
    queue.remove()
    assert workers.wait(2) == 0
    left = [key for key in link.command("KEYS", "redisq:{test}:*") if b":tomb:" not in key]
    assert left == []


def test_scenario_2_work_before_workers(
    queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """A loop waits for the first worker."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(queue.foreach(abs, [-1, -2])))
    thread.start()
    wait_until(lambda: queue.stats()["ready"] == 2)
    start_worker("test", "--nworkers", "1")
    thread.join(60)
    assert found == [[1, 2]]


def die_once(j: int, marks: str) -> int:
    """End this process the first time that it sees the first items of two."""
    mark = Path(marks) / str(j)
    if j in (1, 3) and not mark.exists():
        mark.touch()
        os._exit(1)
    return j


def test_scenario_3_tasks_that_end_their_process(loops: Queue, tmp_path: Path) -> None:
    """Listing 2: two of four die with their process, and run again; the sum is 10."""
    marks = itertools.repeat(str(tmp_path))
    total = loops.foreach(
        die_once, range(1, 5), marks, combine=sum, chunk_size=2, allowed_failures=50
    )
    assert total == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


def rows(n: int) -> np.ndarray[Any, Any]:
    """Return some rows."""
    return np.full((n, 1), n)


def test_scenario_7_a_combine_of_many_with_a_value_before(loops: Queue) -> None:
    """Listing 6, in any order of completion: 100 rows, and no more than maxcombine at a time."""
    seen: list[int] = []

    def stacked(*parts: Any) -> Any:
        seen.append(len(parts))
        return np.vstack(parts)

    sizes = [14] * 6 + [15]
    for inorder in (True, False):
        table = loops.foreach(
            rows, sizes, combine=stacked, multicombine=True, maxcombine=3, inorder=inorder,
            init=np.zeros((1, 1)),
        )  # fmt: skip
        assert table.shape == (100, 1)
    assert max(seen) <= 3


def draw(_: int) -> tuple[float, float]:
    """Return a number of either generator."""
    return random.random(), float(np.random.rand())  # noqa: NPY002


def seed_55(_: int) -> None:
    """Seed all alike."""
    random.seed(55)
    np.random.seed(55)  # noqa: NPY002


def test_scenario_8_random_numbers(
    loops: Queue, queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """Equal for any number of workers and any chunk size; another seed gives others."""
    first = loops.foreach(draw, 5, seed=1)
    assert len(set(itertools.chain(*first))) == 10, "Python and NumPy draw from different streams"
    assert loops.foreach(draw, 5, seed=1, chunk_size=1) == first
    assert loops.foreach(draw, 5, seed=1, chunk_size=5) == first
    assert set(loops.foreach(draw, 5, seed=99)).isdisjoint(first)
    start_worker("test", "--nworkers", "1")
    assert queue.foreach(draw, 5, seed=1) == first
    expected = np.random.RandomState(np.random.SeedSequence(1, spawn_key=(0,)).generate_state(8))
    assert first[0][1] == expected.rand()
    alike = loops.foreach(draw, 5, seed_worker=seed_55)
    assert len(set(alike)) == 1
    assert len(set(loops.foreach(draw, 20))) == 20


@pytest.mark.parametrize(("method", "which"), [(random.random, 0), (np.random.rand, 1)])
def test_a_body_that_is_a_method_of_the_global_generator_draws_on_the_worker(
    loops: Queue, method: Callable[[], float], which: int
) -> None:
    """As a function that calls it does: by the seed, and without one other numbers each time."""
    drawn = loops.times(6, method, seed=1, chunk_size=2)
    assert drawn == [pair[which] for pair in loops.foreach(draw, 6, seed=1)]
    fresh = loops.times(6, method, chunk_size=1) + loops.times(6, method, chunk_size=1)
    assert len({*fresh, *drawn}) == 18


def test_the_global_generator_beside_large_data_is_the_workers_too(loops: Queue) -> None:
    """Data in a closure is sent apart, pickled by itself; a generator of one's own is data."""
    data: dict[Any, Any] = {"draw": random.random, **{i: i for i in range(30_000)}}

    def drawn(_: int) -> tuple[float, int]:
        return data["draw"](), len(data)

    first = loops.foreach(drawn, 4, seed=1)
    assert first == [(x, 30_001) for x in loops.foreach(uniform, 4, seed=1)]
    assert loops.times(1, random.Random(5).random, seed=1) == [random.Random(5).random()]


def note_and_fail(i: int, log: str) -> int:
    """Leave a file; the first one raises."""
    (Path(log) / str(i)).touch()
    if i == 0:
        raise LookupError("the first one", i)
    time.sleep(0.05)
    return i


def test_scenario_22_an_error_stops_the_loop_at_once(loops: Queue, tmp_path: Path) -> None:
    """Its own type comes back, and few others run: doRedis runs all twenty."""
    with pytest.raises(LookupError) as caught:
        loops.foreach(note_and_fail, 20, itertools.repeat(str(tmp_path)), chunk_size=1)
    assert caught.value.args == ("the first one", 0)
    assert "note_and_fail" in str(caught.traceback[-1])
    assert len(list(tmp_path.iterdir())) < 10


def test_scenario_22_errors_are_left_out_or_passed_on(loops: Queue, tmp_path: Path) -> None:
    """19 results, or the exception in its place; a failing combine raises."""
    log = itertools.repeat(str(tmp_path))
    assert loops.foreach(note_and_fail, 20, log, errorhandling="remove") == list(range(1, 20))
    passed = loops.foreach(note_and_fail, 20, log, errorhandling="pass")
    assert isinstance(passed[0], LookupError)
    assert passed[1:] == list(range(1, 20))
    with pytest.raises(TypeError, match="unsupported operand"):
        loops.foreach(note_and_fail, 5, log, errorhandling="pass", combine=operator.add)


def exit_3(i: int) -> int:
    """End the process, for one of them."""
    if i == 3:
        os._exit(3)
    return i


def test_an_iteration_that_kills_its_process_is_left_out_or_passed_on(loops: Queue) -> None:
    """As one that raises; the others are not lost."""
    kept = loops.foreach(exit_3, 6, errorhandling="remove", allowed_failures=1)
    assert kept == [0, 1, 2, 4, 5]
    passed = loops.foreach(exit_3, 6, errorhandling="pass", allowed_failures=1)
    assert isinstance(passed[3], redisq.WorkerDied)


def count_init() -> None:
    """Count a call."""
    count: Any = sys.modules.setdefault("redisq_inits", _Count())  # type: ignore[arg-type]
    count.calls += 1


class _Count:
    calls = 0


def inits_here(_: int, marks: str) -> tuple[int, int]:
    """Return this process, and how many calls it counted; wait until another one is there."""
    (Path(marks) / str(os.getpid())).touch()
    wait_until(lambda: len(list(Path(marks).iterdir())) > 1)
    return os.getpid(), sys.modules["redisq_inits"].calls


def test_scenario_25_worker_init_runs_once_per_slot_and_job(loops: Queue, tmp_path: Path) -> None:
    """100 iterations on two slots: two calls; its error is that of the loop."""
    marks = itertools.repeat(str(tmp_path))
    seen = set(loops.foreach(inits_here, 100, marks, worker_init=count_init, chunk_size=2))
    assert len(seen) == 2
    assert {calls for _, calls in seen} == {1}

    def failing() -> None:
        raise RuntimeError("no licence here")

    for errorhandling in ("stop", "pass"):
        with pytest.raises(RuntimeError, match="no licence here"):
            loops.foreach(abs, 5, worker_init=failing, errorhandling=errorhandling)


def test_scenario_26_code_that_was_edited_runs(loops: Queue) -> None:
    """By the same name, on the same workers."""
    for version in ("old", "new"):
        scope: dict[str, Any] = {"__name__": "__main__", "version": version}
        exec("def f(i):\n    return version", scope)  # noqa: S102
        assert loops.foreach(scope["f"], 3) == [version] * 3


def test_scenario_27_many_iterations_in_large_and_in_small_chunks(loops: Queue) -> None:
    """100,000 by ten thousand, 20,000 one by one."""
    assert loops.foreach(operator.neg, 100_000, combine=sum, chunk_size=10_000) == -4_999_950_000
    assert loops.foreach(operator.neg, 5_000, combine=sum, chunk_size=1) == -12_497_500


def test_scenario_29_the_first_iteration_runs_before_the_last_is_drawn(
    loops: Queue, tmp_path: Path
) -> None:
    """A generator is drawn as its items are sent."""

    def slow() -> Iterator[int]:
        yield 0
        wait_until((tmp_path / "0").exists)
        yield 1

    log = itertools.repeat(str(tmp_path))
    with pytest.raises(LookupError):
        loops.foreach(note_and_fail, slow(), log)
    assert (tmp_path / "0").exists()


def test_generators_are_drawn_no_further_than_there_is_room(
    queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """Without a worker the loop stops to draw; with one it goes on."""
    drawn = itertools.count()
    last = [0]

    def items() -> Iterator[int]:
        for i in itertools.islice(drawn, 200_000):
            last[0] = i
            yield i

    total: list[int] = []
    thread = threading.Thread(
        target=lambda: total.append(queue.foreach(abs, items(), combine=sum, multicombine=True))
    )
    thread.start()
    wait_until(lambda: last[0] > 10_000)
    wait_until(lambda: not _moved(last))
    assert last[0] < 60_000
    start_worker("test", "--nworkers", "1")
    thread.join(60)
    assert total == [sum(range(200_000))]


def _moved(last: list[int]) -> bool:
    before = last[0]
    time.sleep(0.3)
    return last[0] != before


def test_iterables_end_with_the_shortest(loops: Queue) -> None:
    """An int is a range; none is no iteration; times calls without arguments."""
    assert loops.foreach(pow, 4, itertools.repeat(2)) == [0, 1, 4, 9]
    assert loops.foreach(pow, [2, 3], (5, 1, 7)) == [32, 3]
    assert loops.foreach(abs) == []
    assert loops.foreach(abs, 0, combine=sum) == []
    assert loops.foreach(abs, 0, combine=sum, final=len) == 0
    assert loops.times(3, list) == [[], [], []]
    assert loops.foreach(abs, np.int64(3), reduce=list, chunk_size=2) == [[0, 1], [2]]
    with pytest.raises(ValueError, match="whole number"):
        loops.times(-1, list)
    with pytest.raises(ValueError, match="a whole number of iterations, at least 0, not -3"):
        loops.foreach(abs, -3)


def with_process(results: list[int]) -> tuple[int, list[int]]:
    """Tell where results of a chunk are reduced, and which they are."""
    return os.getpid(), results


def raise_odd(i: int, _: object = None) -> int:
    """Raise for odd numbers."""
    if i % 2:
        raise ValueError(f"{i} is odd")
    return i


def raise_all(results: list[int]) -> None:
    """Be a reduction that fails."""
    raise ValueError(f"{results} is odd")


def test_results_of_a_chunk_are_reduced_where_they_are_made(loops: Queue) -> None:
    """DoRedis's setReduce: what is combined is one value of each chunk, in order."""
    found = loops.foreach(operator.neg, 7, reduce=with_process, chunk_size=3)
    assert [results for _, results in found] == [[0, -1, -2], [-3, -4, -5], [-6]]
    assert os.getpid() not in [pid for pid, _ in found]
    total = loops.foreach(pow, iter(range(1000)), itertools.repeat(2), reduce=sum, combine=sum)
    assert total == sum(i * i for i in range(1000))
    assert len(loops.foreach(abs, 1000, reduce=sum)) == 67  # a 64th of them each
    loops.set_reduce(len)
    assert loops.foreach(abs, 5, chunk_size=4) == [4, 1]
    assert loops.foreach(abs, 2, reduce=None) == [0, 1]  # in this call only
    loops.set_reduce(None)
    assert loops.foreach(abs, 2) == [0, 1]
    with pytest.raises(TypeError, match="reduce is a function, not 5"):
        loops.set_reduce(5)  # type: ignore[arg-type]


def test_a_reduction_sees_errors_as_the_loop_handles_them(loops: Queue) -> None:
    """Left out, passed on, or the end; its own is the loop's; scattered data come to it."""
    data = loops.scatter("some")
    rows = itertools.repeat(data)
    words: dict[str, Any] = {"reduce": repr, "chunk_size": 3}
    removed = loops.foreach(raise_odd, 4, rows, errorhandling="remove", **words)
    assert removed == ["[0, 2]"]
    (passed, _) = loops.foreach(raise_odd, 4, rows, errorhandling="pass", **words)
    assert passed == "[0, ValueError('1 is odd'), 2]"
    with pytest.raises(ValueError, match="is odd"):
        loops.foreach(raise_odd, 4, rows, **words)
    with pytest.raises(ValueError, match=r"\[(0, 1, 2|3)\] is odd"):
        loops.foreach(abs, 4, reduce=raise_all, chunk_size=3)


def test_a_reduction_that_raises_ends_the_loop_however_errors_are_handled(loops: Queue) -> None:
    """Its results were good: they are not lost without a word."""
    for errorhandling in ("remove", "pass"):
        for retries in (0, 1):
            with pytest.raises(ValueError, match=r"\[4, 5, 6, 7\] is odd"):
                loops.foreach(
                    abs, 10, reduce=raise_with_4, chunk_size=4, errorhandling=errorhandling,
                    retries=retries, retry_delay=0,
                )  # fmt: skip
    with pytest.raises(TypeError, match="unsupported operand"):  # it was given the exception
        loops.foreach(raise_odd, 4, reduce=sum, chunk_size=2, errorhandling="pass")
    # This one travels without its attributes.
    with pytest.raises(json.JSONDecodeError):
        loops.foreach(abs, 4, reduce=read_broken, chunk_size=2, errorhandling="remove")
    with pytest.raises(json.JSONDecodeError):
        loops.foreach(abs, 4, worker_init=read_broken, errorhandling="remove")


def read_broken(_: Any = None) -> Any:
    """Read what is no JSON."""
    return json.loads("{broken")


def raise_with_4(results: list[int]) -> int:
    """Be a reduction that fails for some."""
    if 4 in results:
        raise_all(results)
    return sum(results)


def exits(i: int) -> int:
    """Give up, for one of them."""
    if i == 1:
        sys.exit("bad file")
    return i


def test_an_iteration_that_calls_exit_is_one_that_raises(loops: Queue) -> None:
    """Left out, passed on, or the end; also if it was tried again."""
    for words in ({}, {"retries": 1, "retry_delay": 0}):
        removed = loops.foreach(exits, 3, errorhandling="remove", **words)  # type: ignore[arg-type]
        assert removed == [0, 2]
        passed = loops.foreach(exits, 3, errorhandling="pass", **words)  # type: ignore[arg-type]
        assert isinstance(passed[1], SystemExit)
        assert passed[1].args == ("bad file",)
    with pytest.raises(SystemExit, match="bad file"):
        loops.foreach(exits, 3)


def test_numbers_of_a_reduced_loop_are_of_its_iterations(loops: Queue) -> None:
    """The same for any size of the chunks."""
    plain = loops.foreach(uniform, 7, seed=3)
    for size in (2, 7):
        chunks = loops.foreach(uniform, 7, seed=3, reduce=list, chunk_size=size)
        assert [x for chunk in chunks for x in chunk] == plain


def test_iterations_can_be_left_out_and_loops_nested(loops: Queue) -> None:
    """R's ``when`` and ``%:%``."""
    assert loops.foreach(operator.neg, 7, when=lambda i: i % 2 == 0) == [0, -2, -4, -6]
    pairs = ((i, j) for i in range(3) for j in range(i))
    assert loops.foreach(sum, pairs) == [1, 2, 3]


def inner(i: int, url: str) -> int:
    """Run a loop on the queue that this runs on."""
    with closing(Queue("test", url)) as queue:
        return int(queue.foreach(pow, i, itertools.repeat(2), combine=sum, init=0))


def test_a_loop_inside_of_a_loop_does_not_wait_for_itself(loops: Queue) -> None:
    """A stand-in runs it."""
    found = loops.foreach(inner, 6, itertools.repeat(loops.url))
    assert found == [sum(k * k for k in range(i)) for i in range(6)]


exported = 1


def reads_globals(i: int) -> tuple[int, Any]:
    """Return a global of this module, and one that only a text names."""
    return exported + i, eval("by_text + 1")  # noqa: S307


def missing(_: int) -> bool:
    """Tell whether a global is there."""
    return "exported" in globals()


def test_globals_are_exported_and_kept_back(loops: Queue) -> None:
    """Of a function of an importable module, too, which would travel by its name."""
    found = loops.foreach(reads_globals, 2, export={"exported": 10, "by_text": 20})
    assert found == [(10, 21), (11, 21)]
    assert loops.foreach(missing, 1, noexport=["exported"]) == [False]
    with pytest.raises(TypeError, match="for a function"):
        loops.foreach(abs, 1, export={"x": 1})


def script(text: str) -> dict[str, Any]:
    """Return the names of a script, whose functions travel by value."""
    scope: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(text, scope)  # noqa: S102
    return scope


SCRIPT = """
SCALE, LARGE = 100, (x for x in "no pickle")

def init():
    global MODEL
    MODEL = 9

def use(i): return MODEL + SCALE * i
def helper(i): return SCALE + i
def calls(i): return helper(i)
def fact(i): return SCALE if i == 0 else i * fact(i - 1)
def nothing(): return SCALE
def add(a, i): return a + SCALE + i
def names(i): return "LARGE" in globals() and LARGE
def total(results): return sum(results) + SCALE

class Thing:
    def method(self, i): return helper(i)
    def __call__(self, i): return SCALE + i

def decorated(fn):
    def wrapper(*args): return fn(*args)
    return wrapper
"""


def test_what_worker_init_sets_is_there_for_all_iterations(loops: Queue) -> None:
    """Not only for those that came with it: a generator comes in many jobs."""
    names = script(SCRIPT)
    numbers = (i for i in range(40))
    found = loops.foreach(names["use"], numbers, worker_init=names["init"], chunk_size=1)
    assert found == [9 + 100 * i for i in range(40)]


def test_functions_that_a_process_let_go_are_set_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps those of the last loops; what was set for others is gone with them."""
    monkeypatch.setattr(staying, "SHORT", -1.0)  # as if a while passed between any two of them
    names = script(
        "import sys\n"
        "def init():\n"
        "    global MODEL\n"
        "    MODEL = 9\n"
        "    sys.modules['redisq_let_go'].append(1)\n"
        "def use(i): return MODEL + SCALE * i\n"
    )
    inits: Any = []
    sys.modules["redisq_let_go"] = inits

    def parcel() -> Any:
        fn, init = names["use"], names["init"]
        return Loop(fn, [3], Combiner(), worker_init=init, export={"SCALE": 1}).body()

    first = pickle.dumps(parcel())
    for count in (1, 1 + MOST + 1):
        for _ in range(3):
            assert pickle.loads(first)(0, 5) == 14
        assert len(inits) == count
        for _ in range(MOST):
            pickle.loads(pickle.dumps(parcel()))(0, 5)
        gc.collect()
    del sys.modules["redisq_let_go"]
    assert "MODEL" not in names


def test_worker_init_runs_once_in_a_slot_however_many_loops_there_are(
    loops: Queue, tmp_path: Path
) -> None:
    """Five over generators at once, so that each comes in many jobs, in turns with the others."""

    def run(k: int) -> None:
        init = note_init(tmp_path / str(k))
        found.append(loops.foreach(abs, slowly(30, 0.01), worker_init=init))

    found: list[Any] = []
    threads = [threading.Thread(target=run, args=(k,)) for k in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [list(range(30))] * 5
    for k in range(5):
        pids = (tmp_path / str(k)).read_text().split()
        assert sorted(pids) == sorted(set(pids))


def test_worker_init_runs_once_in_a_slot_however_large_it_is(loops: Queue, tmp_path: Path) -> None:
    """It comes with tens of megabytes; what it made of them is there for the next job as well."""
    log, table = tmp_path / "log", np.zeros(3_000_000)

    def init() -> None:
        assert not table.any()
        note_init(log)()

    assert loops.foreach(abs, slowly(12, 0.03), worker_init=init) == list(range(12))
    pids = log.read_text().split()
    assert sorted(pids) == sorted(set(pids))


def test_a_chunk_with_nothing_left_is_left_out(
    loops: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    """What reduces is not called with an empty list, which max and many others refuse."""
    words: dict[str, Any] = {"reduce": max, "combine": max, "chunk_size": 2}
    items = ["x", "y", "1", "2"]
    assert loops.foreach(int, items, errorhandling="remove", **words) == 2
    with caplog.at_level("INFO", logger="dask_redisq.foreach"):
        loops.foreach(int, items, errorhandling="remove", verbose=True, **words)
    told = [r.message for r in caplog.records if "fault:" in r.message]
    assert sum("iteration" in message for message in told) == 2


def test_a_loop_says_once_that_there_are_no_workers(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    """Though it has many jobs that wait."""

    def numbers() -> Iterator[int]:
        yield from range(3)
        wait_until(lambda: len(queue.jobs()) > 1)

    with pytest.raises(redisq.NoWorkersError):
        queue.foreach(abs, numbers(), no_workers_timeout=6.0)
    assert sum("has no workers" in record.message for record in caplog.records) == 1


def large(i: int, gate: str, at: int) -> Any:
    """Return a megabyte, once a file is there if this is the iteration that waits for it."""
    if i == at:
        wait_until(Path(gate).exists)
    return np.full(2**17, i, float)


def test_large_results_that_wait_for_the_first_one_are_few(
    loops: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others would go on by thousands, and all of their results be here, or on the server."""
    monkeypatch.setattr(foreach, "MOST_BYTES", 2**23)
    gate, drawn = str(tmp_path / "gate"), [0]

    def numbers() -> Iterator[int]:
        for i in range(200):
            drawn[0] = i
            yield i

    found: list[Any] = []
    args = (numbers(), itertools.repeat(gate), itertools.repeat(0))
    thread = threading.Thread(
        target=lambda: found.append(loops.foreach(large, *args, combine=operator.add))
    )
    thread.start()
    wait_until(lambda: loops.stats()["finished"] > 8)
    time.sleep(1.0)
    seen = drawn[0]
    Path(gate).touch()
    thread.join(60)
    assert seen < 100
    assert found[0][0] == sum(range(200))


def test_before_the_first_result_each_slot_of_a_large_pool_has_something_to_do(
    loops: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 300 slots all would wait but 32, for a second or two."""
    monkeypatch.setattr(foreach, "_slots", lambda *_: 300)
    gate = str(tmp_path / "gate")
    found: list[Any] = []
    thread = threading.Thread(
        target=lambda: found.append(loops.foreach(large, range(500), [gate] * 500, range(500)))
    )
    started = time.monotonic()
    thread.start()
    wait_until(lambda: sum(job["n"] for job in loops.jobs()) == 500)
    took = time.monotonic() - started
    Path(gate).touch()
    thread.join(60)
    assert len(found[0]) == 500
    assert took < 2, "after 4 s it would be 512"


def test_large_results_that_wait_for_a_slow_combine_are_few(
    loops: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a list: it is not sent whole before one result has told how large they are."""
    monkeypatch.setattr(foreach, "MOST_BYTES", 2**23)
    seen: list[int] = []

    def combine(a: Any, b: Any) -> Any:
        seen.append(loops.stats()["finished"])
        time.sleep(0.02)
        return a + b

    before = loops.stats()["finished"]
    total = loops.foreach(large, range(150), ["none"] * 150, [-1] * 150, combine=combine)
    assert total[0] == sum(range(150))
    assert all(done - before - i < 64 + 32 for i, done in enumerate(seen))


def slowly(n: int, seconds: float) -> Iterator[int]:
    """Yield numbers, each of which takes its time: so each, or a few, are a job."""
    for i in range(n):
        time.sleep(seconds)
        yield i


def note_init(log: Path) -> Callable[[], None]:
    """Return what notes the process that it is called in."""

    def init() -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")

    return init


def test_what_stays_of_a_loop_goes_when_nobody_asks_for_it() -> None:
    """In an idle slot: it may hold models, and open files."""
    for token, asked in (("early", 0.0), ("late", 50.0)):
        stay(token, Kept(), asked)
    gc.collect()
    assert len(Kept.alive) == 2
    let_go(70.0)
    assert len(Kept.alive) == 1
    let_go()
    assert not Kept.alive


def test_of_loops_that_came_one_after_the_other_the_last_ones_stay() -> None:
    """Each may have loaded a model; those of loops that go on at once are asked for anew."""
    for second in range(3):
        for loop in range(5):
            stay(f"together {loop}", Kept(), second + loop / 10)
    gc.collect()
    assert len(Kept.alive) == 5
    for loop in range(9):
        stay(f"later {loop}", Kept(), 20.0 + 10 * loop)
    gc.collect()
    assert len(Kept.alive) == MOST
    let_go()
    gc.collect()


def test_a_process_keeps_what_the_last_initializers_set() -> None:
    """Each executor has one; a slot may see any number of them."""
    tokens = [f"executor {i}" for i in range(MOST_KEPT + 2)]
    for token in tokens:
        init = script("def init():\n    global MODEL\n    MODEL = kind()\n")["init"]
        init.__globals__["kind"] = Kept
        Setup(token, worker_init=init, kept_for=init).do()
        del init
    gc.collect()
    assert len(Kept.alive) == MOST_KEPT
    for token in tokens:
        forget_setup(token)
    gc.collect()
    assert not Kept.alive


class Kept:
    """Something whose end can be seen."""

    alive: ClassVar[weakref.WeakSet[Kept]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.alive.add(self)


def test_exported_names_reach_all_that_the_body_calls(loops: Queue) -> None:
    """A helper, itself, what worker_init set, a reduction; and what is replaced does not travel."""
    names = script(SCRIPT)
    words: dict[str, Any] = {"export": {"SCALE": 2}}
    assert loops.foreach(names["use"], 3, worker_init=names["init"], **words) == [9, 11, 13]
    assert loops.foreach(names["calls"], 3, **words) == [2, 3, 4]
    assert loops.foreach(names["fact"], 3, **words) == [2, 2, 4]
    assert loops.foreach(abs, 3, reduce=names["total"], chunk_size=3, **words) == [5]
    assert loops.foreach(names["names"], 1, export={"LARGE": 7}) == [7]
    assert loops.foreach(names["names"], 1, noexport=["LARGE"]) == [False]
    assert loops.foreach(calls_reads_globals, 1, export={"exported": 5, "by_text": 1}) == [(5, 2)]


def calls_reads_globals(i: int) -> tuple[int, Any]:
    """Call a neighbour, which would travel by its name."""
    return reads_globals(i)


def test_exported_names_are_for_whatever_is_a_function_inside(loops: Queue) -> None:
    """Partials, methods, objects, what is decorated; a default passes over what is none."""
    names = script(SCRIPT)
    bodies = [
        functools.partial(names["add"], 0), names["Thing"]().method, names["Thing"](),
        names["decorated"](names["helper"]),
    ]  # fmt: skip
    for body in bodies:
        assert loops.foreach(body, 2, export={"SCALE": 1}) == [1, 2]
    assert loops.times(2, names["nothing"], export={"SCALE": 1}) == [1, 1]
    loops.set_export({"SCALE": 1})
    assert loops.times(2, names["nothing"]) == [1, 1]
    assert loops.foreach(bodies[0], 2) == [1, 2]
    assert loops.foreach(abs, 2) == [0, 1]
    assert loops.times(2, list) == [[], []]


def test_packages_are_imported_first(loops: Queue) -> None:
    """What is not there is the loop's error."""
    module = "colorsys"
    assert loops.foreach(lambda _: module in sys.modules, 2, packages=[module]) == [True] * 2
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        loops.foreach(abs, 2, packages=["no_such_module"])
    with pytest.raises(TypeError, match="a list of names"):
        loops.foreach(abs, 2, packages="colorsys")


def test_defaults_of_a_queue_hold_where_a_call_has_none(loops: Queue) -> None:
    """DoRedis's set functions; they are of this object."""
    loops.set_chunk_size(3)
    loops.set_ft_interval(2)
    loops.set_export({"by_text": 1})
    loops.set_packages(["colorsys"])
    assert loops.with_defaults({}) == {"chunk_size": 3, "ft_interval": 2}
    assert loops.with_defaults({"chunksize": 7})["chunk_size"] == 7
    assert loops.foreach(reads_globals, 1) == [(1, 2)]
    loops.set_chunk_size(None)
    assert loops.with_defaults({}) == {"ft_interval": 2}
    with pytest.raises(ValueError, match="at least 1 and"):
        loops.set_ft_interval(0.1)
    assert Queue("test", loops.url).defaults == {}


def test_a_bar_counts_iterations(loops: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """Dask's own."""
    loops.foreach(abs, 50, progress=True)
    assert "100% Completed" in capsys.readouterr().out


def test_wrong_arguments_of_a_loop_are_told(loops: Queue) -> None:
    """Before anything is drawn or sent."""
    with pytest.raises(ValueError, match="errorhandling is one of 'stop', 'remove', 'pass'"):
        loops.foreach(abs, 1, errorhandling="ignore")
    with pytest.raises(TypeError, match="is a function"):
        loops.foreach(3, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunk_size"):
        loops.foreach(abs, 1, chunk_size=0)
    with pytest.raises(TypeError, match=r"not iterable|must support iteration"):
        loops.foreach(abs, 1.5)


def test_a_misspelt_keyword_of_a_loop_is_an_error_that_names_the_near_one(loops: Queue) -> None:
    """Without it the result would be another one; `get` is called by Dask, with words of others."""
    with pytest.raises(TypeError, match="no keyword 'combin': did you mean 'combine'"):
        loops.foreach(abs, 3, combin=sum)
    with pytest.raises(TypeError, match=r"no keyword 'x': items come without a name, foreach\("):
        loops.foreach(abs, x=[1, 2])
    for word in ("detach", "callbacks", "optimize_graph"):
        with pytest.raises(TypeError, match=f"no keyword {word!r}"):
            loops.times(3, list, **{word: True})
    with pytest.warns(UserWarning, match="does not know the keyword 'combinn'"):
        loops.get({"x": 1}, "x", combinn=sum)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"combine": "sum"}, "combine is a function, not 'sum'"),
        ({"final": 3}, "final is a function, not 3"),
        ({"when": 5}, "when is a function, not 5"),
        ({"worker_init": 3}, "worker_init is a function, not 3"),
        ({"seed_worker": 3}, "seed_worker is a function, not 3"),
        ({"reduce": 3}, "reduce is a function, not 3"),
        ({"maxcombine": "9"}, "maxcombine is a number, not '9'"),
        ({"export": ["a"]}, "export is a dict of names and values, not"),
        ({"noexport": None}, "noexport is a list of names, not None"),
        ({"packages": [3]}, "packages is a list of names, not"),
    ],
)
def test_an_argument_of_another_kind_is_told_by_its_name(
    loops: Queue, words: dict[str, Any], told: str
) -> None:
    """At the door, not by a slot, nor once all has run."""
    with pytest.raises(TypeError, match=re.escape(told)):
        loops.foreach(abs, iter(()), **words)
    if "export" in words:
        with pytest.raises(TypeError, match=re.escape(told)):
            loops.set_export(words["export"])


def test_a_body_of_times_is_a_function(loops: Queue) -> None:
    """As that of foreach."""
    with pytest.raises(TypeError, match="the body of a loop is a function, not 5"):
        loops.times(3, 5)  # type: ignore[arg-type]


def test_the_traceback_of_a_loop_is_of_the_users_lines(loops: Queue) -> None:
    """And of none of ours, as that of `get`."""
    with pytest.raises(ValueError, match="is odd") as of_foreach:
        loops.foreach(raise_odd, 2)
    with pytest.raises(ValueError, match="is odd") as of_times:
        loops.times(1, functools.partial(raise_odd, 1))
    for caught in (of_foreach, of_times):
        files = [str(entry.path) for entry in caught.traceback]
        assert not any("dask_redisq" in Path(file).parts for file in files)
        assert files[-1] == __file__


def test_an_iterable_that_raises_cancels_what_was_sent(loops: Queue) -> None:
    """Its error is the loop's."""

    def broken() -> Iterator[int]:
        yield 0
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        loops.foreach(abs, broken())


def test_an_interrupted_loop_leaves_no_job(loops: Queue) -> None:
    """Ctrl-C, wherever it comes: here where results are combined."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loops.foreach(time.sleep, [0.01] * 500, combine=interrupt, chunk_size=1)
    assert loops.jobs() == []


def big(i: int) -> np.ndarray[Any, Any]:
    """Return 8 MB."""
    return np.full(2**20, float(i))


def test_large_results_are_let_go_as_they_are_combined(loops: Queue) -> None:
    """A gigabyte goes through, and a fraction of it is ever here."""
    import tracemalloc

    tracemalloc.start()
    try:
        total = loops.foreach(
            big, 100, combine=lambda a, b: a + float(b[0]), init=0.0, inorder=False
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == sum(range(100))
    assert peak < 300e6


def test_a_killed_slots_iterations_run_again(loops: Queue, cluster: redisq.LocalCluster) -> None:
    """Scenario 5: each counts once."""
    import psutil

    def kill_one() -> None:
        wait_until(lambda: loops.stats()["running"] > 0)
        workers = psutil.Process().children(recursive=True)
        slot = next(p for p in workers if "dask_redisq.slot" in command_of(p))
        slot.kill()

    thread = threading.Thread(target=kill_one)
    thread.start()
    found = loops.foreach(_slowly, 60, chunk_size=5)
    thread.join()
    assert found == list(range(60))


def _slowly(i: int) -> int:
    time.sleep(0.02)
    return i
