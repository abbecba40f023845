"""What a forked child renews: locks that other threads may hold, and what is its parent's."""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["in_forked_child"]


def in_forked_child(renew: Callable[[], None]) -> Callable[[], None]:
    """Have a function called in each child that this process forks; a decorator.

    Not every system forks: without the guard no host with Windows could import the package.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)
    return renew
