"""Tracebacks without our own frames: the user's lines are what the user looks for."""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType

__all__ = ["OURS", "skip_our_frames"]

_FOLDER = str(Path(__file__).resolve().parent)
#: For the setting ``admin.traceback.shorten``, which `dask.utils.shorten_traceback` reads.
OURS = rf"{re.escape(Path(_FOLDER).name)}[\\\/]"


def skip_our_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the first frame that is not of this package; all of it if none is."""
    found = trace
    while found is not None and found.tb_frame.f_code.co_filename.startswith(_FOLDER):
        found = found.tb_next
    return found or trace
