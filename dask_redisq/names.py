"""The graph keys of a job's tasks, which the server has of jobs with a future."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from dask.typing import Key

from dask_redisq.answer import unpack_names
from dask_redisq.errors import BadSignature
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.trust import Seal

__all__ = ["Names", "keys_of"]


class Names:
    """The graph keys of one job's tasks, read when an error needs one.

    Where nobody knows them, or they are not ours to read, a task has its number: an error that can
    be read is worth more than the name of its task.

    Parameters
    ----------
    link, keys : Link, Keys
        The server and the queue.
    job : str
        The job's id.
    seal : Seal
        Checks what is read.
    """

    def __init__(self, link: Link, keys: Keys, job: str, seal: Seal) -> None:
        self._where = link, keys("names", job), seal

    def __len__(self) -> int:
        return len(self.known)

    @cached_property
    def known(self) -> Sequence[Key]:
        """The keys, in the order of the tasks; none where they cannot be read."""
        link, name, seal = self._where
        return keys_of(link.command("GET", name), seal)

    def __getitem__(self, task: int) -> Key:
        return self.known[task] if self.known else f"number {task}"


def keys_of(data: bytes | None, seal: Seal | None) -> Sequence[Key]:
    """Return the graph keys of a job; none where nobody knows them, or we may not read them."""
    if data is None or seal is None:
        return ()
    try:
        return unpack_names(data, seal)
    except BadSignature:
        return ()
