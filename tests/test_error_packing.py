"""Errors of tasks that are hard to carry: they arrive all the same, as their own type."""

from __future__ import annotations

import copyreg
import email.message
import os
import threading
import traceback
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import dask
import dask.multiprocessing  # installs tblib's pickling of exceptions, as slots have it
import pytest
import tblib.pickling_support
from conftest import WorkerProcess

import dask_redisq
from dask_redisq.errors import TaskNotSerializable, WorkerDied
from dask_redisq.queue import Queue
from dask_redisq.remote_error import pack_error, unpack_error

OURS = str(Path(dask_redisq.__file__).parent)


class Req(Exception):
    """Requires arguments that are not its `args`."""

    def __init__(self, code: int, where: str) -> None:
        super().__init__(f"{code} at {where}")
        self.code = code
        self.where = where


class KeywordOnly(Exception):
    """Takes keywords only."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class Twice(Exception):
    """Its constructor would add to its message again."""

    def __init__(self, what: str) -> None:
        super().__init__(f"refused: {what}")


class Holds(Exception):
    """Holds whatever it is given."""

    def __init__(self, message: str, **held: Any) -> None:
        super().__init__(message)
        self.__dict__.update(held)


@dataclass(frozen=True)
class Frozen(Exception):
    """Takes no attributes once it is made."""

    code: int


class Slotted(Exception):
    """Has a slot besides its dict."""

    __slots__ = ("code",)

    def __init__(self, code: int, where: str) -> None:
        super().__init__(where)
        self.code = code


class SystemLike(OSError):
    """An `OSError` that requires other arguments."""

    def __init__(self, number: int, name: str, extra: str) -> None:
        super().__init__(number, "went wrong", name)
        self.extra = extra


class Reduced(Exception):
    """Has its own way to be pickled."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__("reduced")
        self.a, self.b = a, b

    def __reduce__(self) -> Any:
        return Reduced, (self.a, self.b)


class Registered(Exception):
    """Is pickled by what is registered for it."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__("registered")
        self.a, self.b = a, b


copyreg.pickle(Registered, lambda error: (Registered, (error.a, error.b)))


class Demanding(Exception):
    """Cannot be made without arguments at all."""

    def __new__(cls, code: int) -> Self:  # noqa: D102
        return super().__new__(cls)

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")

    def __reduce__(self) -> Any:
        raise TypeError("not me")


class ExitsOnPickling(Exception):
    """Calls exit where it is pickled."""

    def __reduce__(self) -> Any:
        raise SystemExit(7)


class DiesOnPickling(Exception):
    """Ends its process where it is pickled."""

    def __reduce__(self) -> Any:
        os._exit(7)


class ExitsOnReading(Exception):
    """Calls exit where it is unpickled."""

    def __reduce__(self) -> Any:
        return leave, ()


class Wordless(Exception):
    """Calls exit where its text is asked for."""

    def __str__(self) -> str:
        raise SystemExit(7)


class Unnoted(Exception):
    """Its notes are no list."""

    __notes__ = "none"  # type: ignore[assignment]


class SaysOddly:
    """Tells what is no UTF-8 where it is pickled."""

    def __reduce__(self) -> Any:
        raise ValueError("odd \udcff")


def leave() -> None:
    """Call exit."""
    raise SystemExit(7)


def rec() -> Any:
    """Call itself for ever."""
    return rec()


def raise_it(error: BaseException) -> None:
    """Raise it."""
    raise error


def raise_kind(name: str) -> None:
    """Raise one of those that do not travel to the task either."""
    raise globals()[name]("why")


def raise_from(error: BaseException, cause: BaseException) -> None:
    """Raise one from another, which has frames of its own."""
    try:
        raise_it(cause)
    except BaseException as why:
        raise error from why


def raise_after(error: BaseException, before: BaseException) -> None:
    """Raise one while another is handled."""
    try:
        raise_it(before)
    except BaseException:
        raise error  # noqa: B904  # the context is what is tested


def raise_group() -> None:
    """Raise several, one of them from another, one a group again."""
    inner = caught_from(raise_from, ValueError("inner"), Req(3, "there"))
    locked = caught_from(raise_it, Holds("locked", lock=threading.Lock()))
    deeper = ExceptionGroup("deeper", [caught_from(raise_it, KeyError("k"))])
    raise ExceptionGroup("several", [inner, locked, deeper])


def caught_from(function: Callable[..., Any], *args: Any) -> Any:
    """Return what a function raises."""
    try:
        function(*args)
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


def carried(error: BaseException) -> Any:
    """Return an error after its way."""
    return unpack_error(pack_error(error, "w"), "'x'")


def frames_of(error: BaseException) -> list[str]:
    """Return the names of the functions in its traceback."""
    return [f.name for f in traceback.extract_tb(error.__traceback__)]


# What cannot be packed


def test_errors_that_cannot_be_packed_end_their_job(queue: Queue, workers: WorkerProcess) -> None:
    """Each hung it once: its slot died packing, and no task was charged."""
    slots = workers.slots()
    with pytest.raises(RecursionError) as deep:
        queue.get({"x": (rec,)}, "x")
    assert frames_of(deep.value)[-1] == "rec"
    with pytest.raises(ValueError, match="\udcff"):
        queue.get({"x": (raise_it, ValueError("\udcff"))}, "x")
    for name in ("ExitsOnPickling", "ExitsOnReading"):
        with pytest.raises(globals()[name], match="why") as told:
            queue.get({"x": (raise_kind, name)}, "x")
        assert "raise_kind" in frames_of(told.value)
    with pytest.raises(Wordless):
        queue.get({"x": (raise_kind, "Wordless")}, "x")
    with pytest.raises(TaskNotSerializable, match=r"'x'.*SaysOddly: odd \\udcff"):
        queue.get({"x": (SaysOddly,)}, "x")
    assert workers.slots() == slots


def test_a_process_that_dies_while_an_error_is_packed_is_charged_to_its_task(
    queue: Queue, workers: WorkerProcess
) -> None:
    """The task is in hand on the page until then, so the job ends at its ``allowed_failures``."""
    with pytest.raises(WorkerDied, match=r"'x'.*exit code 7"):
        queue.get({"x": (raise_kind, "DiesOnPickling")}, "x", allowed_failures=2)


def test_what_cannot_be_packed_at_all_is_told_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Type and text, in ASCII."""

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise SystemExit(3)

    with monkeypatch.context() as patched:
        patched.setattr("dask_redisq.remote_error.cap_frames", fails)
        payload = pack_error(ValueError("odd \udcff"), "w\udcff")
    error = unpack_error(payload, "'x'")
    assert type(error) is TaskNotSerializable
    assert "ValueError: odd \\udcff on worker w\\udcff" in str(error)


def test_of_a_deep_traceback_the_ends_travel() -> None:
    """With a note about the rest."""
    error = carried(caught_from(rec))
    names = frames_of(error)
    assert 20 < len(names) < 200
    assert names[0] == "caught_from"
    assert any("frames of its traceback are left out" in note for note in error.__notes__)


def test_notes_that_are_no_list_stop_nothing() -> None:
    """Ours are added all the same."""
    assert any("task 'x'" in note for note in carried(Unnoted("a")).__notes__)


# Causes, contexts, and tblib


@pytest.mark.parametrize("how", [raise_from, raise_after])
@pytest.mark.parametrize(
    "other", [Req(1, "there"), Holds("large", data=b"x" * 600_000), ExitsOnPickling("never")]
)
def test_an_error_keeps_its_type_whatever_it_was_raised_from(
    how: Callable[..., Any], other: BaseException
) -> None:
    """The other one travels beside it, with its own frames."""
    error = carried(caught_from(how, ValueError("outer"), other))
    assert type(error) is ValueError
    linked = error.__cause__ if how is raise_from else error.__context__
    assert type(linked) is type(other)
    assert str(linked) == str(other)
    assert frames_of(linked)[0] == how.__name__


def test_no_error_needs_the_tblib_of_the_other_side() -> None:
    """Other versions of it write calls of functions that this one lacks."""
    assert copyreg.dispatch_table[ValueError] is tblib.pickling_support.pickle_exception
    for error in (ValueError("plain"), OSError(2, "no", "file"), Req(1, "here")):
        assert b"tblib" not in pack_error(caught_from(raise_from, error, KeyError(error)), "w")


def test_own_ways_to_pickle_an_error_are_taken() -> None:
    """A `__reduce__`, what is registered with `copyreg`; both with their notes."""
    for kind in (Reduced, Registered):
        first = kind(1, 2)
        first.add_note("a note")
        error = carried(first)
        assert type(error) is kind
        assert (error.a, error.b) == (1, 2)
        assert error.__notes__[0] == "a note"


# Constructors with arguments of their own


@pytest.mark.parametrize(
    ("error", "attributes"),
    [
        (Req(7, "here"), {"code": 7, "where": "here"}),
        (KeywordOnly(code=7), {"code": 7}),
        (Twice("it"), {"args": ("refused: it",)}),
        (Frozen(7), {"code": 7}),
        (Slotted(7, "here"), {"code": 7, "args": ("here",)}),
        (SystemLike(2, "f", "more"), {"errno": 2, "filename": "f", "extra": "more"}),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), {"start": 0, "object": b"\xff"}),
    ],
)
def test_an_error_keeps_its_type_whatever_its_constructor_takes(
    error: BaseException, attributes: dict[str, Any]
) -> None:
    """And its text, and its attributes."""
    found = carried(error)
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert {name: getattr(found, name) for name in attributes} == attributes


def test_attributes_that_do_not_pickle_are_left_out_and_told() -> None:
    """A lock, what cannot be read back, what is too large; an argument is told as text."""
    lock = threading.Lock()
    made = Holds("held", lock=lock, large=b"x" * 600_000, code=3, bad=ExitsOnReading())
    error = carried(made)
    assert type(error) is Holds
    assert (error.__dict__["code"], str(error)) == (3, "held")
    assert not {"lock", "large", "bad"} & error.__dict__.keys()
    assert any("without lock, large, bad" in note for note in error.__notes__)
    assert carried(ValueError("locked", lock)).args == ("locked", repr(lock))


def test_an_error_of_a_web_request_is_caught_by_its_type() -> None:
    """It holds the answer, which is an open file."""
    with Path(os.devnull).open("rb") as file:
        headers = email.message.Message()
        error = carried(urllib.error.HTTPError("http://a", 404, "no such page", headers, file))
    assert type(error) is urllib.error.HTTPError
    assert (error.code, error.msg, error.filename) == (404, "no such page", "http://a")
    assert "HTTP Error 404" in "".join(traceback.format_exception(error))


def test_an_error_of_a_class_that_does_not_pickle_is_told() -> None:
    """Nobody could catch it by its type."""
    lock = threading.Lock()

    class Local(Exception):
        held = lock

    error = carried(Local("a"))
    assert type(error) is TaskNotSerializable
    assert "Local: a" in str(error)
    assert type(carried(Demanding(1))) is TaskNotSerializable


# Groups


def test_members_of_a_group_keep_their_tracebacks_and_causes() -> None:
    """Those of groups in it too."""
    group = carried(caught_from(raise_group))
    assert type(group) is ExceptionGroup
    assert group.message == "several"
    inner, locked, deeper = group.exceptions
    assert type(inner) is ValueError
    assert frames_of(inner)[-1] == "raise_from"
    assert type(inner.__cause__) is Req
    assert frames_of(inner.__cause__) == ["raise_from", "raise_it"]
    assert type(locked) is Holds
    assert frames_of(locked)[-1] == "raise_it"
    assert frames_of(deeper.exceptions[0]) == ["caught_from", "raise_it"]


def test_a_large_group_is_bounded() -> None:
    """All members come, the first ones with what belongs to them; one that does not, as text."""
    many = [caught_from(raise_it, ValueError(str(i))) for i in range(500)]
    payload = pack_error(BaseExceptionGroup("many", [*many, Demanding(1)]), "w")
    assert len(payload) < 400_000
    group: Any = unpack_error(payload, "'x'")
    assert type(group) is ExceptionGroup
    assert [str(e) for e in group.exceptions[:500]] == [str(i) for i in range(500)]
    assert frames_of(group.exceptions[0]) == ["caught_from", "raise_it"]
    assert "Demanding: code 1" in str(group.exceptions[500])


# Futures


def test_a_traceback_of_a_future_has_the_lines_of_the_user(
    queue: Queue, workers: WorkerProcess
) -> None:
    """And none of ours; however often it is read."""
    future = queue.compute(dask.delayed(raise_it)(KeyError("k")))
    for _ in range(3):
        with pytest.raises(KeyError) as caught:
            future.result(60)
        names = frames_of(caught.value)
        assert names[1:] == ["raise_it"]
    error = future.exception()
    assert error is caught.value
    late = queue.compute(dask.delayed(rec)())
    found = late.exception(20)
    assert found is not None
    assert not [f for f in traceback.extract_tb(found.__traceback__) if f.filename.startswith(OURS)]


def test_a_future_that_has_no_answer_in_time_shows_two_frames_of_ours(queue: Queue) -> None:
    """Where it was asked, and where it was raised."""
    future = queue.compute(dask.delayed(raise_it)(KeyError("k")), detach=True)
    with pytest.raises(TimeoutError) as caught:
        future.result(0.01)
    assert frames_of(caught.value)[1:] == ["result", "gather"]


def test_tracebacks_stay_short_after_a_refresh_of_the_configuration(queue: Queue) -> None:
    """Which takes the first default that there is of each setting, and Dask's was before ours."""
    dask.config.refresh()
    test_a_future_that_has_no_answer_in_time_shows_two_frames_of_ours(queue)
