"""Warnings of tasks reach the client, where its filters decide what becomes of them.

They travel as text. A category is found among the modules that the client has imported, and is
`UserWarning` otherwise: nothing that a worker sends is imported or unpickled for this.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable
from typing import Any, TextIO

from dask_redisq.codec import pack, unpack

__all__ = ["WarningBox", "issue_warnings", "packed_warning"]

logger = logging.getLogger("dask_redisq")

#: Different warnings of one lease that travel, of those that Python shows and of those that it
#: ignores, which else would take the room of the others; and characters of one.
MOST, LONGEST = 20, 2000

#: Ignored by Python unless it is told otherwise.
_QUIET = (DeprecationWarning, PendingDeprecationWarning, ImportWarning)

#: The filters of a Python that just began, which it looks at last.
_OF_PYTHON = [
    ("default", None, DeprecationWarning, "__main__", 0),
    *[("ignore", None, category, None, 0) for category in (*_QUIET, ResourceWarning)],
]
_ALWAYS = ("always", None, Warning, None, 0)


class WarningBox:
    """Catches what the tasks of a slot warn of, and shows it in the worker's log all the same.

    What Python ignores by default is for the client's filters to ignore. What the worker was told
    to ignore stays there, as do warnings of resources: a destructor knows no task.
    """

    def __init__(self) -> None:
        #: Packed, by whether they are quiet.
        self._caught: dict[bool, dict[bytes, None]] = {False: {}, True: {}}
        #: Of those for which there is no room: how many, and the first of them.
        self._dropped: dict[bool, tuple[int, list[Any]]] = {}
        self._show = warnings.showwarning
        self._hook = self._catch

    def __repr__(self) -> str:
        return f"<WarningBox of {sum(map(len, self._caught.values()))} warnings>"

    def open(self) -> None:
        """Catch from now on, whatever was shown before: that was another job.

        Does nothing where it is open.
        """
        if warnings.showwarning is not self._hook:
            warnings.showwarning = self._hook
        if not sys.warnoptions and _ALWAYS not in warnings.filters:
            _let_through()

    def take(self) -> list[bytes]:
        """Return the warnings since the last call, each once, and how many there were besides."""
        # Once a lease: `logging.captureWarnings` in a task would else have those of all later tasks
        # of this slot.
        self.open()
        if not any(self._caught.values()):
            return []
        taken = [entry for caught in self._caught.values() for entry in caught]
        for count, (module, name, _, *where) in self._dropped.values():
            text = f"{count} more warnings came with these, and are only in the log of their worker"
            taken.append(pack([module, name, text, *where]))
        self._caught, self._dropped = {False: {}, True: {}}, {}
        return taken

    def _catch(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        # A lone surrogate, from the name of a file perhaps, is no UTF-8.
        text = str(message)[:LONGEST].encode(errors="backslashreplace")
        file_name = filename.encode(errors="backslashreplace")
        fields = [category.__module__, category.__qualname__, text, file_name, lineno]
        fields.append(_module_at(filename, lineno))
        quiet = issubclass(category, _QUIET)
        caught, entry = self._caught[quiet], pack(fields)
        if entry in caught:
            return  # in the log, too, once a lease is enough
        if len(caught) < MOST:
            caught[entry] = None
        else:
            count, first = self._dropped.get(quiet, (0, fields))
            self._dropped[quiet] = count + 1, first
        self._show(message, category, filename, lineno, file, line)


def _let_through() -> None:
    """Have all that tasks warn of shown, but for what somebody told this process to ignore."""
    filters, of_python = list(warnings.filters), list(_OF_PYTHON)
    while filters and of_python and filters[-1] == of_python[-1]:
        del filters[-1], of_python[-1]
    warnings.filters = filters
    warnings.simplefilter("ignore", ResourceWarning, append=True)
    warnings.simplefilter("always", append=True)


def _module_at(filename: str, lineno: int) -> str:
    """Return the name of the module that runs this line now, for filters by module; or "".

    Python tells it only to the filters of the process in which the line ran.
    """
    frame = sys._getframe()  # noqa: SLF001 - `inspect` would read the sources of all of them
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_lineno == lineno and frame.f_code.co_filename == filename:
            return str(frame.f_globals.get("__name__", ""))
    return ""


def packed_warning(text: str) -> bytes:
    """Return a warning of the package's own, about a job, as those of tasks travel."""
    told = text[:LONGEST].encode(errors="backslashreplace")
    return pack(["builtins", "RuntimeWarning", told, "dask_redisq", 1, "dask_redisq"])


def issue_warnings(entries: Iterable[bytes]) -> None:
    """Issue warnings that workers caught, each different one once, as if their line were here.

    They are not signed. One that cannot be read is none, and no reason to throw an answer away.
    """
    for entry in sorted(entries):
        try:
            warning = _read(entry)
        except Exception as why:  # no msgpack, and msgpack of anything
            logger.warning("a warning on the server cannot be read, and is left out: %r", why)
            continue
        warnings.warn_explicit(**warning)


def _read(entry: bytes) -> dict[str, Any]:
    """Return the arguments of `warnings.warn_explicit`."""
    module, name, text, filename, lineno, *where = unpack(entry)
    if not 0 <= lineno < 2**31:
        raise ValueError(f"there is no line {lineno}")
    category = _category(module.decode(), name.decode())
    found = {
        "message": _instance(category, text.decode()),
        "category": category,
        "filename": filename.decode(),
        "lineno": lineno,
    }
    # Told nothing, Python takes the file's name for the module's; told None, it does nothing.
    return found | ({"module": where[0].decode()} if where and where[0] else {})


def _instance(category: type[Warning], text: str) -> Warning:
    """Return a warning that says `text`, whatever its class asks for besides."""
    try:
        return category(text)
    except Exception:
        found = category.__new__(category, text)
        found.args = (text,)
        return found


def _category(module: str, name: str) -> type[Warning]:
    found: Any = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) and issubclass(found, Warning) else UserWarning
