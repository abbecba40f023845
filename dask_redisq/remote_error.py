"""A task's exception travels to the client: its own type, with the remote traceback. No I/O.

Source: `dask.multiprocessing.pack_exception`, and section 1.7 of Dask's contract.

What an exception was raised from, its traceback and the members of a group travel beside its
pickle, each by itself: one that cannot be pickled takes no other's type with it.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import traceback
from collections.abc import Callable, Sequence
from types import MemberDescriptorType, MethodDescriptorType, TracebackType
from typing import Any, NamedTuple

import cloudpickle

from dask_redisq.codec import pack, unpack
from dask_redisq.errors import TaskNotSerializable
from dask_redisq.frames import cap_frames, frames_from_json, frames_to_json, skip_our_frames

__all__ = ["add_note", "pack_error", "unpack_error"]

#: Errors of a chain that travel with the last one; groups inside of each other count, too.
DEEPEST = 4
#: Errors that travel with a traceback and a chain; members of a group that travel at all.
MOST_ERRORS, MOST_MEMBERS = 50, 1000
#: Bytes of an exception's pickle: it goes inside a call, and is kept until its job is removed; of
#: each other one that travels with it, and of these together.
MOST_BYTES, MOST_LINKED, MOST_OTHERS = 500_000, 50_000, 500_000
#: Frames at both ends of a traceback that travel: a recursion without end has a thousand.
FIRST_FRAMES, LAST_FRAMES = 40, 40
#: Characters of an error's name, or of one of its notes, and of its text as Python prints it.
LONGEST_NAME, LONGEST_TEXT = 2_000, 20_000
#: Notes that travel with an error whose pickle does not hold them.
MOST_NOTES = 50

_PROTOCOL = 5


class _Packed(NamedTuple):
    """One error on its way: text is encoded here, and bytes once more where it is read.

    One that comes with neither pickle nor parts is only told of.
    """

    #: Its pickle, with the members of a group left out; or if that cannot be read back class,
    #: arguments and attributes, each pickled by itself; or why there is neither.
    data: bytes
    parts: list[Any]
    problem: bytes
    #: Type and message.
    name: bytes
    #: Its traceback, and how Python prints the one that the task raised.
    frames: Any = b""
    text: bytes = b""
    #: Its notes, and ours about what does not travel.
    notes: Sequence[bytes] = ()
    remarks: Sequence[bytes] = ()
    #: Of a group; and what it was raised from, empty for nothing. All packed likewise.
    members: Sequence[Any] = ()
    before: Sequence[Any] = ()
    #: Whether that is its cause, and not its context.
    explicit: bool = False


def pack_error(error: BaseException, where: str, unread: tuple[int, int] | None = None) -> bytes:
    """Return `error` as bytes, with its traceback and what it was raised from.

    Whatever the error does while it is looked at, this returns: its slot has to report it.

    Parameters
    ----------
    error : BaseException
        What a task raised, or what happened when its arguments or result were pickled.
    where : str
        The worker, for the note that the user sees.
    unread : tuple of int, optional
        If it was raised as tasks were read: the first and the last that may be to blame.
    """
    try:
        packed = _Packing().pack(error)
    except BaseException as why:
        name = _name(error).encode("ascii", "backslashreplace")
        packed = _Packed(b"", [], _bytes(_said(why)), name, text=name)
    return pack([_bytes(where), packed, *(unread or ())])


def unpack_error(payload: bytes | memoryview, task: str) -> BaseException:
    """Return the exception that `pack_error` packed, ready to be raised.

    Parameters
    ----------
    payload : bytes
        What `pack_error` returned.
    task : str
        How the task is named to the user.
    """
    where, body, *_ = unpack(payload)
    where, text = where.decode(), _Packed(*body).text.decode()

    def tell(name: str, why: str) -> BaseException:
        return TaskNotSerializable(
            f"task {task} raised {name} on worker {where}, but that exception cannot be pickled "
            f"({why}); give it a __reduce__, or raise a plain one from it"
        )

    error = _open(body, tell)
    if isinstance(error, TaskNotSerializable):
        add_note(error, f"Remote traceback:\n{text}")
    else:
        add_note(error, f"dask-redisq: raised by task {task} on worker {where}")
    return error


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an error that may refuse attributes, or whose notes are no list."""
    notes = error.__dict__.get("__notes__")
    error.__dict__["__notes__"] = [*notes, note] if isinstance(notes, list) else [note]


# -- pack ---------------------------------------------------------------------------------


class _Packing:
    """Packs an error and those that travel with it, within bounds for them together."""

    def __init__(self) -> None:
        self.errors = MOST_ERRORS
        self.room = MOST_OTHERS

    def pack(self, error: BaseException, depth: int = 0) -> _Packed:
        """Return an error, packed; `depth` others came of it, or hold it.

        The chain may be long, or a ring; a few tell what happened.
        """
        self.errors -= 1
        name = _bytes(_name(error))
        if self.errors < 0:
            return _Packed(*self._pickle(error, (), depth), name)
        explicit = error.__suppress_context__  # by `raise ... from`, from None too
        linked = error.__cause__ if explicit else error.__context__
        before: Sequence[Any] = ()
        if linked is not None and depth < DEEPEST and self.errors:
            before = self.pack(linked, depth + 1)
        inside = _members(error) if depth < DEEPEST else ()
        members = [self.pack(member, depth + 1) for member in inside[:MOST_MEMBERS]]
        if more := len(inside) - len(members):
            members.append(_Packed(b"", [], b"", b"%d further errors" % more))
        data, parts, problem = self._pickle(error, inside, depth)
        trace, skipped = cap_frames(skip_our_frames(error.__traceback__), FIRST_FRAMES, LAST_FRAMES)
        text = b"" if depth else _bytes(_text(error, trace))
        remarks = []
        if skipped:
            remarks.append(b"dask-redisq: %d frames of its traceback are left out" % skipped)
        if parts and parts[-1]:
            left = b", ".join(parts[-1])
            remarks.append(b"dask-redisq: it comes without %s: too large, or no pickle" % left)
        return _Packed(
            data, parts, problem, name, frames_to_json(trace), text, _notes(error), remarks,
            members, before, explicit,
        )  # fmt: skip

    def _pickle(
        self, error: BaseException, inside: Sequence[BaseException], depth: int
    ) -> tuple[bytes, list[Any], bytes]:
        """Return an error's pickle, or its parts, or why there is neither."""
        most = min(MOST_LINKED, self.room) if depth else MOST_BYTES
        places = {id(member): min(i, MOST_MEMBERS) for i, member in enumerate(inside)}
        data, parts = b"", list[Any]()
        try:
            data = _dumps(error, places)
            if len(data) > most:
                data, problem = b"", f"its pickle takes {len(data):,} bytes"
            else:
                found = _loads(data, inside)
                problem = "" if _is_same(found, error) else "it comes back as another one"
                # Of the right type, and with another message, it is better than none.
                data = data if type(found) is type(error) else b""
        except BaseException as why:
            data, problem = b"", _said(why)
        if problem:
            try:
                parts = _take_apart(error, places, inside, most)
                if type(_put_together(parts, inside)) is type(error):
                    data = b""
                else:
                    parts = []
            except BaseException:  # the first problem is the one to solve
                parts = []
        if depth:
            self.room -= len(data) + sum(map(len, _pieces(parts)))
        return data, parts, b"" if data or parts else _bytes(problem)


def _take_apart(
    error: BaseException, places: dict[int, int], inside: Sequence[BaseException], most: int
) -> list[Any]:
    """Return the pickles of class, arguments and attributes, and the names of what is left out."""
    kind = _dumps(type(error))
    if len(kind) > most:
        raise pickle.PicklingError(f"its class takes {len(kind):,} bytes")
    room = most - len(kind)

    def take(thing: Any) -> bytes:
        nonlocal room
        try:
            data = _dumps(thing, places)
            _loads(data, inside)
        except BaseException:
            return b""
        if len(data) > room:
            return b""
        room -= len(data)
        return data

    args = error.args[:1] if isinstance(error, BaseExceptionGroup) else error.args
    taken = [take(arg) or _dumps(_said(arg)) for arg in args]
    slots = {name: getattr(error, name, None) for name in _slots(type(error))}
    state = {name: value for name, value in slots.items() if value is not None}
    state |= {name: value for name, value in error.__dict__.items() if name != "__notes__"}
    attributes = {name: take(value) for name, value in state.items()}
    left = [_bytes(name) for name, data in attributes.items() if not data]
    kept = [[_bytes(name), data] for name, data in attributes.items() if data]
    return [kind, taken, kept, left]


def _pieces(parts: list[Any]) -> list[bytes]:
    return [parts[0], *parts[1], *(data for _, data in parts[2])] if parts else []


def _is_same(found: Any, error: BaseException) -> bool:
    """Tell whether what was read back is the error, as far as a user could tell.

    A constructor that makes its message of its arguments makes another one of that message. Only
    those who wrote a `__reduce__` know better.
    """
    kind = type(error)
    if type(found) is not kind:
        return False
    plain = all(
        isinstance(way, MethodDescriptorType) for way in (kind.__reduce__, kind.__reduce_ex__)
    )
    return not plain or _registered(kind) is not None or _name(found) == _name(error)


def _members(error: BaseException) -> Sequence[BaseException]:
    return error.exceptions if isinstance(error, BaseExceptionGroup) else ()


def _slots(kind: type) -> list[str]:
    """Return the names of attributes that are not in an object's dict, `errno` for instance."""
    return [
        name
        for base in kind.__mro__
        for name, found in vars(base).items()
        if isinstance(found, MemberDescriptorType)
        and not name.startswith("__")
        and base is not BaseExceptionGroup
    ]


def _bytes(text: str) -> bytes:
    """Encode text that may hold lone surrogates, from the name of a file perhaps."""
    return text.encode(errors="backslashreplace")


def _name(error: BaseException) -> str:
    try:
        return f"{type(error).__qualname__}: {error}"[:LONGEST_NAME]
    except BaseException:  # an exception whose __str__ raises
        return type(error).__qualname__


def _said(thing: Any) -> str:
    try:
        return repr(thing)[:LONGEST_NAME]
    except BaseException:
        return type(thing).__qualname__


def _notes(error: BaseException) -> list[bytes]:
    notes = error.__dict__.get("__notes__")
    told = notes[:MOST_NOTES] if isinstance(notes, list) else []
    return [_bytes(note[:LONGEST_NAME]) for note in told if isinstance(note, str)]


def _text(error: BaseException, trace: TracebackType | None) -> str:
    try:
        return "".join(traceback.format_exception(type(error), error, trace))[-LONGEST_TEXT:]
    except BaseException:  # it asks objects of the user for their text
        return ""


# -- unpack -------------------------------------------------------------------------------


def _open(body: Sequence[Any], tell: Callable[[str, str], BaseException]) -> BaseException:
    """Return a packed error with all that belongs to it; what `tell` makes if it does not come."""
    packed = _Packed(*body)
    members = [_open(member, _tell_name) for member in packed.members]
    found, problem = None, packed.problem.decode()
    try:
        if packed.data:
            found = _loads(packed.data, members)
        elif packed.parts:
            found = _put_together(packed.parts, members)
    except KeyboardInterrupt:
        raise
    except BaseException as why:  # one that calls exit is no word to the client
        problem = _said(why)
    error = found if isinstance(found, BaseException) else tell(packed.name.decode(), problem)
    if not isinstance(error.__dict__.get("__notes__"), list):
        error.__dict__["__notes__"] = [note.decode() for note in packed.notes]
    for remark in packed.remarks if error is found else ():
        add_note(error, remark.decode())
    # Not by the error's own __setattr__: that of a frozen dataclass refuses.
    if packed.before:
        name = "__cause__" if packed.explicit else "__context__"
        BaseException.__setattr__(error, name, _open(packed.before, _tell_name))
    BaseException.__setattr__(error, "__suppress_context__", packed.explicit)
    return BaseException.with_traceback(error, frames_from_json(packed.frames))


def _tell_name(name: str, _why: str) -> BaseException:
    return RuntimeError(name)


def _put_together(parts: list[Any], members: Sequence[BaseException]) -> BaseException:
    """Return an error made of the parts of another, without its constructor."""
    kind = _loads(parts[0])
    args = tuple([_loads(data, members) for data in parts[1]])
    if issubclass(kind, BaseExceptionGroup):
        error: BaseException = BaseExceptionGroup.__new__(kind, args[0], members)
    else:
        error = kind.__new__(kind)
        BaseException.__setattr__(error, "args", args)
    slots = set(_slots(kind))
    for name, data in parts[2]:
        name, value = name.decode(), _loads(data, members)
        if name in slots:
            BaseException.__setattr__(error, name, value)
        else:
            error.__dict__[name] = value
    return error


# -- pickle -------------------------------------------------------------------------------


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """Pickles errors without cause, context and traceback, and members of groups by number."""

    places: dict[int, int]

    def persistent_id(self, thing: Any) -> int | None:
        return self.places.get(id(thing))

    def reducer_override(self, thing: Any) -> Any:
        # Dask has tblib pickle all that hangs on an exception, too: one that does not pickle would
        # take all others with it. And what one version of tblib writes, another cannot read.
        if issubclass(type(thing), BaseException) and _registered(type(thing)) is None:
            return thing.__reduce_ex__(_PROTOCOL)
        return super().reducer_override(thing)


class _Unpickler(pickle.Unpickler):
    """Reads members of groups by number."""

    members: Sequence[BaseException]

    def persistent_load(self, place: int) -> BaseException:
        return self.members[place]


def _registered(kind: type) -> Any:
    """Return how the user registered that a class is pickled, None for not at all."""
    found = copyreg.dispatch_table.get(kind)
    module = getattr(getattr(found, "func", found), "__module__", None) or ""
    return None if module.partition(".")[0] == "tblib" else found


def _dumps(thing: Any, places: dict[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    pickler = _Pickler(stream, protocol=_PROTOCOL)
    pickler.places = places or {}
    pickler.dump(thing)
    return stream.getvalue()


def _loads(data: bytes, members: Sequence[BaseException] = ()) -> Any:
    reader = _Unpickler(io.BytesIO(data))
    reader.members = members
    return reader.load()
