"""Runs what a worker is told to run in each of its slots before their first task."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, TracebackType

from dask_redisq.frames import skip_our_frames

__all__ = ["preload", "preload_all"]


def preload_all(names: Iterable[str]) -> str:
    """Do `preload` for each, up to the first that raises; return what it raised, empty if none."""
    for name in names:
        try:
            preload(name)
        except BaseException as error:  # a module may call exit
            trace = _skip_import(error.__traceback__)
            told = "".join(traceback.format_exception(type(error), error, trace)).rstrip()
            return f"preload {name} raised\n{told}"
    return ""


def _skip_import(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback from where the user's code begins, if there is any."""
    trace = skip_our_frames(trace)
    while trace is not None and "importlib" in trace.tb_frame.f_code.co_filename:
        trace = trace.tb_next
    return trace


def preload(what: str) -> None:
    """Import a module, or a file, and call its function if one is named.

    Parameters
    ----------
    what : str
        ``package.module`` or ``PATH.py``; ``:function`` behind it names one without arguments.
        Without that, a function ``dask_setup`` of the module is called, as distributed does,
        with None for a worker.

    Raises
    ------
    Exception
        Whatever it raises.
    """
    name, _, function = what.partition(":")
    module = _load(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    if function:
        getattr(module, function)()
    elif hasattr(module, "dask_setup"):
        module.dask_setup(None)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
