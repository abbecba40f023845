"""One job from its client's side: submit it, follow it, sweep it; submit it again if it got lost.

Work starts before the upload ends: create (counters) -> blocks -> seal. Outputs are gathered
while the job runs (`follow`).
"""

from __future__ import annotations

import logging
import secrets
import struct
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self

from dask.typing import Key

from dask_redisq.answer import Answer, pack_names
from dask_redisq.callbacks import Observer
from dask_redisq.codec import pack
from dask_redisq.encoder import BlockEncoder
from dask_redisq.errors import JobFailed, JobLost, RedisqError, ValueTooLarge
from dask_redisq.follow import Dropped, Follower
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.monitor import sweep
from dask_redisq.options import JobOptions
from dask_redisq.plan import BLOCK, Plan
from dask_redisq.server_check import most_bytes
from dask_redisq.task_warnings import issue_warnings
from dask_redisq.trust import BLOCK as A_BLOCK
from dask_redisq.trust import UNSIGNED, Signer
from dask_redisq.unsendable import unsendable
from dask_redisq.versions import about_client, python_tag
from dask_redisq.wishes import check_policy

__all__ = ["Job", "JobOptions"]

logger = logging.getLogger("dask_redisq")

#: Times that an upload is sent of which the server lost a part meanwhile.
UPLOADS = 10
#: Blocks whose receipt may be under way while the next one is pickled.
AHEAD = 2
#: Bytes that fit into any server, whatever its limit.
FITS = 1_000_000
#: Milliseconds that counters wait for create, constants for their block; or the life of a job.
STAGED = 600_000
#: Leases for which the keys of a job stay without its client (lua/lib/life.lua).
LEASES = 5
#: Times in a row that a job is submitted again without one output more.
AGAIN = 5


class Job(Follower):
    """A graph that is submitted.

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
    signer : Signer
        Signs what is sent, and checks what comes.
    answer : Answer, optional
        What others make the answer of; stored with a detached job.
    observer : Observer, optional
        Who wants to know what happens to the tasks.
    rerun : callable, optional
        Computes the task of a key in this process, if one raised: for a debugger.
    """

    #: Whether the others go on without tasks that cannot be sent.
    unrelated = False

    def __init__(
        self,
        link: Link,
        keys: Keys,
        plan: Plan,
        options: JobOptions,
        signer: Signer = UNSIGNED,
        answer: Answer | None = None,
        observer: Observer | None = None,
        rerun: Callable[[Key], Any] | None = None,
    ) -> None:
        job = secrets.token_hex(16)  # random, never used again
        seal = signer.seal(keys.queue, job)
        super().__init__(link, keys, job, plan.wanted, plan.keys, seal, options)
        self.plan = plan
        self.signer = signer
        self.answer = answer
        self.observer = observer
        self.rerun = rerun
        self.epoch = secrets.token_hex(8)
        self.restricted = plan.restricted
        #: The tasks that cannot be sent, if that is why it failed, and the error of each.
        self.unsent: dict[int, Exception] = {}
        #: Whether its client waits for it at once.
        self.waits = True
        self._lease = int(options.client_lease * 1000)
        self._staged: list[str] = []
        self._announced = False

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
            except Dropped as why:
                vain = 0 if job.received else vain + 1
                if not self.options.pure:
                    job.received.clear()  # what goes again may not fit to it
                if vain > AGAIN:
                    raise JobLost(f"{why}; given up after {AGAIN} more in vain") from None
                values |= job.values()
                job = job.again(job.received)
                # Not `why`: who keeps records would keep its traceback, and all data of the job.
                logger.warning("%s: %d tasks go again, as job %s", str(why), len(job.plan), job.id)
                continue
            except (Exception, SystemExit) as error:  # a task's own, if there is a culprit
                if not job.can_replace(error):
                    raise
                failure = error
            # Not while that error is handled: what this may raise is not of its making.
            job.replace(failure)
            del failure  # its traceback holds this frame
            values |= job.values()
            job = job.again(job.received)
            if not len(job.plan):
                return values

    def can_replace(self, _: BaseException) -> bool:
        """Tell whether something can take the place of the result of the task that failed."""
        return self.rerun is not None and self.raised

    def replace(self, error: BaseException) -> None:
        """Enter that; the rest is submitted again."""
        if self.rerun is None or self.culprit is None:
            raise error
        key = self.plan.keys[self.culprit]
        self.received[self.culprit] = self.rerun(key)
        warnings.warn(
            f"task {key!r} raised {error!r} on a worker, and not here: its value here is used",
            stacklevel=3,
        )

    def _compute_once(self) -> None:
        try:
            self.submit()
            self.gather()
            warned = self._clear_away()
        except BaseException:
            self.abandon()
            raise
        finally:
            self.let_go()
        issue_warnings(warned)  # a filter may make an error of one

    def _clear_away(self) -> list[bytes]:
        """Remove the job, which nobody needs any more; return what its tasks warned of."""
        self.link.send("SMEMBERS", self.keys("warnings", self.id))
        self.link.send_call("sweep", self.keys, job=self.id)
        warned, answer = self.link.receive_all()[-2:]
        if answer != 1 and not sweep(self.link, self.keys, self.id):
            # Edges are still to be counted: nobody needs them now.
            self.cancel("its outputs arrived")
            sweep(self.link, self.keys, self.id)
        return list(warned)

    def again(self, received: Mapping[int, Any]) -> Self:
        """Return a new job, not yet submitted, for the outputs that `received` lacks.

        Its client slept past its lease, or the server lost its data: the graph is still here.

        Parameters
        ----------
        received : Mapping
            Task -> value, as `received` has them.
        """
        plan = self.plan.without(received)
        if self.observer is not None:  # they are no tasks of that job, and may not have been told
            for task in sorted(received):
                self.observer.done(self.plan.keys[task], received[task])
        return type(self)(
            self.link, self.keys, plan, self.options, self.signer,
            observer=self.observer, rerun=self.rerun,
        )  # fmt: skip

    def values(self) -> dict[Key, Any]:
        """Return requested key -> value, of the outputs that arrived."""
        return {k: self.received[t] for k, t in self.plan.outputs.items() if t in self.received}

    def detach(self) -> None:
        """Submit, and leave: once this returned, the job does not need its client.

        One that is kept needs its client's lease, but nobody who waits for it.
        """
        self.waits = False
        try:
            state = self.submit()
            if state in {"", "cancelled"}:
                self.gather()  # raises what happened
        except BaseException:
            self.abandon()
            raise
        finally:
            self.let_go()

    # -- submit -------------------------------------------------------------------------

    def submit(self) -> str:
        """Upload the graph and return the job's state; its first tasks may be done by then."""
        plan, hard = self.plan, self._restrictions()
        if self.options.get_task:
            check_policy(self.link, self.keys, self.options.get_task)
        for name, data in self._stages(hard):
            self._check_size(data)
            self._stage(self.keys(name, self.id), data)
        uses = sorted({kept.job for some in plan.outer.values() for kept in some})
        create = self.link.call if uses else self.link.send_call
        answer = create(
            "create",
            self.keys,
            job=self.id,
            n=len(plan),
            block=BLOCK,
            blocks=len(plan.block_starts()),
            epoch=self.epoch,
            chunk=self.options.chunk_size,
            priority=self.options.priority,
            most=self.options.num_workers,
            ordered=int(plan.ordered),
            parent=self.options.parent,
            policy=self.options.get_task,
            since=self.options.since,
            python=python_tag(),
            allowed=self.options.allowed_failures,
            retries=self.options.retries,
            retry_delay=int(self.options.retry_delay * 1000),
            patience=int(self.options.locality_wait * 1000),
            client_lease=self._lease,
            hard=pack([list(tags) for tags in hard]),
            ttl=int(self.options.result_ttl * 1000),
            pure=int(self.options.pure),
            watched=int(self._events is not None),
            kept=int(plan.kept),
            uses=pack(uses),
            by=pack(about_client()),
        )
        if answer == b"gone":
            raise JobLost(
                f"a persisted collection that the graph uses is gone from queue "
                f"{self.keys.queue!r} (one of the jobs {', '.join(uses)}): persist it again"
            )
        return self._upload()

    def _stage(self, name: str, data: bytes, *how: str) -> None:
        self._staged.append(name)
        self.link.send("SET", name, data, "PX", min(STAGED, LEASES * self._lease), *how)

    def _stages(self, hard: list[tuple[str, ...]]) -> list[tuple[str, bytes]]:
        """Return what create takes, by the names of its keys."""
        plan, n = self.plan, len(self.plan)
        stages = [
            ("new_wait", struct.pack(f">{n}I", *plan.wait_counts())),
            ("new_consumers", struct.pack(f">{n}I", *plan.consumer_counts())),
        ]
        if hard:
            numbers = {tags: i for i, tags in enumerate(hard, 1)}
            marks = [numbers.get(plan.restricted.get(t, ()), 0) for t in range(n)]
            stages.append(("new_restrict", bytes(marks)))
        if self.answer is not None:
            stages.append(("new_answer", self.answer.encode(self.seal)))
            stages.append(("new_names", pack_names(plan.keys, self.seal)))
        return stages

    def _upload(self) -> str:
        """Send the blocks and seal; again after a server that forgot some of them, too."""
        # What is told of single tasks may be there though no output is.
        waits = self.waits and self._events is None
        for _ in range(UPLOADS):
            self._upload_blocks()
            self.link.send_call("seal", self.keys, job=self.id, wait=int(waits))
            state = self.link.receive_all()[-1].decode()
            if state == "waiting":
                self.entered, state = True, "running"
            if state != "incomplete":
                return str(state)
            # Or the server came back older meanwhile, without blocks that it had confirmed.
        raise JobFailed(
            f"the upload of job {self.id} is incomplete, though it was sent {UPLOADS} times: the "
            "server lost part of it each time"
        )

    def _upload_again(self) -> None:
        self._upload()

    def _restrictions(self) -> list[tuple[str, ...]]:
        found = list(dict.fromkeys(self.plan.restricted.values()))
        if len(found) > 255:
            raise ValueError(f"a graph has at most 255 different restrictions, not {len(found)}")
        return found

    def _upload_blocks(self) -> None:
        encoder = BlockEncoder(self._store_constant, self.seal.name_constant)
        for number, first in enumerate(self.plan.block_starts()):
            self._keep_lease()
            block = self.plan.block(first)
            try:
                payload, digests = encoder.encode(block)
                self._check_size(payload)
            except Exception as why:
                self._blame(first, block.tasks, why)
                raise  # none of them is to blame by itself
            self.link.send_call(
                "put_block", self.keys, job=self.id, number=number, first=first,
                count=len(block.tasks),
                payload=self.seal.sign(A_BLOCK, b"", number, payload),
                edges=pack([block.inputs, list(block.outputs)]),
                consts=pack(list(dict.fromkeys(digests))),
                near=pack(block.near()),
                about=pack(self.plan.about(first)) if self.options.get_task else b"",
            )  # fmt: skip
            replies = self.link.receive_all(but=AHEAD)
            if replies and replies[-1] in (b"failed", b"cancelled", b""):
                return  # what happened is told by gather

    def _check_size(self, data: bytes) -> None:
        if len(data) > FITS and len(data) > (most := most_bytes(self.link, len(data))):
            raise ValueTooLarge(
                f"{len(data):,} bytes, and the server holds at most {most:,} in one value"
            )

    def _store_constant(self, digest: str, data: bytes) -> None:
        self._check_size(data)
        # The first is waited for: a server without the script has all sent again that comes behind.
        announce = self.link.send_call if self._announced else self.link.call
        announce("announce", self.keys, job=self.id, digest=digest)
        self._announced = True
        # A copy of this that comes late must not shorten the life that put_block gave it.
        self._stage(self.keys("const", self.id, digest), data, "NX")

    def _blame(self, first: int, tasks: list[Any], why: Exception) -> None:
        """Note which tasks of a block cannot be sent, and raise the error of the first of them."""
        found = unsendable(tasks, why, lambda i: self._name(first + i), every=self.unrelated)
        self.unsent = {first + i: error for i, error in found.items()}
        for error in self.unsent.values():
            raise error from error.__cause__

    # -- the end ----------------------------------------------------------------------------

    def cancel(self, reason: str) -> None:
        """Cancel the job: waiting tasks never start, running ones are stopped."""
        self.link.call("cancel", self.keys, job=self.id, reason=reason, tomb="")

    def abandon(self) -> None:
        """Cancel and remove; an error here must not hide the one that is on its way."""
        patience, self.link.patience = self.link.patience, 2.0
        try:
            self.cancel("its client gave up")
            warned = self._clear_away()
            for name in self._staged:  # no script may have seen these
                self.link.send("UNLINK", name)
            self.link.receive_all()
            with suppress(Warning):  # which a filter made an error
                issue_warnings(warned)
        except RedisqError as error:
            logger.warning("job %s could not be removed, its keys expire: %s", self.id, str(error))
        finally:
            self.link.patience = patience
