"""The name of every Redis key, and what it holds: one table.

All keys of a queue begin with ``redisq:{QUEUE}:``; the braces are a Redis hash tag,
so that a queue lives in one slot of a cluster and every script may touch it whole.
Lua scripts name the keys that they use in their header (``-- keys:``), and the loader
(:mod:`dask_redisq.scripts`) writes them there, from this table.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["PATTERNS", "Keys", "check_queue_name"]

#: name -> (pattern behind the prefix, what the key holds). ``%s`` are filled in order.
PATTERNS: dict[str, tuple[str, str]] = {
    # the queue
    "queue": (
        "queue",
        "hash: schema, suspended, finished, refused, files, turns (these grow), serves, run...",
    ),
    "removing": ("removing", "string with expiry: why the queue is being removed, and now"),
    "jobs": ("jobs", "zset: every job -> server time in ms when it was created"),
    "active": ("active", "zset: jobs with a ready task -> -priority * 2^40 + last served"),
    "monitor": (
        "monitor",
        "hash: check -> when it was last run (ms), and by whom; where the next begins",
    ),
    "files": ("files", "hash: name -> content of an uploaded file, signed"),
    # workers and slots
    "workers": ("workers", "hash: worker -> msgpack of what it told about itself"),
    "alive": ("alive:%s", "string with expiry, one per worker: it was here a moment ago"),
    "worker_slots": ("worker:%s:slots", "set: the registered slots of a worker"),
    "control": ("control:%s", "stream: words for a worker's supervisor, until it obeyed"),
    "slots": ("slots", "set: all registered slots"),
    "slot": (
        "slot:%s",
        "hash: worker, tags, tag that a task set, seq, answer, job, since (ms), renewed (ms), idle",
    ),
    "idle": ("idle:%s", "zset: slots that carry this tag and wait for work -> since (ms)"),
    "wake": ("wake:%s", "list: a token wakes this slot"),
    "lock": (
        "lock:%s",
        "hash: token -> msgpack [until (ms), fence, slot]; last fence; tokens that are gone",
    ),
    "places": ("places:%s", "hash: token -> lock, of the places that a task of this slot holds"),
    "freed": ("freed:%s", "list: a token wakes one that waits for this lock"),
    "tomb": ("tomb:%s", "string with expiry: msgpack [state, reason] of a job that is gone"),
    "removed": ("tomb:queue", "as a tomb, of a queue that had loops: msgpack [when (ms), why]"),
    # one job: truth
    "job": ("job:%s", "hash: state, epoch, n, finished, settings, error, life"),
    "answer": ("job:%s:answer", "string: what makes the answer of a detached job from its outputs"),
    "names": ("job:%s:names", "string: the graph key of each task of a detached job, packed"),
    "about": ("job:%s:about", "hash: task -> msgpack of what the job's policy knows of it"),
    "blocks": ("job:%s:blocks", "hash: block number -> pickled tasks; never changes"),
    "edges": ("job:%s:edges", "hash: block -> msgpack of its tasks' inputs, and of outputs"),
    "consts": ("job:%s:consts", "set: digests of the job's constants"),
    "const": ("job:%s:const:%s", "string: a large constant by the digest of its content"),
    "finished": ("job:%s:finished", "bitmap: tasks with an accepted result"),
    "values": ("job:%s:values", "hash: task -> place, attempt, and the value or its size"),
    "value": ("job:%s:value:%s:%s", "string: a large value by task and attempt"),
    "log": ("job:%s:log", "list: msgpack arrays of finished output tasks, in order"),
    "alone": ("job:%s:alone", "set: tasks that may have run before, so run alone"),
    "deaths": ("job:%s:deaths", "hash: task -> msgpack array, one record per death"),
    "tries": ("job:%s:tries", "hash: task -> failures and timeouts; unseen:task -> lost values"),
    "client": ("job:%s:client", "string with expiry: the lease of the job's client"),
    "holders": ("job:%s:holders", "set: jobs that use values which this one keeps"),
    "held": ("job:%s:held", "set: jobs whose values this one uses"),
    "children": ("job:%s:children", "set: jobs that tasks of this one computed, and waited for"),
    # one job: derived
    "wait": ("job:%s:wait", "u32 per task: unfinished inputs, + 1 until its block is there"),
    "consumers": ("job:%s:consumers", "u32 per task: unfinished users + 1 if undelivered output"),
    "ready": ("job:%s:ready", "zset: ready tasks that any slot may run, by number"),
    "tagged": ("job:%s:ready:%s", "zset: ready tasks of one tag (soft) or restriction (hard)"),
    "sets": ("job:%s:sets", "zset: names of tagged ready sets -> not empty since (ms)"),
    "delayed": ("job:%s:delayed", "zset: tasks that run again -> not before (ms)"),
    "restrict": ("job:%s:restrict", "u8 per task: 0, or the number of its restriction"),
    "leases": ("job:%s:leases", "hash: slot -> msgpack [seq, tasks, given back] of its lease"),
    "parked": ("job:%s:parked", "set: tasks whose input is gone and made again"),
    "settle": ("job:%s:settle", "list: edges of accepted tasks that are still to be counted"),
    "warnings": ("job:%s:warnings", "set: what tasks warned of, packed, for the client to issue"),
    "events": (
        "job:%s:events",
        "list: msgpack [slot, worker, done, tasks], for a client's callbacks",
    ),
    "news": ("job:%s:news", "list: a token wakes the job's client"),
    # built aside by a rebuild, under its generation
    "built": ("job:%s:built:%s:%s", "what takes the place of a derived key"),
    # staged by the client, taken by create
    "new_wait": ("job:%s:new:wait", "the wait counters before create has seen them"),
    "new_consumers": ("job:%s:new:consumers", "the consumers counters before create has seen them"),
    "new_answer": ("job:%s:new:answer", "the answer before create has seen it"),
    "new_names": ("job:%s:new:names", "the names before create has seen them"),
    "new_restrict": ("job:%s:new:restrict", "the restrictions before create has seen them"),
}


def check_queue_name(name: Any) -> str:
    """Return `name` if it can name a queue.

    Parameters
    ----------
    name : str
        Any non-empty text without braces: braces would move the hash tag.

    Raises
    ------
    ValueError
        For an empty name or one with a brace.
    TypeError
        For what is no text.
    """
    if not isinstance(name, str):
        raise TypeError(f"a queue name is text without braces, not {name!r}")
    if not name or "{" in name or "}" in name:
        raise ValueError(
            f"a queue name is text without braces, not {name!r}: they mark the hash tag of its keys"
        )
    return name


class Keys:
    """The key names of one queue: ``Keys("jobs")("wait", job)``.

    >>> Keys("jobs")("wait", "a1")
    'redisq:{jobs}:job:a1:wait'
    """

    __slots__ = ("prefix", "queue")

    def __init__(self, queue: str) -> None:
        self.queue = check_queue_name(queue)
        self.prefix = f"redisq:{{{queue}}}:"

    def pattern(self) -> str:
        r"""Return the glob that finds the keys of this queue and of no other.

        >>> print(Keys("a*").pattern())
        redisq:{a\*}:*
        """
        return re.sub(r"([*?\[\]\\^-])", r"\\\1", self.prefix) + "*"

    def __call__(self, name: str, *parts: object) -> str:
        """Return the name of the key `name` of PATTERNS, with `parts` filled in."""
        return self.prefix + (PATTERNS[name][0] % parts if parts else PATTERNS[name][0])
