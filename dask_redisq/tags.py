"""What a slot carries: the tags that its worker was given, and the one that its task code sets.

The server is told at each step (lua/step.lua), and not by a call of its own. W sets a tag, the
server comes back older or empty, W's supervisor registers the slot as it was started: the next step
tells the tag again, before it leases anything. Nor can a late copy of a call bring an older tag
back, as such a step is refused.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator
from collections.abc import Set as AbstractSet

from dask_redisq.annotations import RESOURCE, SOFT

__all__ = ["SlotTags", "carry", "get_tag", "set_tag"]

#: How the tags of Pythons begin: a slot that took one would be given pickles of another.
_PYTHON = "python"


class SlotTags(AbstractSet[str]):
    """The tags of one slot.

    Parameters
    ----------
    given : collection of str
        Those of its worker.
    first : str, default ""
        The first that its user gave it.

    Attributes
    ----------
    own : str
        The one that task code set; empty without.
    """

    def __init__(self, given: Collection[str], first: str = "") -> None:
        self.given = frozenset(given)
        self.first = first
        self.own = ""
        self.pid = os.getpid()

    def __repr__(self) -> str:
        return f"<SlotTags {sorted(self)}>"

    def __contains__(self, tag: object) -> bool:
        return tag in self.given or (tag == self.own and bool(tag))

    def __iter__(self) -> Iterator[str]:
        return iter(self.given | {self.own} if self.own else self.given)

    def __len__(self) -> int:
        return len(list(iter(self)))


_carried: SlotTags | None = None


def carry(tags: SlotTags) -> None:
    """Note that this process is a slot that carries `tags`."""
    global _carried  # noqa: PLW0603
    _carried = tags


def set_tag(tag: str) -> None:
    """Give the slot that runs this task a tag: doRedis's ``setTag``.

    It takes the place of the one that was set before, and counts from the next lease on, for all
    jobs, until another one is set or the process ends. Tasks that ask for it by ``workers=`` come
    here, and `get_task` policies see it first among the slot's tags.

    Parameters
    ----------
    tag : str
        Any text, such as the name of what the slot has in memory; several slots may carry one.

    Raises
    ------
    RuntimeError
        Outside of a task: only a slot has a tag of its own. A process that a task started is none.
    TypeError, ValueError
        For what is no text, is empty, or means something else: ``resource:``, ``soft:`` and
        ``python`` begin tags of the engine.

    Examples
    --------
    >>> import dask_redisq as redisq
    >>> def chunk(j):
    ...     redisq.set_tag(f"A{j}")
    ...     return redisq.get_tag()
    >>> redisq.Queue("jobs").foreach(chunk, [7])  # doctest: +SKIP
    ['A7']
    """
    if not isinstance(tag, str):
        raise TypeError(f"a tag is text, not {tag!r}")
    if not tag or tag.startswith((RESOURCE, SOFT, _PYTHON)):
        raise ValueError(
            f"a tag is text that does not begin with {RESOURCE!r}, {SOFT!r} or {_PYTHON!r}, "
            f"not {tag!r}"
        )
    if _carried is None or _carried.pid != os.getpid():
        raise RuntimeError(
            "set_tag is called by a task, in the slot that runs it; a worker is given tags for all "
            "its slots by --tag"
        )
    _carried.own = tag


def get_tag() -> str:
    """Return the tag of the slot that runs this task.

    That which `set_tag` set, else the first that its worker was given by ``--tag``, else the name
    of the host; outside of a task, too, that is the name of the host.

    Examples
    --------
    >>> import dask_redisq as redisq
    >>> redisq.get_tag() == socket.gethostname()
    True
    """
    if _carried is None:
        return socket.gethostname()
    return _carried.own or _carried.first or socket.gethostname()
