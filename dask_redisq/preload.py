"""Runs what a worker is told to run in each of its slots before their first task."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["preload"]


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
        Whatever it raises: the slot ends, and its worker's log says why.
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
