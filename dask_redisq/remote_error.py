"""A task's exception travels to the client: its own type, with the remote traceback. No I/O.

Source: `dask.multiprocessing.pack_exception`, and section 1.7 of Dask's contract.
"""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

import tblib

from dask_redisq.codec import dumps, loads, pack, unpack
from dask_redisq.errors import TaskNotSerializable

__all__ = ["pack_error", "unpack_error"]

#: Bytes of an exception's pickle: it goes inside a call, and is kept until its job is removed.
MOST_BYTES = 500_000

_OURS = str(Path(__file__).resolve().parent)


def _without_our_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the first frame that is not of this package."""
    found = trace
    while found is not None and found.tb_frame.f_code.co_filename.startswith(_OURS):
        found = found.tb_next
    return found or trace


def pack_error(error: BaseException, where: str) -> bytes:
    """Return `error` with its traceback as bytes.

    Parameters
    ----------
    error : BaseException
        What a task raised, or what happened when its arguments or result were pickled.
    where : str
        The worker, for the note that the user sees.
    """
    trace = _without_our_frames(error.__traceback__)
    text = "".join(traceback.format_exception(type(error), error, trace))
    frames = json.dumps(tblib.Traceback(trace).as_dict()) if trace is not None else ""
    problem = ""
    try:
        data = dumps(error)
        if len(data) > MOST_BYTES:
            data, problem = b"", f"its pickle takes {len(data):,} bytes"
        # An exception class with required arguments pickles well and cannot be read back.
        elif type(loads(data)) is not type(error):
            data, problem = b"", "it comes back from its pickle as another type"
    except Exception as why:
        data, problem = b"", repr(why)
    return pack([data, frames, text[-20_000:], _name(error), problem, where])


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
    data, frames, text, name, problem, where = unpack(payload)
    text, name, where = text.decode(), name.decode(), where.decode()
    error: BaseException
    try:
        error = loads(data) if data else _unpicklable(task, where, name, problem.decode())
    except Exception as why:
        error = _unpicklable(task, where, name, repr(why))
    if data and not isinstance(error, TaskNotSerializable):
        error.add_note(f"dask-redisq: raised by task {task} on worker {where}")
    else:
        error.add_note(f"Remote traceback:\n{text}")
    return error.with_traceback(_as_traceback(frames))


def _unpicklable(task: str, where: str, name: str, why: str) -> TaskNotSerializable:
    return TaskNotSerializable(
        f"task {task} raised {name} on worker {where}, but that exception cannot be pickled "
        f"({why}); give it a __reduce__, or raise a plain one from it"
    )


def _as_traceback(frames: bytes) -> Any:
    return tblib.Traceback.from_dict(json.loads(frames)).as_traceback() if frames else None
