"""joblib on the workers of a queue, and scikit-learn above it."""

from __future__ import annotations

import functools
import gc
import math
import multiprocessing
import os
import random
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import WorkerProcess, wait_until
from joblib import Parallel, delayed, parallel_config
from joblib.parallel import effective_n_jobs
from sklearn.base import BaseEstimator
from test_faults import Background

import dask_redisq as redisq
from dask_redisq.joblib import MOST_PACKED, RedisqBackend, _packed, register_redisq
from dask_redisq.large_arguments import LargeArguments, Mark
from dask_redisq.queue import Queue


@pytest.fixture(scope="module")
def cluster() -> Iterator[redisq.LocalCluster]:
    """A server and two slots for the module."""
    register_redisq()
    with redisq.LocalCluster(n_workers=2, queue="test") as running:
        yield running


@pytest.fixture
def backend(cluster: redisq.LocalCluster) -> Iterator[None]:
    """Our backend, for all that joblib does in the test."""
    with parallel_config(backend="redisq", queue="test", url=cluster.url):
        yield


def here(_: Any = None) -> int:
    """Return this process."""
    return os.getpid()


def seven(i: int) -> int:
    """Raise for seven."""
    if i == 7:
        raise LookupError("seven")
    return i


def test_calls_run_on_the_workers_in_order(backend: None) -> None:
    """None of them here."""
    assert Parallel()(delayed(pow)(i, 2) for i in range(200)) == [i * i for i in range(200)]
    assert os.getpid() not in Parallel(n_jobs=2)(delayed(here)(i) for i in range(20))


def test_results_are_generated_in_order_or_as_they_come(backend: None) -> None:
    """Both of joblib's generators."""
    ordered = Parallel(return_as="generator")(delayed(abs)(-i) for i in range(50))
    assert list(ordered) == list(range(50))
    unordered = Parallel(return_as="generator_unordered")(delayed(abs)(-i) for i in range(50))
    assert sorted(unordered) == list(range(50))


@pytest.fixture
def only_here(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Make a module that no worker has."""
    module = ModuleType("only_here")
    exec("def twice(x):\n    return 2 * x", module.__dict__)  # noqa: S102
    monkeypatch.setitem(sys.modules, "only_here", module)
    return module


def test_a_function_of_a_module_that_travels_by_value(backend: None, only_here: ModuleType) -> None:
    """`cloudpickle.register_pickle_by_value` holds: the workers have no such module."""
    cloudpickle.register_pickle_by_value(only_here)
    try:
        assert Parallel()(delayed(only_here.twice)(i) for i in range(50)) == [*range(0, 100, 2)]
    finally:
        cloudpickle.unregister_pickle_by_value(only_here)


def test_a_module_that_the_workers_lack_is_told(backend: None, only_here: ModuleType) -> None:
    """By its name, and with what to do."""
    with pytest.raises(ModuleNotFoundError, match="only_here") as caught:
        Parallel()(delayed(only_here.twice)(i) for i in range(5))
    assert "upload_file" in "".join(caught.value.__notes__)


def test_a_method_of_an_object_is_not_taken_for_a_function(backend: None) -> None:
    """A copy of the object for each batch would give the same numbers again and again."""
    source = random.Random(7)
    assert _packed([(source.random, (), {})]) is None
    assert _packed([(math.sqrt, (2.0,), {})]) is not None
    assert _packed([(here, (1,), {})]) is not None
    assert _packed([(here, ([],), {})]) is None
    assert _packed([(here, ("x" * MOST_PACKED,), {})]) is None
    assert _packed([(lambda: 1, (), {})]) is None


def test_an_error_comes_as_it_is_and_the_backend_goes_on(
    backend: None, cluster: redisq.LocalCluster
) -> None:
    """What else was sent is cancelled."""
    for _ in range(2):
        with pytest.raises(LookupError, match="seven"):
            Parallel()(delayed(seven)(i) for i in range(500))
    with Queue("test", cluster.url) as queue:
        wait_until(lambda: queue.jobs() == [])
    assert Parallel()(delayed(seven)(i) for i in range(5)) == [0, 1, 2, 3, 4]


def test_a_keyword_that_there_is_not_is_refused_before_calls_are_made() -> None:
    """By its own name, with the one that may be meant."""
    with pytest.raises(TypeError, match="joblib's backend has no keyword 'retrys': did you mean"):
        RedisqBackend(retrys=1)


def test_a_timeout_aborts_what_runs(backend: None, cluster: redisq.LocalCluster) -> None:
    """Not a minute later."""
    with pytest.raises(multiprocessing.TimeoutError):
        Parallel(timeout=0.5)(delayed(time.sleep)(60) for _ in range(2))
    with Queue("test", cluster.url) as queue:
        wait_until(lambda: queue.jobs() == [])


def nested(i: int) -> tuple[int, list[int]]:
    """Return this process, and those of calls inside of this one."""
    return os.getpid(), Parallel(n_jobs=2)(delayed(here)(j) for j in range(i))


def test_calls_inside_of_a_call_are_sequential(backend: None) -> None:
    """In the same process."""
    for me, inside in Parallel()(delayed(nested)(i) for i in range(4)):
        assert set(inside) <= {me}


def named(i: int) -> tuple[int, list[int], list[int]]:
    """Return this process, and those of calls inside of this one that name the backend."""
    inside = Parallel(n_jobs=2, backend="redisq")(delayed(here)(j) for j in range(i))
    with parallel_config(backend="redisq", queue="test", n_jobs=2):
        return os.getpid(), inside, Parallel()(delayed(here)(j) for j in range(i))


def test_a_call_that_names_the_backend_is_sequential_inside(backend: None) -> None:
    """A library may do so; of plain calls and of others."""
    for fn in (named, functools.partial(named)):
        for me, inside, again in Parallel()(delayed(fn)(i) for i in range(4)):
            assert set(inside) | set(again) <= {me}


def test_a_task_of_a_loop_that_asks_for_the_backend_has_it(
    backend: None, cluster: redisq.LocalCluster
) -> None:
    """It is no call of joblib's: others may help it."""

    def many() -> bool:
        import dask_redisq.joblib  # noqa: F401 - it makes the name known

        with parallel_config(backend="redisq", queue=queue):
            return os.getpid() not in Parallel()(delayed(here)(j) for j in range(4))

    with Queue("test", cluster.url) as queue:
        assert queue.times(1, many) == [True]


def test_one_job_at_a_time_runs_on_the_workers(backend: None, tmp_path: Path) -> None:
    """`n_jobs` is a cap, and no reason to run in the caller."""

    def at_once() -> tuple[int, int]:
        mine = tmp_path / str(time.monotonic_ns())
        mine.touch()
        time.sleep(0.05)
        found = len(list(tmp_path.iterdir()))
        mine.unlink()
        return found, os.getpid()

    found = Parallel(n_jobs=1, batch_size=1)(delayed(at_once)() for _ in range(6))
    assert {many for many, _ in found} == {1}
    assert os.getpid() not in {pid for _, pid in found}
    with Parallel(n_jobs=1) as parallel:
        assert parallel(delayed(here)() for _ in range(1)) != [os.getpid()]


def test_without_a_worker_calls_are_there_for_one(
    queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """Nothing runs in the caller, and a worker that comes for a burst finds them."""

    def compute() -> Any:
        with parallel_config(backend="redisq", queue="test", url=queue.url):
            return Parallel(n_jobs=-1)(delayed(here)(i) for i in range(3))

    calls = Background(compute)
    wait_until(lambda: queue.stats()["ready"] > 0)
    start_worker("test", "--nworkers", "1", "--burst")
    found = calls.result(60)
    assert len(found) == 3
    assert os.getpid() not in found


LARGE = np.ones(2**18)


@pytest.mark.parametrize("some", [1, LARGE], ids=["small", "large"])
def test_without_a_worker_it_gives_up_when_that_is_asked_for(queue: Queue, some: Any) -> None:
    """`no_workers_timeout` holds, as for all else."""
    with (
        parallel_config(backend="redisq", queue="test", url=queue.url, no_workers_timeout=0),
        pytest.raises(redisq.NoWorkersError),
    ):
        Parallel(n_jobs=-1)(delayed(here)(arg) for arg in [some] * 3)


def test_calls_that_wait_for_their_large_argument_are_aborted(queue: Queue) -> None:
    """There is no job of them yet that could be cancelled: nobody takes the argument to a slot."""

    def compute() -> None:
        with (
            parallel_config(backend="redisq", queue="test", url=queue.url),
            pytest.raises((multiprocessing.TimeoutError, TimeoutError)),
        ):
            Parallel(n_jobs=2, timeout=0.5)(delayed(here)(LARGE) for _ in range(3))

    compute()
    gc.collect()  # the error's traceback holds all of it
    wait_until(lambda: queue.jobs() == [])


def test_n_jobs_is_how_many_run_at_a_time(backend: None, cluster: redisq.LocalCluster) -> None:
    """All slots for -1, and some if there is none."""
    wait_until(lambda: effective_n_jobs(-1) == 2)  # one may still stand in for who waited before
    with parallel_config(backend="redisq", queue="nobody", url=cluster.url):
        assert effective_n_jobs(-1) > 2
    assert effective_n_jobs(5) == 5
    with pytest.raises(ValueError, match="no meaning"):
        effective_n_jobs(0)


@pytest.mark.parametrize("kind", ["array", "list", "frame"])
def test_a_large_argument_travels_once(
    backend: None, cluster: redisq.LocalCluster, kind: str
) -> None:
    """16 MB, in 60 calls: the server gets them once, from whom soever, and each slot has them."""
    array = np.ones(2**21)
    table: Any = array if kind == "array" else pd.DataFrame({"x": array})
    if kind == "list":
        table = array.tolist()
    with Queue("test", cluster.url) as queue:
        before = _received(queue)
        sums = Parallel(batch_size=1)(delayed(_shifted)(table, i) for i in range(60))
        taken = _received(queue) - before
    assert sums == [2.0**21 + i for i in range(60)]
    assert array.nbytes < taken < 1.2 * array.nbytes + 60 * 5_000


def test_what_a_call_does_to_its_argument_is_not_seen_by_the_next_call(backend: None) -> None:
    """Of one `Parallel` each call has what the client has, as with joblib's own processes."""
    table = np.zeros(2**18)
    with Parallel(batch_size=1) as parallel:
        assert [parallel([delayed(_raised)(table)]) for _ in range(4)] == [[1.0]] * 4


@pytest.mark.parametrize("kind", ["array", "objects", "list", "frame", "here"])
def test_what_a_call_does_to_its_argument_is_not_seen_by_another_batch(
    backend: None, kind: str
) -> None:
    """Of one call of it as well: joblib's own backend maps large arrays, which are read-only."""
    array = np.zeros(2**18)
    table: Any = {
        "array": array, "objects": array.astype(object), "list": array.tolist(),
        "frame": pd.DataFrame({"x": array}), "here": _boxed(array.tolist()),
    }[kind]  # fmt: skip
    found = Parallel(batch_size=1)(delayed(_raised)(table) for _ in range(12))
    assert found == [1.0] * 12


@pytest.mark.parametrize(
    ("words", "writable"),
    [
        ({}, False),
        ({"max_nbytes": None}, True),
        ({"mmap_mode": "c"}, True),
        ({"max_nbytes": "9M"}, True),
    ],
)
def test_large_arrays_are_read_only_if_joblib_would_map_them(
    backend: None, words: dict[str, Any], *, writable: bool
) -> None:
    """However they came: first by themselves, later with their batch. Not inside of something."""
    chunks = [np.full(2**18, i) for i in range(12)]
    found = Parallel(n_jobs=2, batch_size=1, **words)(delayed(_writable)(x) for x in chunks)
    assert found == [writable] * 12
    found = Parallel(n_jobs=2, batch_size=1, **words)(delayed(_writable)([x]) for x in chunks)
    assert found == [True] * 12
    box = [chunks[0]]
    assert (
        Parallel(batch_size=1, **words)(delayed(_writable)(box) for _ in range(12)) == [True] * 12
    )


def _writable(data: Any) -> bool:
    array = data[0] if isinstance(data, list) else data
    return bool(array.flags.writeable)


def test_batches_with_a_large_argument_are_let_go(backend: None) -> None:
    """What they were given, and what they gave, without the help of the garbage collector."""
    table, held = np.ones(2**18), []
    gc.collect()
    gc.disable()
    try:

        def calls() -> Iterator[Any]:
            for i in range(20):
                array = np.full(10, i)
                held.append(weakref.ref(array))
                yield delayed(_beside)(table, array)
                del array

        for found in Parallel(n_jobs=2, batch_size=1, return_as="generator")(calls()):
            held.append(weakref.ref(found))
            del found
        wait_until(lambda: sum(one() is not None for one in held) < 4)
    finally:
        gc.enable()


def _beside(table: Any, array: Any) -> Any:
    return array + table[0]


class Odd:
    """Knows nothing of its size yet."""

    @property
    def nbytes(self) -> int:
        """Raise."""
        raise RuntimeError("no idea yet")


def test_an_argument_that_does_not_like_to_be_looked_at_is_one_like_others(backend: None) -> None:
    """Dask's own look at it did so, too."""
    assert Parallel(n_jobs=2)(delayed(type)(Odd()) for _ in range(3)) == [Odd] * 3


def test_a_large_argument_of_which_the_server_lost_a_part_is_sent_again(
    cluster: redisq.LocalCluster,
) -> None:
    """An evicted constant: its job fails, since it cannot be repaired, and who waits is told so."""
    table = np.ones(2**18)
    with Queue("test", cluster.url) as queue, queue.pool.lend() as link:
        large = LargeArguments(queue)
        batch = large.batch()
        assert type(batch.marked([table])[0]) is Mark
        (part,) = batch.parts
        assert part.compute().sum() == 2**18
        unrelated = redisq.JobFailed("of another job")
        assert not batch.lost(unrelated)
        (name,) = link.command("KEYS", "redisq:{test}:job:*:const:*")
        link.command("DEL", name)
        with pytest.raises(redisq.JobFailed, match="cannot be repaired") as failed:
            part.compute()
        assert batch.lost(failed.value)
        other = large.batch()
        assert type(other.marked([table])[0]) is Mark
        assert other.parts[0].compute().sum() == 2**18


def _boxed(data: list[float]) -> Any:
    class Boxed:
        """Of no module; has data that a call may change."""

        def __init__(self) -> None:
            self.data = data

        def __sizeof__(self) -> int:
            return 8 * len(self.data)

    return Boxed()


def _raised(table: Any) -> float:
    data = getattr(table, "data", None)
    if isinstance(data, list):
        return _raised(data)
    if isinstance(table, list):
        table[0] += 1
        return float(table[0])
    try:
        table += 1
    except ValueError:  # it is read-only
        table = table + 1
    return float(np.ravel(table)[0])


def test_large_arguments_that_come_once_do_not_pile_up_on_the_server(
    backend: None, cluster: redisq.LocalCluster
) -> None:
    """There are chunks of them in a list: 40 of 2 MB."""
    chunks = [np.full(2**18, i) for i in range(40)]
    with Queue("test", cluster.url) as queue:
        jobs: list[int] = []

        def calls() -> Iterator[Any]:
            for chunk in chunks:
                jobs.append(len(queue.jobs()))
                yield delayed(_number)(chunk)

        assert Parallel(n_jobs=2, batch_size=1)(calls()) == list(range(40))
    assert max(jobs) < 20


@pytest.mark.parametrize("size", [10, 2**18])
@pytest.mark.parametrize("wrap", [np.asarray, lambda array: [array]])
def test_arguments_are_let_go_with_their_calls(
    backend: None, wrap: Callable[[Any], Any], size: int
) -> None:
    """Of a generator only those that are under way are held, whatever can be referred to weakly."""
    held: list[weakref.ref[Any]] = []
    most = 0

    def drawn() -> Iterator[Any]:
        nonlocal most
        for i in range(40):
            array = np.full(size, i)
            held.append(weakref.ref(array))
            most = max(most, sum(one() is not None for one in held))
            yield delayed(_number)(wrap(array))
            del array

    found = Parallel(n_jobs=2, batch_size=1, pre_dispatch=4)(drawn())
    assert found == list(range(40))
    assert most < 20


def _number(data: Any) -> int:
    return int(np.ravel(data)[0])


def test_a_parallel_may_name_the_queue_and_keywords_of_a_job(cluster: redisq.LocalCluster) -> None:
    """For its own calls; a word that there is not is refused."""
    where = {"backend": "redisq", "queue": "test", "url": cluster.url}
    with redisq.Queue("nobody", cluster.url) as nobody:
        parallel = Parallel(n_jobs=2, **where)
        for _ in range(2):
            assert _are_workers(cluster, parallel(delayed(here)(i) for i in range(4)))
        with parallel_config(backend="redisq", queue=nobody, no_workers_timeout=0):
            found = Parallel(n_jobs=2, queue="test")(delayed(here)(i) for i in range(4))
            assert _are_workers(cluster, found)
            with pytest.raises(redisq.NoWorkersError):
                Parallel(n_jobs=2)(delayed(here)(i) for i in range(4))
    with pytest.raises(TypeError, match="no keyword 'quue': did you mean 'queue'"):
        Parallel(n_jobs=2, backend="redisq", quue="test")(delayed(here)(i) for i in range(4))


def test_a_call_that_names_the_backend_is_on_the_queue_of_the_block(
    backend: None, cluster: redisq.LocalCluster
) -> None:
    """It may be in a library, which knows of no queue; what it does name goes before."""
    found = Parallel(n_jobs=2, backend="redisq")(delayed(here)(i) for i in range(4))
    assert _are_workers(cluster, found)
    with (
        parallel_config(backend="redisq", queue="nobody", no_workers_timeout=0),
        pytest.raises(redisq.NoWorkersError),
    ):
        Parallel(n_jobs=2, backend="redisq")(delayed(here)(i) for i in range(4))


def _are_workers(cluster: redisq.LocalCluster, pids: list[int]) -> bool:
    """Tell whether processes are children of the cluster's workers."""
    with Queue("test", cluster.url) as queue:
        workers = {row["pid"] for row in queue.workers()}
    return {psutil.Process(pid).ppid() for pid in pids} <= workers


@pytest.mark.parametrize(
    ("kind", "size"),
    [("array", 1_000), ("array", 100_000), ("array", 1_000_000), ("list", 100_000)],
)
def test_an_argument_that_is_refilled_is_what_it_was_when_its_batch_was_sent(
    backend: None, kind: str, size: int
) -> None:
    """Of two that joblib draws together the later one is seen, as by its own; whatever the size."""
    buffer: Any = np.zeros(size) if kind == "array" else [0] * size

    def filled() -> Iterator[Any]:
        for i in range(8):
            buffer[0] = i
            yield buffer

    calls = (delayed(_first)(data) for data in filled())
    found = Parallel(n_jobs=2, batch_size=1, pre_dispatch=1)(calls)
    assert found == [0, 2, 2, 4, 4, 6, 6, 7]


def _first(data: Any) -> int:
    return int(data[0])


def _shifted(table: Any, i: int) -> float:
    return float(np.sum(table)) + i


def _received(queue: Queue) -> int:
    with queue.pool.lend() as link:
        lines = link.command("INFO", "stats").split()
    return int(next(x for x in lines if x.startswith(b"total_net_input_bytes:")).split(b":")[1])


class Where(BaseEstimator):  # type: ignore[misc]  # it has no types
    """An estimator that tells where it was fitted."""

    def __init__(self, shift: int = 0) -> None:
        self.shift = shift

    def fit(self, X: Any, y: Any) -> Where:  # noqa: N803 - scikit-learn's name
        """Note this process."""
        self.pid = os.getpid()
        return self

    def score(self, X: Any, y: Any) -> float:  # noqa: N803
        """Return it."""
        return float(self.pid)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_scikit_learn_runs_on_the_workers(backend: None) -> None:
    """Cross-validation, grid search and forests, by the processes in which they ran."""
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.svm import SVC

    X, y = load_iris(return_X_y=True)  # noqa: N806 - scikit-learn's name
    pids = cross_val_score(Where(), X, y, cv=4, n_jobs=-1)
    assert os.getpid() not in set(pids)
    search = GridSearchCV(SVC(), {"C": [0.1, 1, 10]}, cv=3, n_jobs=-1).fit(X, y)
    assert search.best_score_ > 0.9
    forest = RandomForestClassifier(n_estimators=10, random_state=0, n_jobs=-1).fit(X, y)
    alone = RandomForestClassifier(n_estimators=10, random_state=0, n_jobs=1).fit(X, y)
    assert np.array_equal(forest.predict_proba(X), alone.predict_proba(X))
