"""Errors and warnings of tasks, as they would be at home."""

from __future__ import annotations

import operator
import os
import re
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import dask
import pytest
from conftest import WorkerProcess, wait_until

import dask_redisq as redisq
from dask_redisq import frames as our_frames
from dask_redisq.frames import frames_from_json, frames_to_json
from dask_redisq.queue import Queue

OURS = str(Path(redisq.__file__).parent)


class Refused(Exception):
    """With attributes."""

    def __init__(self, code: int, where: str) -> None:
        super().__init__(code, where)
        self.code = code
        self.where = where


def refuse() -> None:
    """Raise from something, with a note."""
    try:
        dict[str, int]()["key"]
    except KeyError as why:
        error = Refused(7, "here")
        error.add_note("a note of the task")
        raise error from why


def stumble() -> None:
    """Raise while another error is handled."""
    try:
        int("x")
    except ValueError:
        dict[str, int]()["key"]


def hide() -> None:
    """Raise from none."""
    try:
        int("x")
    except ValueError:
        raise Refused(1, "there") from None


def warn(n: int) -> int:
    """Warn."""
    warnings.warn(f"warned by {n % 2}", RuntimeWarning, stacklevel=1)
    return n


class Special(UserWarning):
    """A category of the user's."""


def warn_specially() -> None:
    """Warn by a category of the user's."""
    warnings.warn("special", Special, stacklevel=1)


def warn_and_fail() -> None:
    """Warn, of what is no text that can be encoded, too; then raise."""
    warnings.warn("before the end \udcff", RuntimeWarning, stacklevel=1)
    raise Refused(2, "then")


def test_an_error_comes_with_its_cause_notes_and_attributes(
    queue: Queue, workers: WorkerProcess
) -> None:
    """And with the frames of the causes."""
    with pytest.raises(Refused) as caught:
        queue.get({"x": (refuse,)}, "x")
    error = caught.value
    assert (error.code, error.where) == (7, "here")
    assert "a note of the task" in error.__notes__
    assert type(error.__cause__) is KeyError
    assert error.__cause__.args == ("key",)
    names = [f.name for f in traceback.extract_tb(error.__cause__.__traceback__)]
    assert names == ["refuse"]


def test_the_context_of_an_error_comes_unless_it_was_hidden(
    queue: Queue, workers: WorkerProcess
) -> None:
    """As Python prints it at home."""
    with pytest.raises(KeyError) as caught:
        queue.get({"x": (stumble,)}, "x")
    assert caught.value.__cause__ is None
    assert type(caught.value.__context__) is ValueError
    assert "ValueError" in "".join(traceback.format_exception(caught.value))
    with pytest.raises(Refused) as hidden:
        queue.get({"x": (hide,)}, "x")
    assert "ValueError" not in "".join(traceback.format_exception(hidden.value))


def test_the_traceback_has_the_lines_of_the_user_and_none_of_ours(
    queue: Queue, workers: WorkerProcess
) -> None:
    """From where they called compute to where it was raised."""
    with pytest.raises(Refused) as caught:
        dask.compute(dask.delayed(refuse)(), scheduler=queue.get)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert frames[0].name == "test_the_traceback_has_the_lines_of_the_user_and_none_of_ours"
    assert frames[-1].name == "refuse"
    assert not [f for f in frames if f.filename.startswith(OURS)]
    with pytest.raises(Refused) as caught:
        queue.get({"x": (refuse,)}, "x")
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert not [f for f in frames if f.filename.startswith(OURS)]


def divide(by: int) -> Any:
    """Raise in the middle of a line, and of a call of several lines."""
    return (
        "é",
        sum(
            [
                1 / by,
            ]
        ),
    )


def test_a_traceback_marks_the_columns_of_the_user(queue: Queue, workers: WorkerProcess) -> None:
    """As Python does at home."""
    with pytest.raises(ZeroDivisionError) as home:
        divide(0)
    with pytest.raises(ZeroDivisionError) as away:
        queue.get({"x": (divide, 0)}, "x")
    shown = traceback.format_tb(away.value.__traceback__)[-1]
    assert "^" in shown
    assert shown == traceback.format_tb(home.value.__traceback__)[-1]


def test_a_traceback_marks_no_columns_that_nobody_knows() -> None:
    """Python can be told to keep none."""
    code = compile("def f():\n    return 1 / 0\n", __file__, "exec")
    space: dict[str, Any] = {}
    exec(code, space)  # noqa: S102 - a function that is to lose its columns
    space["f"].__code__ = space["f"].__code__.replace(co_linetable=b"")
    with pytest.raises(ZeroDivisionError) as home:
        space["f"]()
    found = frames_from_json(frames_to_json(home.value.__traceback__))
    assert "^" not in traceback.format_tb(found)[-1]


def test_a_traceback_shows_the_source_of_a_script(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Functions of ``__main__`` travel by value, and know where they were written."""
    script = tmp_path / "script.py"
    script.write_text("def model(x):\n    def scale():\n        return 1 / x\n    return scale()\n")
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(script.read_text(), str(script), "exec"), space)  # noqa: S102 - as a script
    with pytest.raises(ZeroDivisionError) as home:
        space["model"](0)
    calls: list[Any] = [
        dask.delayed(space["model"])(0).compute,
        lambda scheduler: Queue.foreach(queue, space["model"], [0]),
    ]
    for call in calls:
        with pytest.raises(ZeroDivisionError) as away:
            call(scheduler=queue.get)
        shown = traceback.format_tb(away.value.__traceback__)[-2:]
        assert str(script) in shown[-1]
        assert shown == traceback.format_tb(home.value.__traceback__)[-2:]


class Unreadable:
    """Raises as it is read, in what is not Python's."""

    def __reduce__(self) -> Any:
        return operator.truediv, (1, 0)


def test_no_frame_of_ours_is_shown_where_the_user_has_none(
    queue: Queue, workers: WorkerProcess
) -> None:
    """A function in C, an argument or a result that cannot be read."""
    calls = {"called": (operator.truediv, 1, 0), "given": (id, Unreadable()), "made": (Unreadable,)}
    for name, call in calls.items():
        lazy = dask.delayed(call[0])(*call[1:])
        part = redisq.futures_of(lazy.persist(scheduler=queue.get))[0]
        ways: list[Any] = [
            lambda lazy=lazy: dask.compute(lazy, scheduler=queue.get),
            lambda lazy=lazy: redisq.get(
                dict(lazy.dask), lazy.key, url=queue.url, queue=queue.name
            ),
            queue.compute(lazy).result,
            part.result,
        ]
        for way in ways:
            with pytest.raises(ZeroDivisionError) as caught:
                way()
            frames = traceback.extract_tb(caught.value.__traceback__)
            assert not [f for f in frames if f.filename.startswith(OURS)], (name, frames)


def test_frames_of_ours_are_known_by_names_that_they_have() -> None:
    """The functions after which what is the user's begins."""
    for file, name in our_frames._BORDERS:
        assert re.search(rf"def {name}\(", (Path(OURS) / file).read_text())


def test_warnings_of_tasks_are_issued_by_the_client(queue: Queue, workers: WorkerProcess) -> None:
    """Each different one once, by its category and the line of the task, also for the next job."""
    dsk = {("x", i): (warn, i) for i in range(20)}
    for _ in range(2):
        with pytest.warns(RuntimeWarning) as caught:
            queue.get(dsk, list(dsk))
        assert sorted(str(w.message) for w in caught) == ["warned by 0", "warned by 1"]
        assert {w.filename for w in caught} == {__file__}
    with pytest.warns(Special, match="special"):
        queue.get({"x": (warn_specially,)}, "x")


def test_a_task_that_raises_has_its_warnings_issued(queue: Queue, workers: WorkerProcess) -> None:
    """They may tell why it did; a filter that makes errors of them hides no other one."""
    with pytest.warns(RuntimeWarning, match="before the end"), pytest.raises(Refused):
        queue.get({"x": (warn_and_fail,)}, "x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Refused):
            queue.get({"x": (warn_and_fail,)}, "x")


def test_the_filters_of_the_client_hold(queue: Queue, workers: WorkerProcess) -> None:
    """Ignored, or an error; nothing of the job is left then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert queue.get({"x": (warn, 1)}, "x") == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="warned by 1"):
            queue.get({"x": (warn, 1)}, "x")
    assert queue.jobs() == []


def test_a_warning_of_a_detached_job_is_issued_where_it_is_read(
    queue: Queue, workers: WorkerProcess
) -> None:
    """By the process that attaches."""
    future = queue.compute(dask.delayed(warn)(3), detach=True)
    with pytest.warns(RuntimeWarning, match="warned by 1"):
        assert queue.attach(future.id).result(60) == 3


def warn_later(gate: Path) -> int:
    """Warn once a file is there."""
    while not gate.exists():
        time.sleep(0.005)
    return warn(3)


def test_warnings_of_persisted_tasks_are_issued_once(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """Where a value is read or waited for; those of tasks that come later, when they are there."""
    gate = tmp_path / "gate"
    x, y = dask.persist(
        dask.delayed(warn)(2), dask.delayed(warn_later)(gate), scheduler=queue.get, chunk_size=1
    )
    (early,), (late,) = redisq.futures_of(x), redisq.futures_of(y)
    with pytest.warns(RuntimeWarning, match="warned by 0") as caught:
        assert early.result() == 2
    assert [w.filename for w in caught] == [__file__]
    assert early.result() == 2
    gate.touch()
    with pytest.warns(RuntimeWarning) as caught:
        assert late.exception() is None
    assert [str(w.message) for w in caught] == ["warned by 1"]
    assert dask.compute(x, y, scheduler=queue.get) == (2, 3)


@pytest.mark.parametrize("used", [False, True])
def test_warnings_of_persisted_tasks_are_issued_by_a_graph_that_needs_them(
    queue: Queue, workers: WorkerProcess, *, used: bool
) -> None:
    """It reads the value, or waits for it."""
    x = dask.delayed(warn)(3).persist(scheduler=queue.get)
    later = dask.delayed(len)([x]) if used else x
    with pytest.warns(RuntimeWarning) as caught:
        assert later.compute(scheduler=queue.get) == (1 if used else 3)
    assert [str(w.message) for w in caught] == ["warned by 1"]
    assert later.compute(scheduler=queue.get) == (1 if used else 3)


def test_a_persisted_task_that_raises_has_its_warnings_issued(
    queue: Queue, workers: WorkerProcess
) -> None:
    """They may tell why it did; a filter that makes errors of them hides no other one."""
    failing = dask.delayed(warn_and_fail)
    (part,) = redisq.futures_of(failing().persist(scheduler=queue.get))
    with pytest.warns(RuntimeWarning, match="before the end"), pytest.raises(Refused):
        part.result()
    (part,) = redisq.futures_of(failing().persist(scheduler=queue.get))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Refused):
            part.result()


def test_a_forged_category_imports_nothing(queue: Queue) -> None:
    """What is no warning of an imported module is a `UserWarning`."""
    from dask_redisq.codec import pack
    from dask_redisq.task_warnings import issue_warnings

    entries = [pack(["antigravity", "Evil", "a", "f", 1]), pack(["os", "system", "b", "f", 1])]
    with pytest.warns(UserWarning, match="^[ab]$") as caught:
        issue_warnings(entries)
    assert [w.category for w in caught] == [UserWarning, UserWarning]


def fails_elsewhere(here: int, more: int = 0) -> int:
    """Raise on a worker only."""
    if os.getpid() != here:
        raise Refused(3, "elsewhere")
    return 10 + more


def test_a_task_that_raised_runs_again_here_for_a_debugger(
    queue: Queue, workers: WorkerProcess
) -> None:
    """`rerun_exceptions_locally`, keyword or setting: its frames are live ones of this process."""
    dsk = {"x": (len, [1, 2]), "y": (locate, "x")}
    for how in ({"rerun_exceptions_locally": True}, {}):
        with (
            dask.config.set({"rerun_exceptions_locally": not how}),
            pytest.raises(Refused) as caught,
        ):
            queue.get(dsk, "y", **how)
        *_, (frame, _) = traceback.walk_tb(caught.value.__traceback__)
        assert frame.f_locals == {"x": 2}
        assert caught.value.code == os.getpid()
    with pytest.raises(Refused) as caught:
        queue.get(dsk, "y")
    assert caught.value.code != os.getpid()


def locate(x: int) -> None:
    """Raise with the process in which it runs."""
    raise Refused(os.getpid(), str(x))


def test_a_task_that_raised_only_elsewhere_gives_its_value_here(
    queue: Queue, workers: WorkerProcess
) -> None:
    """With a warning; the rest of the graph goes on with it, on the workers."""
    dsk = {
        "a": (fails_elsewhere, os.getpid()),
        "b": (sum, ["a", "a"]),
        "c": (fails_elsewhere, os.getpid()),
    }
    with pytest.warns(UserWarning, match="'[ac]' raised Refused.*its value here is used"):
        got = queue.get(dsk, ["b", "c", "a"], rerun_exceptions_locally=True)
    assert got == (20, 10, 10)


def test_a_task_that_read_persisted_values_runs_again_here(
    queue: Queue, workers: WorkerProcess
) -> None:
    """They are fetched for it: its own error is raised, or its value used."""
    x = dask.delayed(len)([1, 2]).persist(scheduler=queue.get)
    with pytest.raises(Refused, match="2") as caught:
        dask.delayed(locate)(x).compute(scheduler=queue.get, rerun_exceptions_locally=True)
    assert caught.value.code == os.getpid()
    lazy = dask.delayed(fails_elsewhere)(os.getpid(), x)
    with pytest.warns(UserWarning, match="its value here is used"):
        assert lazy.compute(scheduler=queue.get, rerun_exceptions_locally=True) == 12


def test_an_unknown_keyword_is_told_once(queue: Queue, workers: WorkerProcess) -> None:
    """Those of other schedulers are not: code that was written for them works."""
    with pytest.warns(UserWarning, match="does not know the keyword 'retires', and ignores it"):
        queue.get({"x": 1}, "x", retires=3, num_workers=2, asynchronous=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert queue.get({"x": (len, "ab")}, "x", retires=3, chunksize=1) == 2


def begin(log: Path) -> None:
    """Note when this begins; then take a while."""
    with log.open("a") as file:
        file.write(f"{time.time()}\n")
    time.sleep(0.05)


def fail_among(log: Path, others: int) -> None:
    """Raise once so many others have begun."""
    wait_until(lambda: log.exists() and log.read_text().count("\n") >= others)
    raise ValueError(f"at {time.time()}")


def test_after_the_first_error_no_sibling_starts(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """A thousand that would take a minute: none later than half a second after it."""
    log = tmp_path / "log"
    dsk: dict[Any, Any] = {("x", i): (begin, log) for i in range(1000)}
    dsk["bad"] = (fail_among, log, 3)
    with pytest.raises(ValueError, match="at") as caught:
        queue.get(dsk, ["bad", *[key for key in dsk if key != "bad"]])
    failed = float(str(caught.value).split()[1])
    wait_until(lambda: not queue.stats()["running"])
    begun = [float(line) for line in log.read_text().split()]
    assert 3 <= len(begun) < 100
    assert max(begun) < failed + 0.5
