"""What workers and clients tell about themselves, and which Python a worker takes tasks of."""

from __future__ import annotations

import getpass
import os
import platform
import socket
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

__all__ = ["DIFFER", "about_client", "about_worker", "differences", "python_tag", "versions"]


def python_tag() -> str:
    """Return the tag of this Python's minor version.

    Functions that `cloudpickle` pickles by value hold byte code, so a job goes only to slots
    that carry the tag of its client.
    """
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


#: Packages whose objects, or whose format, are in what a client or a worker pickles: `tblib` in an
#: exception that a task returns; one that it raises does without.
DIFFER = ("dask", "cloudpickle", "tblib")


@cache
def versions() -> dict[str, str]:
    """Return the versions here of what matters to pickles."""
    return {name: version(name) for name in DIFFER}


def differences(theirs: Mapping[str, str]) -> str:
    """Say what of the versions of another side differs from those here; nothing if none does.

    >>> differences(versions())
    ''
    """
    ours = versions()
    found = [n for n in DIFFER if theirs.get(n) not in (None, ours[n])]
    return ", ".join(f"{name} {theirs[name]} there and {ours[name]} here" for name in found)


def about_worker(
    name: str,
    tags: tuple[str, ...],
    slots: int,
    alive_expiry: float,
    resources: Mapping[str, float],
) -> dict[str, Any]:
    """Return what is shown of a worker."""
    return {
        "name": name,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "python": platform.python_version(),
        **versions(),
        "nworkers": slots,
        "alive_expiry": alive_expiry,
        "tags": list(tags),
        "resources": dict(resources),
    }


def about_client() -> tuple[str, str, int]:
    """Return the user, the host and the process that submit a job, for who looks at the queue.

    >>> about_client()[2] == os.getpid()
    True
    """
    return _user(), socket.gethostname(), os.getpid()


@cache
def _user() -> str:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container whose user has no name
        return str(os.getuid()) if hasattr(os, "getuid") else ""
