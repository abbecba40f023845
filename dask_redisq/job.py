"""One job from the client's side: submit, follow, gather, cancel.

Work starts before the upload ends: create (counters) -> blocks -> seal. Outputs are gathered
while the job runs, from an append-only log read by a cursor.
"""

from __future__ import annotations

import logging
import secrets
import struct
import time
from dataclasses import dataclass
from typing import Any

from dask.typing import Key

from dask_redisq.codec import BlockEncoder, dumps, loads, pack, unpack
from dask_redisq.errors import (
    JobFailed,
    JobLost,
    NoWorkersError,
    RedisqError,
    TaskNotSerializable,
    ValueTooLarge,
)
from dask_redisq.graph import BLOCK, Plan
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.monitor import Monitor, sweep
from dask_redisq.rebuild import rebuild
from dask_redisq.record import read_record
from dask_redisq.registry import able_workers
from dask_redisq.verdict import as_exception
from dask_redisq.versions import python_tag

__all__ = ["Job", "JobOptions"]

logger = logging.getLogger("dask_redisq")

#: Output values that one answer may hold.
GATHER = 2000
#: Seconds between two looks at a job of which nothing is heard.
WAIT = 1
#: Seconds without progress after which missing workers are spoken of.
QUIET = 5.0
#: Blocks whose receipt may be under way while the next one is pickled.
AHEAD = 2
#: Seconds between two renewals of the keys that large values have; each lives for a day.
RENEW = 6 * 3600
#: Milliseconds that staged counters wait for create, and constants for their block.
STAGED = 600_000
#: What gather.lua answers if it wants the upload again.
UPLOAD = 2
#: Rebuilds in a row without another finished task, after which the job is given up.
MOST_REPAIRS = 5


@dataclass(frozen=True)
class JobOptions:
    """Settings of one job; the names are those of `redisq.yaml`."""

    chunk_size: int = 0
    priority: int = 0
    allowed_failures: int = 3
    locality_wait: float = 0.1
    ft_interval: float = 5.0
    alive_expiry: float = 10.0
    client_lease: float = 60.0
    no_workers_timeout: float | None = None


class Job:
    """A submitted graph.

    Parameters
    ----------
    link : Link
        A connection for this job alone.
    keys : Keys
        Its queue.
    plan : Plan
        Its tasks.
    options : JobOptions
        Its settings.
    """

    def __init__(self, link: Link, keys: Keys, plan: Plan, options: JobOptions) -> None:
        self.link = link
        self.keys = keys
        link.watch(keys)
        self.plan = plan
        self.options = options
        self.id = secrets.token_hex(16)  # random, never used again
        self.epoch = secrets.token_hex(8)
        self._lease = int(options.client_lease * 1000)
        self._said = False
        self._repairs = self._repaired_at = 0

    def __repr__(self) -> str:
        return f"<Job {self.id} of queue {self.keys.queue}, {len(self.plan)} tasks>"

    def compute(self) -> dict[Key, Any]:
        """Submit, gather all outputs, and remove every trace; return requested key -> value.

        Raises
        ------
        BaseException
            What a task raised, as its own type.
        RedisqError
            If the job could not end; the subclass says why.
        """
        try:
            self.submit()
            values = self.gather()
        except BaseException:
            self._abandon()
            raise
        if not sweep(self.link, self.keys, self.id):
            # All outputs are here, and edges are still to be counted: nobody needs them now.
            self.cancel("its outputs arrived")
            sweep(self.link, self.keys, self.id)
        return {key: values[task] for key, task in self.plan.outputs.items()}

    # -- submit -------------------------------------------------------------------------

    def submit(self) -> None:
        """Upload the graph; its first tasks may be done before this returns."""
        plan, n = self.plan, len(self.plan)
        stage = [
            ("new_wait", plan.wait_counts(), "I"),
            ("new_consumers", plan.consumer_counts(), "I"),
        ]
        hard = self._restrictions()
        if hard:
            numbers = {tags: i for i, tags in enumerate(hard, 1)}
            marks = [numbers.get(plan.restricted.get(t, ()), 0) for t in range(n)]
            stage.append(("new_restrict", marks, "B"))
        for name, counts, code in stage:
            data = struct.pack(f">{n}{code}", *counts)
            self.link.send("SET", self.keys(name, self.id), data, "PX", STAGED)
        self.link.send_call(
            "create",
            self.keys,
            job=self.id,
            n=n,
            block=BLOCK,
            blocks=len(plan.block_starts()),
            epoch=self.epoch,
            chunk=self.options.chunk_size,
            priority=self.options.priority,
            python=python_tag(),
            allowed=self.options.allowed_failures,
            patience=int(self.options.locality_wait * 1000),
            client_lease=self._lease,
            hard=pack([list(tags) for tags in hard]),
        )
        self._upload()

    def _upload(self) -> None:
        """Send the blocks and seal; again after a server that forgot some of them, too."""
        self._upload_blocks()
        self.link.send_call("seal", self.keys, job=self.id)
        if self.link.receive_all()[-1] == b"incomplete":
            raise JobFailed(f"the upload of job {self.id} is incomplete")

    def _restrictions(self) -> list[tuple[str, ...]]:
        found = list(dict.fromkeys(self.plan.restricted.values()))
        if len(found) > 255:
            raise ValueError(
                f"a graph may hold at most 255 different restrictions, not {len(found)}"
            )
        return found

    def _upload_blocks(self) -> None:
        encoder = BlockEncoder(self._store_constant)
        for number, first in enumerate(self.plan.block_starts()):
            block = self.plan.block(first)
            try:
                payload, digests = encoder.encode(block)
            except ValueTooLarge:
                raise
            except Exception as why:
                raise self._unpicklable(first, block.tasks, why) from why
            self.link.send_call(
                "put_block",
                self.keys,
                job=self.id,
                number=number,
                first=first,
                count=len(block.tasks),
                payload=payload,
                edges=pack([block.inputs, list(block.outputs)]),
                consts=pack(digests),
            )
            replies = self.link.receive_all(but=AHEAD)
            if replies and replies[-1] in (b"failed", b"cancelled", b""):
                return  # what happened is told by gather

    def _store_constant(self, digest: str, data: bytes) -> None:
        self.link.send("SET", self.keys("const", self.id, digest), data, "PX", STAGED)

    def _unpicklable(self, first: int, tasks: list[Any], why: Exception) -> Exception:
        """Return the error that names which task of a block cannot be pickled."""
        for i, task in enumerate(tasks):
            try:
                dumps(task)
            except Exception as error:
                return TaskNotSerializable(
                    f"{self._name(first + i)} cannot be sent to a worker: its function or an "
                    f"argument does not pickle: {error}"
                )
        return why

    # -- follow ---------------------------------------------------------------------------

    def gather(self) -> dict[int, Any]:
        """Wait for the outputs; return task -> value."""
        monitor = Monitor(
            self.link, self.keys, self.id, self.options.ft_interval, self.options.alive_expiry
        )
        values: dict[int, Any] = {}
        wanted = len(set(self.plan.outputs.values()))
        cursor, generation, finished, heard = 0, b"", -1, time.monotonic()
        renew_at = heard + RENEW
        while len(values) < wanted:
            answer = self.link.call(
                "gather",
                self.keys,
                job=self.id,
                cursor=cursor,
                gen=generation,
                limit=GATHER,
                client_lease=self._lease,
            )
            state, reason, progress, further, generation, asked, *items = unpack(answer)
            if self._read_items(items, values):
                cursor = further
            if asked == UPLOAD:
                self._upload()
            elif asked:
                self._repair(values, progress)
            if len(values) == wanted:
                break
            if state != b"running" and not items:
                raise self._ended(state.decode(), reason)
            now = time.monotonic()
            if now >= renew_at:
                self.renew_values()
                renew_at = now + RENEW
            if progress != finished:
                finished, heard = progress, now
            if not items:
                self.link.command("BLPOP", self.keys("news", self.id), WAIT)
                now = time.monotonic()
                monitor.run(now)
                if now - heard >= min(QUIET, self.options.no_workers_timeout or QUIET):
                    self._look_for_workers(now - heard)
        return values

    def renew_values(self) -> None:
        """Renew the expiry of large values and constants, slice by slice."""
        cursor: Any = "0"
        while True:
            cursor = self.link.call("renew_values", self.keys, job=self.id, cursor=cursor)
            if cursor in ("0", b"0"):
                return

    def _repair(self, values: dict[int, Any], progress: int) -> None:
        """Rebuild the job on the server, unless that did not help several times in a row."""
        if progress > self._repaired_at:
            self._repaired_at, self._repairs = progress, 0
        self._repairs += 1
        if self._repairs > MOST_REPAIRS:
            raise JobFailed(
                f"job {self.id} cannot end: it was rebuilt {MOST_REPAIRS} times and got no "
                "further. Are keys of the queue deleted by hand, or evicted?"
            )
        if not rebuild(self.link, self.keys, self.id, list(values)):
            time.sleep(0.05)  # somebody else does
            self._repairs -= 1

    def _read_items(self, items: list[Any], values: dict[int, Any]) -> bool:
        """Enter the values of an answer: task, record, task, record, ...

        Returns false if one is not there: it was lost after its task had finished.
        """
        complete = True
        for task, record in zip(items[::2], items[1::2], strict=True):
            if task in values:
                continue
            data, attempt = read_record(record) if record else (None, "")
            if data is None and attempt:
                data = self.link.command("GET", self.keys("value", self.id, task, attempt))
            if data is None:
                complete = False
                self._report_lost(task)
                continue
            try:
                values[task] = loads(data)
            except Exception as error:
                error.add_note(f"dask-redisq: while reading the result of {self._name(task)}")
                raise
        return complete

    def _report_lost(self, task: int) -> None:
        answer = self.link.call("report_missing", self.keys, job=self.id, task=-1, input=task)
        if answer == b"finished":  # the job, that is
            raise JobFailed(f"the value of {self._name(task)} is gone from the server")

    def _look_for_workers(self, quiet: float) -> None:
        """After `quiet` seconds without progress: say once that nobody is able, or give up."""
        wanted = {frozenset(tags) for tags in self.plan.restricted.values()}
        problem = able_workers(self.link, self.keys, python_tag(), wanted)
        if problem is None:
            return
        if quiet >= QUIET and not self._said:
            self._said = True
            logger.warning("job %s waits: %s", self.id, problem)
        limit = self.options.no_workers_timeout
        if limit is not None and quiet >= limit:
            raise NoWorkersError(f"gave up after {limit:g} s: {problem}")

    # -- the end ----------------------------------------------------------------------------

    def cancel(self, reason: str) -> None:
        """Cancel the job: waiting tasks never start, running ones are stopped."""
        self.link.call("cancel", self.keys, job=self.id, reason=reason)

    def _abandon(self) -> None:
        """Cancel and remove; an error here must not hide the one that is on its way."""
        patience, self.link.patience = self.link.patience, 2.0
        try:
            self.cancel("its client gave up")
            sweep(self.link, self.keys, self.id)
        except RedisqError as error:
            logger.warning("job %s could not be removed, its keys expire: %s", self.id, error)
        finally:
            self.link.patience = patience

    def _name(self, task: int) -> str:
        return f"task {self.plan.keys[task]!r}"

    def _ended(self, state: str, reason: bytes) -> BaseException:
        """Return the exception for a job that ended without its outputs."""
        if state == "":
            return JobLost(
                f"job {self.id} is gone from queue {self.keys.queue}: the queue was removed, "
                "or the server lost its data; submit again"
            )
        if state == "done":
            return JobFailed(f"job {self.id} is done, but an output is missing")
        return as_exception(reason, self.id, self.plan.keys)
