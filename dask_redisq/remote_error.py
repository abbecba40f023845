"""A task's exception travels to the client: its own type, with the remote traceback. No I/O.

Source: `dask.multiprocessing.pack_exception`, and section 1.7 of Dask's contract.
"""

from __future__ import annotations

import json
import traceback
from typing import Any

import tblib

from dask_redisq.codec import dumps, loads, pack, unpack
from dask_redisq.errors import TaskNotSerializable
from dask_redisq.frames import skip_our_frames

__all__ = ["pack_error", "unpack_error"]

#: Errors of a chain that travel with the last one.
DEEPEST = 4
#: Bytes of an exception's pickle: it goes inside a call, and is kept until its job is removed; and
#: of each other one of its chain.
MOST_BYTES, MOST_LINKED = 500_000, 50_000


def pack_error(error: BaseException, where: str, depth: int = 0) -> bytes:
    """Return `error` as bytes, with its traceback and what it was raised from.

    Parameters
    ----------
    error : BaseException
        What a task raised, or what happened when its arguments or result were pickled.
    where : str
        The worker, for the note that the user sees.
    depth : int, default 0
        How many others came of it. The chain may be long, or a ring; a few tell what happened.
    """
    trace = skip_our_frames(error.__traceback__)
    text = "".join(traceback.format_exception(type(error), error, trace))
    frames = json.dumps(tblib.Traceback(trace).as_dict()) if trace is not None else ""
    problem = ""
    try:
        data = dumps(error)
        if len(data) > (MOST_LINKED if depth else MOST_BYTES):
            data, problem = b"", f"its pickle takes {len(data):,} bytes"
        # An exception class with required arguments pickles well and cannot be read back.
        elif type(loads(data)) is not type(error):
            data, problem = b"", "it comes back from its pickle as another type"
    except Exception as why:
        data, problem = b"", repr(why)
    explicit = error.__suppress_context__  # by `raise ... from`, from None too
    linked = error.__cause__ if explicit else error.__context__
    before = b"" if linked is None or depth == DEEPEST else pack_error(linked, where, depth + 1)
    return pack([data, frames, text[-20_000:], _name(error), problem, where, before, explicit])


def _name(error: BaseException) -> str:
    try:
        return f"{type(error).__qualname__}: {error}"[:2_000]
    except Exception:  # an exception whose __str__ raises
        return type(error).__qualname__


def unpack_error(payload: bytes | memoryview, task: str) -> BaseException:
    """Return the exception that `pack_error` packed, ready to be raised.

    Parameters
    ----------
    payload : bytes
        What `pack_error` returned.
    task : str
        How the task is named to the user.
    """
    data, frames, text, name, problem, where, before, explicit = unpack(payload)
    text, name, where = text.decode(), name.decode(), where.decode()
    error: BaseException
    try:
        error = loads(data) if data else _unpicklable(task, where, name, problem.decode())
    except Exception as why:
        error = _unpicklable(task, where, name, repr(why))
    _link(error, before, explicit=explicit)
    if data and not isinstance(error, TaskNotSerializable):
        error.add_note(f"dask-redisq: raised by task {task} on worker {where}")
    else:
        error.add_note(f"Remote traceback:\n{text}")
    return error.with_traceback(_as_traceback(frames))


def _link(error: BaseException, before: bytes, *, explicit: bool) -> None:
    """Give an error what it was raised from; of that, what cannot be read is its name."""
    if not before:
        return
    data, frames, _, name, _, _, further, its_explicit = unpack(before)
    try:
        linked: BaseException = loads(data) if data else RuntimeError(name.decode())
    except Exception:
        linked = RuntimeError(name.decode())
    _link(linked, further, explicit=its_explicit)
    linked.__traceback__ = _as_traceback(frames)
    if explicit:  # to set it, to None as well, hides the context
        error.__cause__ = linked
    else:
        error.__context__ = linked


def _unpicklable(task: str, where: str, name: str, why: str) -> TaskNotSerializable:
    return TaskNotSerializable(
        f"task {task} raised {name} on worker {where}, but that exception cannot be pickled "
        f"({why}); give it a __reduce__, or raise a plain one from it"
    )


def _as_traceback(frames: bytes) -> Any:
    return tblib.Traceback.from_dict(json.loads(frames)).as_traceback() if frames else None
