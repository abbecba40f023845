"""Tracebacks without our own frames: the user's lines are what the user looks for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import TracebackType
from typing import Any

import tblib

__all__ = [
    "OURS",
    "cap_frames",
    "frames_from_json",
    "frames_to_json",
    "skip_our_frames",
    "without_our_frames",
]

_FOLDER = str(Path(__file__).resolve().parent)
#: For the setting ``admin.traceback.shorten``, which `dask.utils.shorten_traceback` reads.
OURS = rf"{re.escape(Path(_FOLDER).name)}[\\\/]"


def skip_our_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the first frame that is not of this package; all of it if none is."""
    found = trace
    while found is not None and _is_ours(found):
        found = found.tb_next
    return found or trace


def cap_frames(
    trace: TracebackType | None, first: int, last: int
) -> tuple[TracebackType | None, int]:
    """Return a traceback of at most the first and last frames, and how many are left out."""
    frames = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    kept = frames if len(frames) <= first + last else [*frames[:first], *frames[-last:]]
    found = None
    for one in reversed(kept):
        found = TracebackType(found, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return found, len(frames) - len(kept)


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
        frames.append([code.co_filename, code.co_name, line, module])
        trace = trace.tb_next
    return json.dumps(frames)


def frames_from_json(text: str | bytes) -> TracebackType | None:
    """Return a traceback of what `frames_to_json` wrote; what `tblib` reads is made only here."""
    made: dict[str, Any] | None = None
    for file, name, line, module in reversed(json.loads(text) if text else []):
        code = {"co_filename": file, "co_name": name}
        frame = {"f_globals": module, "f_locals": {}, "f_code": code, "f_lineno": line}
        made = {"tb_frame": frame, "tb_lineno": line, "tb_next": made}
    if made is None:
        return None
    found: TracebackType = tblib.Traceback.from_dict(made).as_traceback()
    return found


def _is_ours(trace: TracebackType) -> bool:
    return trace.tb_frame.f_code.co_filename.startswith(_FOLDER)
