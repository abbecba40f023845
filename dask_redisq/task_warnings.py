"""Warnings of tasks reach the client, where its filters decide what becomes of them.

They travel as text. A category is found among the modules that the client has imported, and is
`UserWarning` otherwise: nothing that a worker sends is imported or unpickled for this.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from typing import Any, TextIO

from dask_redisq.codec import pack, unpack

__all__ = ["WarningBox", "issue_warnings"]

#: Different warnings of one lease, and characters of one, that travel.
MOST, LONGEST = 20, 2000


class WarningBox:
    """Catches what the tasks of a slot warn of, and shows it in the worker's log all the same."""

    def __init__(self) -> None:
        self._caught: dict[bytes, None] = {}
        self._show = warnings.showwarning

    def __repr__(self) -> str:
        return f"<WarningBox of {len(self._caught)} warnings>"

    def open(self) -> None:
        """Catch from now on, whatever was shown before: that was another job."""
        warnings.showwarning = self._catch
        if not sys.warnoptions:
            warnings.simplefilter("always", append=True)

    def take(self) -> list[bytes]:
        """Return the warnings since the last call, each once."""
        if not self._caught:
            return []
        caught, self._caught = list(self._caught), {}
        return caught

    def _catch(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if len(self._caught) < MOST:
            # A lone surrogate, from the name of a file perhaps, is no UTF-8.
            text = str(message)[:LONGEST].encode(errors="backslashreplace")
            file_name = filename.encode(errors="backslashreplace")
            where = category.__module__, category.__qualname__
            self._caught[pack([*where, text, file_name, lineno])] = None
        self._show(message, category, filename, lineno, file, line)


def issue_warnings(entries: Iterable[bytes]) -> None:
    """Issue warnings that workers caught, each different one once, as if their line were here."""
    for entry in sorted(entries):
        module, name, text, filename, lineno = unpack(entry)
        warnings.warn_explicit(
            text.decode(), _category(module.decode(), name.decode()), filename.decode(), lineno
        )


def _category(module: str, name: str) -> type[Warning]:
    found: Any = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) and issubclass(found, Warning) else UserWarning
