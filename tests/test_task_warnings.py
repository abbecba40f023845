"""Which warnings of tasks come to the client: all that its own filters let through."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from conftest import WorkerProcess

from dask_redisq.codec import pack, unpack
from dask_redisq.queue import Queue
from dask_redisq.task_warnings import MOST, WarningBox, issue_warnings

#: A module that says that it is old, when it is imported and when it is used.
OLD = """
import warnings
warnings.warn("import another one", DeprecationWarning, stacklevel=1)
def use():
    warnings.warn("use another one", PendingDeprecationWarning, stacklevel=1)
    return 5
"""


def use_old() -> int:
    """Use a module that only workers can import."""
    return int(__import__("old_module").use())


def warn_often(first: int, many: int, category: type[Warning] = RuntimeWarning) -> None:
    """Warn of ever other things."""
    for i in range(first, first + many):
        warnings.warn(f"of {i}", category, stacklevel=1)


def warn_once_in_a_row() -> None:
    """Warn of one thing."""
    warn_often(0, 1)


def capture() -> None:
    """Have `logging` show warnings from now on."""
    logging.captureWarnings(capture=True)


def forget_filters() -> None:
    """Do as a task that thinks the process is its own: each line may warn once then."""
    warnings.resetwarnings()


@pytest.fixture
def box() -> Iterator[WarningBox]:
    """A box that is open, in this process, as if Python had just begun."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "warnoptions", [])
        warnings.resetwarnings()
        warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")
        for category in (
            DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning,
        ):  # fmt: skip
            warnings.simplefilter("ignore", category, append=True)
        patch.setattr(warnings, "showwarning", lambda *_: None)
        box = WarningBox()
        box.open()
        yield box


def texts(taken: list[bytes]) -> list[str]:
    """Return what warnings say."""
    return [unpack(entry)[2].decode() for entry in taken]


def test_what_python_ignores_comes_to_the_client_too(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """A module that tasks import is deprecated: who runs them wants to hear of it."""
    (tmp_path / "old_module.py").write_text(OLD)
    queue.upload_file(tmp_path / "old_module.py")
    with pytest.warns(Warning, match="another one") as caught:
        assert queue.get({"x": (use_old,)}, "x") == 5
    assert {(w.category, str(w.message)) for w in caught} == {
        (DeprecationWarning, "import another one"),
        (PendingDeprecationWarning, "use another one"),
    }


def test_a_filter_of_the_client_for_a_module_holds(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """By the name that the module has where it warned, not by that of its file."""
    (tmp_path / "old_module.py").write_text(OLD)
    queue.upload_file(tmp_path / "old_module.py")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="old_module")
        assert queue.get({"x": (use_old,)}, "x") == 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", module="old_module")
        with pytest.raises(Warning, match="another one"):
            queue.get({"x": (use_old,)}, "x")


def test_what_a_worker_was_told_to_ignore_stays_there(
    queue: Queue, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """By what it preloads, or by PYTHONWARNINGS."""
    (tmp_path / "quiet.py").write_text(
        "import warnings\nwarnings.simplefilter('ignore', DeprecationWarning)\n"
    )
    start_worker("test", "--nworkers", "1", "--preload", str(tmp_path / "quiet.py"))
    env = {"PYTHONWARNINGS": "ignore::DeprecationWarning"}
    start_worker("test", "--nworkers", "1", "--tag", "other", env=env)
    queue.wait_for_workers(2, timeout=90)
    for where in ({}, {"workers": "other"}):
        x = dask.delayed(warn_often)(0, 1, DeprecationWarning)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dask.compute(x, scheduler=queue.get, **where)


def test_how_many_warnings_were_dropped_is_told(
    queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """By one more of the same category; all are in the log."""
    start_worker("test", "--nworkers", "1")
    queue.wait_for_workers(1, timeout=90)
    with pytest.warns(RuntimeWarning) as caught:
        queue.get({"x": (warn_often, 0, MOST + 5)}, "x")
    said = [str(w.message) for w in caught]
    assert len(said) == MOST + 1
    assert sum(text.startswith("of ") for text in said) == MOST
    (last,) = [text for text in said if not text.startswith("of ")]
    assert last == "5 more warnings came with these, and are only in the log of their worker"


def test_a_job_that_warns_of_too_many_things_says_so(queue: Queue, workers: WorkerProcess) -> None:
    """Of three hundred, from twenty leases, some two hundred come, and a word on the others."""
    dsk = {("x", i): (warn_often, 15 * i, 15) for i in range(20)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        queue.get(dsk, list(dsk), chunk_size=1)
    texts = [str(warning.message) for warning in caught]
    assert 200 <= sum(text.startswith("of ") for text in texts) < 230
    assert sum("more than 200 different things" in text for text in texts) == 1


def test_what_most_ignore_takes_no_room_from_the_rest(box: WarningBox) -> None:
    """A hundred deprecations, and what says that a value is wrong."""
    warn_often(0, 100, DeprecationWarning)
    warn_often(100, 1)
    taken = box.take()
    assert "of 100" in texts(taken)
    assert len(taken) == MOST + 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises(RuntimeWarning, match="of 100"):
            issue_warnings(taken)
    assert box.take() == []


def test_what_is_only_told_by_a_destructor_is_not_caught(box: WarningBox) -> None:
    """Whose file it was that nobody closed, nobody knows."""
    warn_often(0, 1, ResourceWarning)
    assert box.take() == []


def test_the_same_warning_is_shown_once_in_the_log(
    box: WarningBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of a loop would fill it; the next lease shows it again."""
    shown: list[Any] = []
    monkeypatch.setattr(box, "_show", lambda *what: shown.append(what))
    for _ in range(2):
        for _ in range(3):
            warn_often(0, 1)
        box.take()
    assert len(shown) == 2


@pytest.mark.parametrize("spoil", [capture, forget_filters])
def test_a_task_that_takes_the_warnings_away_does_so_for_its_own_lease(
    queue: Queue, start_worker: Callable[..., WorkerProcess], spoil: Callable[[], None]
) -> None:
    """Those of later tasks of the slot come to their clients, each time."""
    start_worker("test", "--nworkers", "1")
    queue.wait_for_workers(1, timeout=90)
    queue.get({"x": (spoil,)}, "x")
    for _ in range(3):
        with pytest.warns(RuntimeWarning, match="of 0"):
            queue.get({"x": (warn_once_in_a_row,)}, "x")


def test_an_entry_that_cannot_be_read_is_left_out(
    box: WarningBox, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever may write to the server can write it; the answer and other warnings arrive."""
    warnings.warn_explicit("explicit", UserWarning, "a line of C", 7)
    nowhere = pack(["builtins", "UserWarning", "no line", "a file", 2**40, ""])
    entries = [b"junk", b"\x01", b"\x91\x01", nowhere, *box.take()]
    with pytest.warns(UserWarning, match="explicit") as caught:
        issue_warnings(entries)
    assert len(caught) == 1
    assert caplog.text.count("cannot be read") == 4


class Needy(UserWarning):
    """A warning of a library, which takes more than its text."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text, code)


def test_a_category_that_takes_more_than_a_text_is_issued(box: WarningBox) -> None:
    """It is made again of its text; an error of its own would throw the answer away."""
    warnings.warn_explicit(Needy("needy", 5), Needy, "a file", 7)
    entries = box.take()
    with pytest.warns(Needy, match="needy"):
        issue_warnings(entries)


def test_an_entry_without_a_module_is_issued(box: WarningBox) -> None:
    """Of a worker that does not send it, or of a line that no Python ran."""
    warnings.warn_explicit("explicit", UserWarning, "a line of C", 7)
    (entry,) = box.take()
    fields: list[Any] = list(unpack(entry))
    assert fields[-1] == b""
    with pytest.warns(UserWarning, match="explicit") as caught:
        issue_warnings([entry])
    assert (caught[0].filename, caught[0].lineno) == ("a line of C", 7)
