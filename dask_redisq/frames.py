"""Tracebacks without our own frames: the user's lines are what the user looks for."""

from __future__ import annotations

import ast
import json
import re
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from dask.utils import shorten_traceback

__all__ = [
    "OURS",
    "ShortTraceback",
    "cap_frames",
    "frames_from_json",
    "frames_to_json",
    "skip_our_frames",
    "without_our_frames",
]

_FOLDER = str(Path(__file__).resolve().parent)
#: For the setting ``admin.traceback.shorten``, which `dask.utils.shorten_traceback` reads.
OURS = rf"{re.escape(Path(_FOLDER).name)}[\\\/]"


#: File and function of ours where what is the user's begins: it is called, unpickled, or raised.
_BORDERS = frozenset((
    ("task.py", "run_task"), ("body.py", "_run"), ("body.py", "catching"),
    ("codec.py", "open"), ("memory.py", "_enter"), ("memory.py", "_read_kept"),
    ("job_memory.py", "_object"), ("follow.py", "_read_items"),
    ("follow.py", "ask"), ("kept.py", "look"), ("scheduler.py", "get"), ("loops.py", "times"),
))  # fmt: skip


class ShortTraceback(shorten_traceback):
    """Takes our frames out of a traceback that ends in what is the user's; else as Dask's does.

    Dask leaves the first frame and the last.
    """

    __slots__ = ()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do so with the traceback of what is raised."""
        if error is None or trace is None:
            return
        kept, last, found = [], trace, trace.tb_next
        if not _is_ours(trace):
            kept.append(trace)
        while found is not None:
            if _is_ours(found):
                last = found
            else:
                kept.append(found)
            found = found.tb_next
        if _is_border(last):
            BaseException.with_traceback(error, _chained(kept))
        else:
            super().__exit__(kind, error, trace)


def skip_our_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the first frame that is not of this package.

    Nothing if they end where what is the user's begins, as in a function that is not Python's; all
    of it if they end elsewhere: that is a fault of ours.
    """
    found, last = trace, None
    while found is not None and _is_ours(found):
        found, last = found.tb_next, found
    return None if found is None and last is not None and _is_border(last) else found or trace


def cap_frames(
    trace: TracebackType | None, first: int, last: int
) -> tuple[TracebackType | None, int]:
    """Return a traceback of at most the first and last frames, and how many are left out."""
    frames = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    kept = frames if len(frames) <= first + last else [*frames[:first], *frames[-last:]]
    return _chained(kept), len(frames) - len(kept)


def _chained(frames: list[TracebackType]) -> TracebackType | None:
    found = None
    for one in reversed(frames):
        found = TracebackType(found, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return found


def without_our_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return what `skip_our_frames` does, but nothing if all frames are of this package."""
    found = skip_our_frames(trace)
    return None if found is None or _is_ours(found) else found


def frames_to_json(trace: TracebackType | None) -> str:
    """Return a traceback as JSON, whose escapes hold whatever a file is named."""
    frames = []
    while trace is not None:
        code, names = trace.tb_frame.f_code, trace.tb_frame.f_globals
        module = {name: str(names[name]) for name in ("__name__", "__file__") if name in names}
        line = trace.tb_lineno or code.co_firstlineno
        frames.append([code.co_filename, code.co_name, line, module, *_columns(trace, line)])
        trace = trace.tb_next
    return json.dumps(frames)


def _columns(trace: TracebackType, line: int) -> list[int]:
    """Return last line, first and last column of what a frame was at; nothing if not known."""
    positions = trace.tb_frame.f_code.co_positions()
    first, last, start, end = next(islice(positions, trace.tb_lasti // 2, None), (None,) * 4)
    if first != line or last is None or start is None or end is None:
        return []  # Python keeps no columns (-X no_debug_ranges), or the line was set by hand
    return [last, start, end] if (first, start) <= (last, end) else []


def frames_from_json(text: str | bytes) -> TracebackType | None:
    """Return a traceback of what `frames_to_json` wrote."""
    found = None
    for file, name, line, module, *columns in reversed(json.loads(text) if text else []):
        made = _made_frame(file, name, module, line, *columns)
        found = TracebackType(found, made.tb_frame, made.tb_lasti, line)
    return found


def _made_frame(
    file: str, name: str, module: dict[str, Any], line: int, last: int = 0, start: int = -1,
    end: int = -1,
) -> TracebackType:  # fmt: skip
    """Return where code with these positions raised; -1 is a column that nobody knows.

    Python marks the columns of a line by the code of its frame, and makes frames only by running
    code. So this runs a `raise` that is said to be at the place.
    """
    at: dict[str, Any] = {"lineno": line, "end_lineno": last or line}
    at |= {"col_offset": start, "end_col_offset": end}
    tree = ast.Module([ast.Raise(ast.Constant(None, **at), **at)], [])
    # The name is not given to `compile`, which refuses some that a file may have.
    code = compile(tree, "", "exec", dont_inherit=True).replace(co_name=name, co_filename=file)
    found: Any = None
    try:
        exec(code, dict(module), {})  # noqa: S102 - the code is ours, its names are not
    except TypeError as error:  # None is no exception
        found = error.__traceback__
    made: TracebackType = found.tb_next
    return made


def _is_ours(trace: TracebackType) -> bool:
    return trace.tb_frame.f_code.co_filename.startswith(_FOLDER)


def _is_border(trace: TracebackType) -> bool:
    code = trace.tb_frame.f_code
    return _is_ours(trace) and (Path(code.co_filename).name, code.co_name) in _BORDERS
