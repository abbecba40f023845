"""What a process that we start needs in its environment to see what this one sees."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from pathlib import Path

import dask.config

from dask_redisq._defaults import hide_secret

__all__ = ["inherited", "search_path"]


def inherited(url: str) -> dict[str, str]:
    """Return variables for our module search path, our ``redisq`` settings, and the server."""
    environment = {"PYTHONPATH": search_path()}
    # The URL, which may hold a password, goes here and not on the command line: `ps` shows that
    # to every user of the machine, the environment only to its owner.
    hide_secret()  # it goes as it came, as text, which is not what Dask makes of it
    for key, value in {**dask.config.get("redisq"), "url": url}.items():
        # Dask evaluates what looks like a literal, so a queue "007" goes quoted.
        plain = isinstance(value, str) and dask.config.interpret_value(value) == value
        name = f"DASK_REDISQ__{key.upper().replace('-', '_')}"
        environment[name] = value if plain else repr(value)
    return environment


def search_path() -> str:
    """Return our `sys.path` as a PYTHONPATH, less what this Python finds by itself."""
    # Not all of it: a task that starts another Python, of another version, would pass our
    # standard library on to it. An empty entry is the current directory.
    library = Path(sysconfig.get_path("stdlib"))
    archive = library.with_name(f"python{sys.version_info[0]}{sys.version_info[1]}.zip")
    own = {str(library), str(library / "lib-dynload"), str(archive)}
    own |= {*site.getsitepackages(), site.getusersitepackages()}
    return os.pathsep.join(os.path.abspath(entry) for entry in sys.path if entry not in own)  # noqa: PTH100 - "" too
