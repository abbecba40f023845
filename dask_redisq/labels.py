"""Says before each line that a task prints, or logs, which job and task it is of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TextIO

from dask_redisq.page import Page

__all__ = ["Labelled"]


class Labelled:
    """A stream that begins each line with the task in hand, if there is one.

    What the next task writes begins a line of its own, though the last one left its line open.

    Parameters
    ----------
    stream : TextIO
        Where the lines go.
    page : Page
        Tells which task that is.
    """

    def __init__(self, stream: Any, page: Page) -> None:
        self._stream: TextIO = stream
        self._page = page
        self._begins = True
        #: The task that the line is of.
        self._task: tuple[bytes, int, int] | None = None

    def write(self, text: str) -> int:
        """Write `text`, as a text file does."""
        cursor = self._page.read()
        runs = cursor.seq and cursor.begun >= 0
        task = (cursor.job, cursor.seq, cursor.begun) if runs else None
        if text and task != self._task:
            if not self._begins:
                self._stream.write("\n")
            self._begins, self._task = True, task
        if text and task is not None:
            label = f"[job {cursor.job.decode()} task {cursor.begun}] "
            lines = text.splitlines(keepends=True)
            marked = [label + line for line in lines[1:]]
            first = (label if self._begins else "") + lines[0]
            self._stream.write("".join([first, *marked]))
        else:
            self._stream.write(text)
        if text:
            self._begins = text.endswith("\n")
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
