"""Tracebacks without our own frames: the user's lines are what the user looks for."""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType

__all__ = ["OURS", "hide_our_frames", "skip_our_frames"]

_FOLDER = str(Path(__file__).resolve().parent)
#: For the setting ``admin.traceback.shorten``, by which Dask drops frames of files.
OURS = rf"{re.escape(Path(_FOLDER).name)}[\\\/]"


def _is_ours(trace: TracebackType) -> bool:
    return trace.tb_frame.f_code.co_filename.startswith(_FOLDER)


def skip_our_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the first frame that is not of this package; all of it if none is."""
    found = trace
    while found is not None and _is_ours(found):
        found = found.tb_next
    return found or trace


class hide_our_frames:  # noqa: N801 - as dask.utils.shorten_traceback
    """A context manager: an error leaves it without the frames of this package in between.

    The first frame stays, which is where the context manager is, and the last one, where the error
    was raised. As `dask.utils.shorten_traceback` does; ours must go without its setting, too.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        _: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or trace is None:
            return
        kept, here = trace, trace.tb_next
        while here is not None:
            if here.tb_next is None or not _is_ours(here):
                kept.tb_next = here
                kept = here
            here = here.tb_next
        error.__traceback__ = trace
