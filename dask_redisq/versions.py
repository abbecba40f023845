"""What a worker tells about itself, and which Python it takes tasks of."""

from __future__ import annotations

import os
import platform
import socket
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

__all__ = ["about_worker", "python_tag"]


def python_tag() -> str:
    """Return the tag of this Python's minor version.

    Functions that `cloudpickle` pickles by value hold byte code, so a job goes only to slots
    that carry the tag of its client.
    """
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


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
        "dask": version("dask"),
        "cloudpickle": version("cloudpickle"),
        "nworkers": slots,
        "alive_expiry": alive_expiry,
        "tags": list(tags),
        "resources": dict(resources),
    }
