"""One job from the client's side: submit, follow, gather, cancel.

Work starts before the upload ends: create (counters) -> blocks -> seal. Outputs are gathered
while the job runs, from an append-only log read by a cursor.
"""

from __future__ import annotations

import logging
import secrets
import struct
import time
from collections.abc import Mapping
from typing import Any

from dask.typing import Key

from dask_redisq import client_lease
from dask_redisq.answer import Answer, pack_names
from dask_redisq.codec import BlockEncoder, dumps, loads, pack, unpack
from dask_redisq.errors import (
    JobFailed,
    JobLost,
    NoWorkersError,
    RedisqError,
    TaskNotSerializable,
)
from dask_redisq.graph import BLOCK, Plan
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.monitor import Monitor, renew_values, sweep
from dask_redisq.options import JobOptions
from dask_redisq.record import read_record
from dask_redisq.registry import able_workers
from dask_redisq.verdict import as_exception, is_dropped, why_gone
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
#: Milliseconds that constants wait for their block; counters wait no longer for create.
STAGED = 600_000
#: Leases for which the keys of a job stay without its client (lua/lib/life.lua).
LEASES = 5
#: Times in a row that a job is submitted again without one output more.
AGAIN = 5
#: Bytes per second at which unpickling is taken to go at the worst.
SLOW = 2e6


class _Dropped(JobLost):
    """The job is gone, though nobody wanted that: its client may submit what is missing."""


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
    answer : Answer, optional
        What others make the answer of; stored with a detached job.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        plan: Plan,
        options: JobOptions,
        answer: Answer | None = None,
    ) -> None:
        self.link = link
        self.keys = keys
        self.plan = plan
        self.options = options
        self.answer = answer
        #: Task -> value, of the outputs that arrived.
        self.received: dict[int, Any] = {}
        #: The state in which `gather` found the job ended without its outputs.
        self.ended: str | None = None
        self.id = secrets.token_hex(16)  # random, never used again
        self.epoch = secrets.token_hex(8)
        self._lease = int(options.client_lease * 1000)
        self._said = False
        self._born = time.monotonic()
        self._kept = False
        self._consts: list[str] = []

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
        job, vain = self, 0
        values: dict[Key, Any] = {}
        while True:
            try:
                job._compute_once()
                return values | job.values()
            except _Dropped as why:
                vain = 0 if job.received else vain + 1
                if vain > AGAIN:
                    raise JobLost(f"{why}; given up after {AGAIN} more in vain") from None
                values |= job.values()
                job = job.again(job.received)
                logger.warning("%s: %d tasks go again, as job %s", why, len(job.plan), job.id)

    def _compute_once(self) -> None:
        try:
            self.submit()
            self.gather()
            if not sweep(self.link, self.keys, self.id):
                # All outputs are here, and edges are still to be counted: nobody needs them now.
                self.cancel("its outputs arrived")
                sweep(self.link, self.keys, self.id)
        except BaseException:
            self._abandon()
            raise
        finally:
            self.let_go()

    def again(self, received: Mapping[int, Any]) -> Job:
        """Return a new job, not yet submitted, for the outputs that `received` lacks.

        Its client slept past its lease, or the server lost its data: the graph is still here.

        Parameters
        ----------
        received : Mapping
            Task -> value, as `received` has them.
        """
        return Job(self.link, self.keys, self.plan.without(received), self.options)

    def values(self) -> dict[Key, Any]:
        """Return requested key -> value, of the outputs that arrived."""
        return {k: self.received[t] for k, t in self.plan.outputs.items() if t in self.received}

    def detach(self) -> None:
        """Submit, and leave: once this returned, the job does not need its client."""
        try:
            state = self.submit()
            if state in {"", "cancelled"}:
                self.gather()  # raises what happened
        except BaseException:
            self._abandon()
            raise
        finally:
            self.let_go()

    # -- submit -------------------------------------------------------------------------

    def submit(self) -> str:
        """Upload the graph and return the job's state; its first tasks may be done by then."""
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
        packed = [(name, struct.pack(f">{n}{code}", *counts)) for name, counts, code in stage]
        if self.answer is not None:
            packed += [("new_answer", self.answer.encode()), ("new_names", pack_names(plan.keys))]
        for name, data in packed:
            life = min(STAGED, LEASES * self._lease)
            self.link.send("SET", self.keys(name, self.id), data, "PX", life)
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
            ttl=int(self.options.result_ttl * 1000),
        )
        self._upload_blocks()
        self.link.send_call("seal", self.keys, job=self.id)
        state = self.link.receive_all()[-1].decode()
        if state == "incomplete":
            raise JobFailed(f"the upload of job {self.id} is incomplete")
        return str(state)

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
            self._keep_lease()
            block = self.plan.block(first)
            try:
                payload, digests = encoder.encode(block)
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
                consts=pack(digests),
            )
            replies = self.link.receive_all(but=AHEAD)
            if replies and replies[-1] in (b"failed", b"cancelled", b""):
                return  # what happened is told by gather

    def _store_constant(self, digest: str, data: bytes) -> None:
        self._consts.append(self.keys("const", self.id, digest))
        self.link.send("SET", self._consts[-1], data, "PX", STAGED)

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

    def gather(self, deadline: float | None = None) -> dict[int, Any]:
        """Wait for the outputs; return task -> value.

        Parameters
        ----------
        deadline : float, optional
            When to give up with a `TimeoutError`; by `time.monotonic`.
        """
        monitor = Monitor(
            self.link, self.keys, self.id, self.options.ft_interval, self.options.alive_expiry
        )
        values = self.received
        wanted = len(set(self.plan.outputs.values()))
        cursor, finished, heard = 0, -1, time.monotonic()
        renew_at = heard + self.options.client_lease
        while True:
            answer = self.link.call(
                "gather",
                self.keys,
                job=self.id,
                cursor=cursor,
                limit=GATHER,
            )
            state, reason, progress, cursor, *items = unpack(answer)
            self._read_items(items, values)
            if len(values) == wanted:
                break
            if state != b"running" and not items:
                self.ended = state.decode()
                raise self._verdict(self.ended, reason)
            now = time.monotonic()
            self._keep_lease()
            if now >= renew_at:
                self.renew_values()
                renew_at = now + self.options.client_lease
            if progress != finished:
                finished, heard = progress, now
            if deadline is not None and now >= deadline:
                raise TimeoutError(f"job {self.id} has no answer yet: {progress} tasks are done")
            if not items:
                left = min(WAIT, self.options.client_lease / 4)
                if deadline is not None:
                    left = max(0.01, min(left, deadline - now))
                self.link.command("BLPOP", self.keys("news", self.id), left)
                now = time.monotonic()
                monitor.run(now)
                if now - heard >= min(QUIET, self.options.no_workers_timeout or QUIET):
                    self._look_for_workers(now - heard)
        return values

    def renew_values(self) -> None:
        """Renew the expiry of large values and constants, slice by slice."""
        if not self.options.result_ttl:  # else monitors do
            renew_values(self.link, self.keys, self.id)

    def _read_items(self, items: list[Any], values: dict[int, Any]) -> None:
        """Enter the values of an answer: task, record, task, record, ..."""
        for task, record in zip(items[::2], items[1::2], strict=True):
            if task in values:
                continue
            if not record:
                raise JobFailed(f"the value of {self._name(task)} is gone from the server")
            data, attempt = read_record(record)
            if data is None:
                data = self.link.command("GET", self.keys("value", self.id, task, attempt))
            if data is None:
                raise JobFailed(f"the value of {self._name(task)} is gone from the server")
            self._keep_lease(len(data))
            try:
                values[task] = loads(data)
            except Exception as error:
                error.add_note(f"dask-redisq: while reading the result of {self._name(task)}")
                raise

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
        self.link.call("cancel", self.keys, job=self.id, reason=reason, tomb="")

    def _keep_lease(self, upcoming: int = 0) -> None:
        """Have the lease renewed beside us if the job is old, or `upcoming` bytes may take long."""
        if self._kept or self.options.result_ttl:
            return
        third = self.options.client_lease / 3
        if upcoming > SLOW * third or time.monotonic() - self._born > third:
            self._kept = True
            client_lease.hold(self.link.url, self.keys.queue, self.id, self.options.client_lease)

    def let_go(self) -> None:
        """Have the lease renewed no more."""
        if self._kept:
            client_lease.drop(self.link.url, self.id)

    def _abandon(self) -> None:
        """Cancel and remove; an error here must not hide the one that is on its way."""
        patience, self.link.patience = self.link.patience, 2.0
        try:
            self.cancel("its client gave up")
            sweep(self.link, self.keys, self.id)
            for first in range(0, len(self._consts), 500):  # those whose block never came, too
                self.link.command("UNLINK", *self._consts[first : first + 500])
        except RedisqError as error:
            logger.warning("job %s could not be removed, its keys expire: %s", self.id, error)
        finally:
            self.link.patience = patience

    def _name(self, task: int) -> str:
        return f"task {self.plan.keys[task]!r}"

    def _verdict(self, state: str, reason: bytes) -> BaseException:
        """Return the exception for a job that ended without its outputs."""
        if state == "done":
            return JobFailed(f"job {self.id} is done, but an output is missing")
        if state == "":
            error: BaseException = why_gone(reason, self.id, self.keys.queue)
        else:
            error = as_exception(reason, self.id, self.plan.keys)
        if not self.options.result_ttl and is_dropped(state, reason):
            return _Dropped(str(error))
        return error
