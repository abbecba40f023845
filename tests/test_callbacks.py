"""Dask's callbacks see what really happens to tasks, on real workers."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from conftest import WorkerProcess, wait_until
from dask._task_spec import Alias
from dask.cache import Cache
from dask.callbacks import Callback
from dask.diagnostics import CacheProfiler, Profiler, ProgressBar, ResourceProfiler
from test_faults import Background

import dask_redisq.callbacks as ours
from dask_redisq.codec import pack
from dask_redisq.events import EventReader
from dask_redisq.graph import plan_graph
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.queue import Queue


def inc(x: int) -> int:
    """Add one."""
    return x + 1


def add(*them: int) -> int:
    """Add them."""
    return sum(them)


def fail_at(x: int) -> int:
    """Raise."""
    raise ValueError(x)


def fail_elsewhere(here: int) -> int:
    """Raise on a worker only."""
    if os.getpid() != here:
        raise ValueError("elsewhere")
    return 10


def wait_for(gate: Path) -> str:
    """Wait until a file is there."""
    while not gate.exists():
        time.sleep(0.01)
    return "open"


class Recorder(Callback):
    """Notes all that it is told."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.states: list[dict[str, int]] = []
        self.threads: set[int] = set()

    def _note(self, what: str, *about: Any) -> None:
        self.seen.append((what, *about))
        self.threads.add(threading.get_ident())

    def _start(self, dsk: Any) -> None:
        self._note("start", len(dsk))

    def _start_state(self, dsk: Any, state: Any) -> None:
        self._note("start_state", *(len(state[k]) for k in ("waiting", "ready")))

    def _pretask(self, key: Any, dsk: Any, state: Any) -> None:
        assert key in dsk
        assert key in state["running"]
        self._note("pretask", key)

    def _posttask(self, key: Any, value: Any, dsk: Any, state: Any, worker: str) -> None:
        assert key in state["finished"]
        self._note("posttask", key, value)
        self.states.append({k: len(state[k]) for k in ("waiting", "ready", "running", "finished")})

    def _finish(self, dsk: Any, state: Any, failed: bool) -> None:
        self._note("finish", failed)


DIAMOND = {"a": (inc, 1), "b": (inc, "a"), "c": (inc, "a"), "d": (add, "b", "c"), "e": "d"}


def test_a_callback_is_told_each_step_of_each_task(queue: Queue, workers: WorkerProcess) -> None:
    """In an order that the graph allows, once, in the thread that computes."""
    with Recorder() as recorder:
        assert queue.get(DIAMOND, "e") == 6
    kinds = [what for what, *_ in recorder.seen]
    assert kinds[:2] == ["start", "start_state"]
    assert kinds[-1] == "finish"
    assert recorder.seen[-1] == ("finish", False)
    posts = {key: value for what, key, *value in recorder.seen[2:-1] if what == "posttask"}
    assert posts == {"a": [2], "b": [3], "c": [3], "d": [6], "e": [6]}
    order = [(what, key) for what, key, *_ in recorder.seen[2:-1]]
    assert len(order) == len(set(order)) == 10
    at = {entry: i for i, entry in enumerate(order)}
    for key in "abcde":
        assert at["pretask", key] < at["posttask", key]
    assert at["posttask", "a"] < min(at["posttask", "b"], at["posttask", "c"])
    assert max(at["posttask", "b"], at["posttask", "c"]) < at["posttask", "d"]
    assert recorder.states[-1] == {"waiting": 0, "ready": 0, "running": 0, "finished": 5}
    assert recorder.threads == {threading.get_ident()}


@pytest.mark.parametrize(
    ("dsk", "keys"),
    [
        (DIAMOND, ["c", "e"]),
        ({"x": 1, "y": "x"}, ["y"]),
        ({"x": 1, "y": "x"}, ["x", "y"]),
        ({"x": 1, "y": "x", "z": "y", "w": (inc, "z")}, ["w", "y"]),
        ({"x": (inc, 1), "y": "x", "z": "y", "w": (add, "z", "z")}, ["w"]),
        ({0: (inc, 1)} | {("x", i): ("x", i - 1) if i else 0 for i in range(2000)}, [("x", 1999)]),
    ],
)
def test_the_state_ends_as_that_of_dask(
    queue: Queue, workers: WorkerProcess, dsk: dict[Any, Any], keys: list[Any]
) -> None:
    """What is finished, released and kept; names of names, and of constants, are tasks."""

    def ends(get: Any) -> Any:
        states: list[Any] = []
        told: list[Any] = []
        with Callback(
            pretask=lambda key, *_: told.append(key),
            posttask=lambda key, value, *_: told.append((key, value)),
            finish=lambda dsk, state, failed: states.append(state),
        ):
            told.append(get(dsk, keys))
        (state,) = states
        return (
            {k: state[k] for k in ("finished", "released", "cache", "waiting", "running")}
            | {
                k: {key: set(deps) for key, deps in state[k].items()}
                for k in ("dependencies", "dependents", "waiting_data")
            }
            | {"told": sorted(told, key=str)}
        )

    assert ends(queue.get) == ends(dask.get)


def test_a_task_is_told_when_it_begins_and_when_it_ends(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Not all at the end: one slot waits while the other one is done."""
    gate = tmp_path / "gate"
    recorder = Recorder()
    with recorder:
        job = Background(queue.get, {"slow": (wait_for, gate), "fast": (inc, 1)}, ["slow", "fast"])
        wait_until(lambda: ("posttask", "fast", 2) in recorder.seen)
        wait_until(lambda: ("pretask", "slow") in recorder.seen)
        assert not any(what == "posttask" and key == "slow" for what, key, *_ in recorder.seen)
        gate.touch()
        assert job.result() == ("open", 2)


@pytest.mark.parametrize("looks", [True, False])
def test_a_failure_is_told_after_what_was_done(
    queue: Queue, workers: WorkerProcess, looks: bool
) -> None:
    """`finish` is called with failed, for who was started."""
    dsk = {"x": (inc, 1), "y": (fail_at, "x")}
    mode = "always" if looks else "never"
    with (
        dask.config.set({"redisq.callback-values": mode}),
        Recorder() as recorder,
        pytest.raises(ValueError, match="2"),
    ):
        queue.get(dsk, "y")
    assert recorder.seen[-1] == ("finish", True)
    done = [entry[1:] for entry in recorder.seen if entry[0] == "posttask"]
    assert done == [("x", 2 if looks else None)]


def test_the_callbacks_of_a_broken_one_are_finished(queue: Queue) -> None:
    """It raises in ``start``: those before it get their ``finish``, it does not."""
    first = Recorder()

    def broken(_: Any) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        queue.get({"x": (inc, 1)}, "x", callbacks=[first, Callback(start=broken)])
    assert [what for what, *_ in first.seen] == ["start", "finish"]


def test_values_stay_with_the_workers_unless_somebody_looks(
    queue: Queue, workers: WorkerProcess
) -> None:
    """The profilers do not; an unknown callback may; a setting decides otherwise."""

    def looks(*callbacks: Any, mode: str = "auto") -> bool:
        return ours.looks_at_values(ours.active_callbacks(callbacks), mode)

    assert not looks(ProgressBar(), Profiler(), ResourceProfiler())
    assert looks(CacheProfiler())
    assert looks(ProgressBar(), Recorder())
    assert looks(ProgressBar(), mode="always")
    assert not looks(Recorder(), mode="never")
    assert looks(CacheProfiler(), mode="never")
    with pytest.raises(ValueError, match="auto, always or never"):
        looks(mode="sometimes")
    with dask.config.set({"redisq.callback-values": "never"}), Recorder() as recorder:
        queue.get({"x": (inc, 1), "y": (inc, "x")}, "y")
    values = {key: value for what, key, *value in recorder.seen[2:-1] if what == "posttask"}
    assert values == {"x": [None], "y": [3]}


class Told:
    """Notes what an `EventReader` tells."""

    def __init__(self) -> None:
        self.done_: list[tuple[Any, Any]] = []

    def done(self, key: Any, value: Any, _worker: str) -> None:
        """Note a task with its value."""
        self.done_.append((key, value))


def test_an_output_is_told_once_its_value_is_here(queue: Queue, link: Link, keys: Keys) -> None:
    """It is done after the answer that it is not in, and before its event is read."""
    told: Any = Told()
    reader = EventReader(link, keys, "j", ["x", "y", "z"], told, outputs={1})
    link.command("RPUSH", keys("events", "j"), pack([b"s", b"", 1, [0, 1, 2]]))
    reader.read({}, anew=False)
    assert told.done_ == [("x", ours.UNREAD)]
    reader.read({1: 3}, anew=False)
    assert told.done_[1:] == [("y", 3), ("z", ours.UNREAD)]


def test_dasks_diagnostics_work_unchanged(
    queue: Queue, workers: WorkerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    """ProgressBar ends at 100 %; Profiler names worker and slot; CacheProfiler measures values."""
    x = dask.delayed(add)(*[dask.delayed(inc)(i, pure=True) for i in range(20)])
    with ProgressBar(), Profiler() as profiler, ResourceProfiler(dt=0.01), CacheProfiler() as cache:
        assert x.compute(scheduler=queue.get) == 210
    assert "100% Completed" in capsys.readouterr().out
    assert len(profiler.results) == 21
    assert {entry.worker_id.split("/")[0] for entry in profiler.results} == {"one"}
    assert all(entry.end_time >= entry.start_time for entry in profiler.results)
    assert len(cache.results) == 21


def test_the_opportunistic_cache_spares_tasks(queue: Queue, workers: WorkerProcess) -> None:
    """What it kept of one computation is a constant of the next."""
    import cachey

    kept = Cache(cachey.Cache(1e9, limit=0))
    dsk = {("x", 1): (inc, 1), ("y", 1): (inc, ("x", 1))}
    with kept, Recorder() as recorder:
        assert queue.get(dsk, ("y", 1)) == 3
        assert kept.cache.get(("x", 1)) == 2
        assert queue.get({**dsk, ("z", 1): (inc, ("y", 1))}, ("z", 1)) == 4
    done = [key for what, key, *_ in recorder.seen if what == "posttask"]
    assert done == [("x", 1), ("y", 1), ("z", 1)]


def test_the_bar_of_tqdm_counts_tasks(
    queue: Queue, workers: WorkerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    """`tqdm.dask.TqdmCallback`, unchanged; it does not look at values."""
    from tqdm.dask import TqdmCallback

    with TqdmCallback(desc="redisq", mininterval=0):
        queue.get({("x", i): (inc, i) for i in range(7)}, [("x", 3)])
        queue.get(DIAMOND, "e")
    told = capsys.readouterr().err
    assert "1/1" in told
    assert "5/5" in told


@pytest.mark.parametrize("looks", [True, False])
def test_tasks_of_whose_end_nobody_told_are_done_before_their_users(looks: bool) -> None:
    """5,000 in a chain; where values are looked at, no callback is given one that it never had."""
    n = 5000
    dsk: dict[Any, Any] = {("x", i): (inc, ("x", i - 1) if i else 0) for i in range(n)}
    recorder = Recorder()
    hooks = ours.active_callbacks([recorder])
    with ours.Observer(hooks, dsk, ("x", n - 1), looks=looks) as observer:
        observer.start()
        observer.begin(plan_graph(observer.dsk, ("x", n - 1)))
        observer.done(("x", n - 1), n)
    assert len(observer.state["finished"]) == n
    assert not observer.state["ready"]
    told = [entry[1] for entry in recorder.seen if entry[0] == "posttask"]
    assert told == ([("x", n - 1)] if looks else [("x", i) for i in range(n)])


def test_callbacks_hear_of_a_task_that_ran_here_after_it_raised(
    queue: Queue, workers: WorkerProcess
) -> None:
    """With `rerun_exceptions_locally`: by the client, with its value."""
    dsk = {"a": (fail_elsewhere, os.getpid()), "b": (inc, "a")}
    with Recorder() as recorder, pytest.warns(UserWarning, match="its value here is used"):
        assert queue.get(dsk, "b", rerun_exceptions_locally=True) == 11
    assert [entry[1:] for entry in recorder.seen if entry[0] == "posttask"] == [
        ("a", 10),
        ("b", 11),
    ]


def test_a_rebuilt_job_tells_each_task_once(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of it has run when the server forgets: what comes again is known."""
    gate = tmp_path / "gate"
    recorder = Recorder()
    with recorder:
        dsk = {"a": (inc, 1), "slow": (wait_for, gate), "b": (inc, "a")}
        job = Background(queue.get, dsk, ["slow", "b"])
        wait_until(lambda: any(e[:2] == ("posttask", "b") for e in recorder.seen))
        (row,) = queue.jobs()
        with queue.pool.lend() as link:
            link.command("HSET", queue.keys("job", row["id"]), "damaged", 1)
            link.command("RPUSH", queue.keys("news", row["id"]), 1)
        wait_until(lambda: "is rebuilt" in caplog.text)
        gate.touch()
        assert job.result() == ("open", 3)
    done = [key for what, key, *_ in recorder.seen if what == "posttask"]
    assert sorted(done) == ["a", "b", "slow"]


@pytest.mark.parametrize(
    "kind", [ProgressBar, Profiler, ResourceProfiler, CacheProfiler, Recorder, lambda: Cache(1e6)]
)
def test_callbacks_see_a_graph_that_uses_persisted_values(
    queue: Queue, workers: WorkerProcess, kind: Any
) -> None:
    """These are there, and no tasks of it; a value asked for by its name neither."""
    x = da.arange(100, chunks=10).persist(scheduler=queue.get)
    with kind():
        assert x.sum().compute(scheduler=queue.get) == 4950
        assert (x + 1).max().compute(scheduler=queue.get) == 100
        assert x.compute(scheduler=queue.get).sum() == 4950


def test_another_name_of_a_persisted_value_is_told_with_that_value(
    queue: Queue, workers: WorkerProcess
) -> None:
    """Also where only a task reads it; values that nobody looks at stay where they are."""
    x = dask.delayed(inc)(1).persist(scheduler=queue.get)
    dsk = {"y": Alias("y", x.key), "z": Alias("z", "y"), "w": (inc, "z")}
    for mode, told in (("auto", {"y": [2], "z": [2], "w": [3]}), ("never", {"y": [None]})):
        with dask.config.set({"redisq.callback-values": mode}), Recorder() as recorder:
            assert queue.get(dsk, "w") == 3
        values = {key: value for what, key, *value in recorder.seen[2:-1] if what == "posttask"}
        assert values.keys() == {"y", "z", "w"}
        assert values.items() >= told.items()


@pytest.mark.parametrize("made", ["bag", "array"])
def test_what_a_cache_keeps_of_persisted_values_are_values(
    queue: Queue, workers: WorkerProcess, made: str
) -> None:
    """A concatenation only gives them other names: the second time the cache has these."""
    import cachey

    b, a = db.range(4, 2), da.arange(4, chunks=2)
    x = (b if made == "bag" else a).persist(scheduler=queue.get)
    twice = db.concat([x, x]) if made == "bag" else da.concatenate([x, x])
    with Cache(cachey.Cache(1e9, limit=0)):
        for _ in range(3):
            assert list(twice.compute(scheduler=queue.get)) == [0, 1, 2, 3, 0, 1, 2, 3]


def test_callbacks_see_partitions_of_persisted_dataframes(
    queue: Queue, workers: WorkerProcess
) -> None:
    """And graphs of which nothing is left but another name of what is there."""
    frame = pd.DataFrame({"a": range(10)})
    part = dask.delayed(pd.DataFrame)({"a": [1, 2]})
    whole = da.from_delayed(dask.delayed(np.ones)(2), (2,), float)
    with Profiler(), dask.config.set(scheduler=queue.get):
        p = dd.from_pandas(frame, npartitions=3).persist()
        assert list(p.head(1).a) == [0]
        assert list(p.tail(1).a) == [9]
        assert list(p.partitions[0].compute().a) == [0, 1, 2, 3]
        assert list(p.get_partition(2).compute().a) == [7, 8, 9]
        assert list(p.loc[2:3].compute().a) == [2, 3]
        assert [row.a for row in p.itertuples()] == list(range(10))
        assert len(dd.concat([p, p]).compute()) == 20
        assert len(dd.concat([dd.from_pandas(frame), dd.from_pandas(frame)]).compute()) == 20
        assert list(dd.from_delayed([part]).compute().a) == [1, 2]
        assert da.concatenate([whole, whole]).compute().sum() == 4


@pytest.mark.parametrize("hook", ["start", "start_state", "pretask", "posttask", "finish"])
def test_what_a_callback_computes_is_not_told_to_it(
    queue: Queue, workers: WorkerProcess, hook: str
) -> None:
    """As with Dask's own schedulers; one that is made there is told, and all are active after."""
    called: list[int] = []
    inner: list[Recorder] = []

    def compute(*_: Any) -> None:
        called.append(1)
        if len(called) > 9:  # or it would go on until the stack ends
            raise AssertionError("it is told of what it computes")
        # Dask computes where to cut while it makes the graph of this one.
        frame = dd.from_pandas(pd.DataFrame({"a": [2, 1]}), npartitions=2)
        assert list(frame.sort_values("a").compute(scheduler=queue.get).a) == [1, 2]
        with Recorder() as recorder:
            assert queue.get({"x": (inc, 1)}, "x") == 2
        inner.append(recorder)

    outer = Callback(**{hook: compute})
    with outer:
        before = set(Callback.active)
        assert queue.get({"y": (inc, 2)}, "y") == 3
        assert len(called) == 1
        assert Callback.active == before
        assert queue.get({"y": (inc, 2)}, "y") == 3
        assert len(called) == 2
    assert [entry for entry in inner[0].seen if entry[0] == "posttask"] == [("posttask", "x", 2)]
    assert not Callback.active


def test_a_callback_that_computes_takes_no_callback_from_another_thread(
    queue: Queue, workers: WorkerProcess
) -> None:
    """It is the thread that is in one which does not see it: another one computes as ever."""
    told: list[Any] = []

    def start(dsk: Any) -> None:
        told.append(next(iter(dsk)))
        if "a" in dsk:
            assert Background(queue.get, {"b": (inc, 1)}, "b").result() == 2
            assert queue.get({"c": (inc, 2)}, "c") == 3

    with Callback(start=start):
        assert queue.get({"a": (inc, 3)}, "a") == 4
    assert told == ["a", "b"]


def test_a_callback_that_raises_is_called_for_the_next_computation(queue: Queue) -> None:
    """The thread sees it again, whatever happened in it."""
    told: list[Any] = []

    def finish(*_: Any) -> None:
        told.append(1)
        raise RuntimeError("broken")

    with Callback(finish=finish):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="broken"):
                queue.get({"x": 1}, "x")
    assert told == [1, 1]
