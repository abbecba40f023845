"""What this host, or the container that it is to us, has, and whether workers may run on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path

__all__ = ["check_posix", "memory"]

#: Where a container's limit is: of cgroups 2, and 1.
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory(limits: Iterable[str] = LIMITS) -> int:
    """Return the bytes of memory that the processes here may have together.

    Parameters
    ----------
    limits : iterable of str
        Files that may hold a lower limit than the machine's.

    Examples
    --------
    >>> 0 < memory() <= memory([])
    True
    """
    least = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in limits:
        try:
            least = min(least, int(Path(name).read_text()))
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
    return least


def check_posix() -> None:
    """Raise on a host where no worker and no private server can be started.

    Raises
    ------
    OSError
        On Windows. The message says what a client does there.
    """
    if platform.system() == "Windows":
        raise OSError(
            "dask-redisq workers, and the private servers that it starts, need a POSIX system: run "
            "them on another host, and name that server by redisq.url (DASK_REDISQ__URL) or url="
        )
