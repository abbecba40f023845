"""Repair a job: hold it, read what is true of it, compute the rest, and put that in its place.

One mechanism for a value that is gone, a key that was deleted, a server that came back older.
Whoever looks after the queue may do it, since the graph is in the server too: a waiting client,
a supervisor, an idle slot. Nothing here unpickles anything.
"""

from __future__ import annotations

import logging
import secrets
import struct
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from dask_redisq.codec import pack, unpack
from dask_redisq.errors import ServerFull
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.recount import Recount, Truth, recount

__all__ = ["rebuild", "try_rebuild"]

logger = logging.getLogger("dask_redisq")

#: Milliseconds for which a rebuilder that may have died keeps others off.
LIFE = 10_000
#: Milliseconds that what is built aside waits to be taken.
STAGED = 600_000
#: What is built aside, and the ready set of each restriction.
STAGED_PARTS = ("finished", "wait", "consumers", "log", "alone", "ready")
#: Items in one command.
SLICE = 1000


class _Frozen(NamedTuple):
    """What freeze.lua answers."""

    status: str
    n: int
    block: int
    blocks: int
    acked: int
    history: bool
    pure: bool


def rebuild(
    link: Link,
    keys: Keys,
    job: str,
    have: Collection[int] | None = None,
    needs: Sequence[str | int] = (),
) -> bool:
    """Rebuild a job; false if somebody else does, it does not run, or nobody can: then it failed.

    Parameters
    ----------
    link, keys : Link, Keys
        The server and the queue.
    job : str
        Its id.
    have : collection of int, optional
        Outputs that the caller, its client, has; without it, those that its client said it has.
        That may be more: a client of impure tasks forgets outputs, and a server that came back
        older does not know.
    needs : sequence of str or int, optional
        A command that tells whether something is there without which the rest cannot run. Who
        missed it tells; a job that is all done may do without a constant that is gone.
    """
    generation = ""
    while True:
        previous, generation = generation, secrets.token_hex(8)
        answer = unpack(
            link.call("freeze", keys, job=job, generation=generation, previous=previous, life=LIFE)
        )
        held = _Frozen._make([answer[0].decode(), *answer[1:5], answer[5] == 1, answer[6] == 1])
        if held.status != "frozen":
            return False
        since = link.unbroken_since
        whole = not needs or link.command(*needs)
        built = _build(link, keys, job, generation, held, have) if whole else None
        # The server came back older, and a copy of `freeze` that came late holds the job there
        # too: then one half was read of one history, the other half of another. So another turn,
        # under a name of its own: what was sent in this one may still be on its way.
        if link.unbroken_since == since:
            break
        if built is not None:
            _drop_staged(link, keys, job, generation, unpack(built["hard"]))
    if built is None:
        link.call("give_up", keys, job=job, generation=generation)
        return False
    if link.call("rebuild", keys, job=job, generation=generation, **built) == b"rebuilt":
        return True
    # Somebody else took over. What was taken, by a call whose reply was lost, has another name.
    _drop_staged(link, keys, job, generation, unpack(built["hard"]))
    return False


def try_rebuild(link: Link, keys: Keys, job: str, needs: Sequence[str | int] = ()) -> bool:
    """Rebuild a job, unless the server has no room for it: that must not end a worker."""
    try:
        return rebuild(link, keys, job, needs=needs)
    except ServerFull as error:
        logger.warning("job %s cannot be rebuilt now, the next look tries again: %s", job, error)
        return False


def _build(
    link: Link,
    keys: Keys,
    job: str,
    generation: str,
    held: _Frozen,
    have: Collection[int] | None,
) -> dict[str, Any] | None:
    """Build the rest of a frozen job aside; return what `rebuild` is to know of it.

    None if its graph is not all there.
    """
    read = _read(link, keys, job, held, have)
    if read is None:
        return None
    truth, gone = read
    found = recount(truth, pure=held.pure)
    logger.warning(
        "job %s is rebuilt: %d of %d tasks are finished, %d run again%s",
        job, len(found.finished), held.n, len(found.again),
        ", after the server came back with another history" if held.history else "",
    )  # fmt: skip
    for some in _slices(sorted(found.unneeded | gone)):
        link.call("drop_values", keys, job=job, generation=generation, tasks=pack(some))
    return {
        "hard": pack(_stage(link, keys, job, generation, truth, found)),
        # A slot may hold, or work with, what a run from before gave: with another epoch it
        # forgets that, and is refused.
        "epoch": secrets.token_hex(8) if held.history or (found.again and not held.pure) else "",
        "finished": len(found.finished),
        "acked": int(bool(found.delivered)),
    }


def _read(
    link: Link, keys: Keys, job: str, held: _Frozen, have: Collection[int] | None
) -> tuple[Truth, set[int]] | None:
    """Return what is true of a frozen job, and tasks whose value is recorded and gone.

    None if its graph is not all there.
    """
    inputs: list[Any] = []
    outputs: set[Any] = set()
    for numbers in _slices(range(held.blocks), 100):
        for packed in link.command("HMGET", keys("edges", job), *numbers):
            try:
                its_inputs, its_outputs = unpack(packed)
                inputs += its_inputs
                outputs.update(its_outputs)
            except Exception:  # gone, no msgpack, or msgpack of something else
                return None
    if not _is_graph(inputs, outputs, held.n):
        return None
    bits = link.command("GET", keys("finished", job)) or b""
    finished = {
        8 * i + k for i, byte in enumerate(bits) if byte for k in range(8) if byte & (128 >> k)
    }
    valued, gone = _survey(link, keys, job)
    if held.history and not held.pure:  # what has arrived may be of the history that is forgotten
        return Truth(inputs, frozenset(outputs), finished, valued, set()), gone
    delivered = set(have or ())
    if have is None and held.acked:
        for entry in link.command("LRANGE", keys("log", job), 0, held.acked - 1):
            delivered.update(unpack(entry))
    return Truth(inputs, frozenset(outputs), finished, valued, delivered), gone


def _is_graph(inputs: list[Any], outputs: set[Any], n: int) -> bool:
    """Tell whether what was read are the edges of `n` tasks; anybody may have written it."""
    if len(inputs) != n or not all(isinstance(its, list | tuple) for its in inputs):
        return False
    tasks = {*outputs, *(task for its in inputs for task in its)}
    return all(type(task) is int and 0 <= task < n for task in tasks)


def _survey(link: Link, keys: Keys, job: str) -> tuple[set[int], set[int]]:
    """Return the tasks whose value is there, and those that only have a record of one."""
    there: set[int] = set()
    gone: set[int] = set()
    cursor: Any = b"0"
    while True:
        cursor, some_there, some_gone = unpack(link.call("survey", keys, job=job, cursor=cursor))
        there.update(some_there)
        gone.update(some_gone)
        if cursor == b"0":
            return there, gone


def _stage(
    link: Link, keys: Keys, job: str, generation: str, truth: Truth, found: Recount
) -> list[int]:
    """Write the derived state aside; return the numbers of the restrictions with ready tasks."""
    n = len(truth.inputs)

    def put(what: str, data: bytes) -> None:
        link.send("SET", keys("built", job, generation, what), data, "PX", STAGED)

    def stage(what: str, kind: str, tasks: Sequence[int]) -> None:
        for some in _slices(tasks):
            link.send_call(
                "stage", keys, job=job, generation=generation, what=what, kind=kind,
                tasks=pack(some), life=STAGED,
            )  # fmt: skip

    # Empty sets are no keys, so they cannot be missed. The strings are: the first of them expires
    # before any set, and the last is not in a server that came back from the middle of this.
    bits = bytearray(-(-n // 8))
    for task in found.finished:
        bits[task // 8] |= 128 >> task % 8
    put("finished", bytes(bits))
    put("wait", struct.pack(f">{n}I", *found.wait))
    put("consumers", struct.pack(f">{n}I", *found.consumers))
    stage("alone", "set", sorted(found.again))
    sets = _by_restriction(link.command("GET", keys("restrict", job)), found.ready)
    for number, tasks in sets.items():
        stage(f"hard:{number}" if number else "ready", "zset", tasks)
    entries = [sorted(found.delivered)] if found.delivered else []
    put("log", pack([pack(entry) for entry in [*entries, *_slices(found.told)]]))
    link.receive_all()
    return [number for number in sets if number]


def _drop_staged(link: Link, keys: Keys, job: str, generation: str, hard: list[int]) -> None:
    """Delete what was built aside and is not wanted."""
    staged = [*STAGED_PARTS, *(f"hard:{number}" for number in hard)]
    link.command("UNLINK", *(keys("built", job, generation, what) for what in staged))


def _by_restriction(marks: bytes | None, tasks: Iterable[int]) -> dict[int, list[int]]:
    """Return the tasks by the number of their restriction, 0 for none."""
    found: dict[int, list[int]] = {}
    for task in tasks:
        found.setdefault(marks[task] if marks else 0, []).append(task)
    return found


def _slices(things: Sequence[Any], size: int = SLICE) -> list[Any]:
    return [things[i : i + size] for i in range(0, len(things), size)]
