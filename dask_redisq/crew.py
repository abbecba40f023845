"""The slots of a worker: started, looked after, ended, and started again when they die."""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dask_redisq.allowance import Allowance
from dask_redisq.guard import Guard
from dask_redisq.keys import Keys
from dask_redisq.output import Outputs
from dask_redisq.page import Cursor, Wait
from dask_redisq.passwords import redact
from dask_redisq.registration import Registration
from dask_redisq.retirement import Activity, Terms
from dask_redisq.slot_process import SlotProcess, start_slot
from dask_redisq.verdict import how_it_ended
from dask_redisq.watch import due_at, find_overdue, hostages_since

__all__ = ["Crew", "WorkerOptions"]

logger = logging.getLogger("dask_redisq.worker")

#: Seconds that a task of a cancelled job may still run.
GRACE = 1.0
#: Seconds between two questions whether a slot is idle, while one holds tasks up.
ASK_AGAIN = 1.0
#: Stand-ins for slots whose tasks wait for tasks: so many at least may be, and so many seconds they
#: stay when none waits, since the next task may well wait too.
LEAST_STAND_INS, STAY = 4, 2.0
#: Further ones for tasks that wait for futures, and cannot do the work themselves.
MORE = 32
#: Slots that die young are started again with a growing pause, in seconds.
YOUNG, MOST_PAUSE = 5.0, 10.0


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker was asked to run.

    Attributes
    ----------
    queues : tuple of str
        Queues to serve, in order.
    url : str
        The server.
    nworkers : int
        Number of slots.
    name : str
        Shown to people; not unique.
    tags : tuple of str
        What the slots carry besides their worker's name and Python version.
    alive_expiry : float
        Seconds without a beat after which the worker counts as dead.
    death_timeout : float
        Seconds for which a starting worker tries to find its server.
    resources : dict of str to float
        What the slots share: tasks that need some of it run as long as there is enough.
    preload : tuple of str
        What each slot imports and runs first; see `dask_redisq.preload`.
    environment : dict of str to str
        What its slots have in their environment besides its own.
    terms : Terms
        How long it stays.
    """

    queues: tuple[str, ...]
    url: str
    nworkers: int
    name: str
    tags: tuple[str, ...] = ()
    alive_expiry: float = 10.0
    death_timeout: float = 60.0
    resources: dict[str, float] = field(default_factory=dict)
    preload: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    terms: Terms = field(default_factory=Terms)

    def __repr__(self) -> str:
        # Not all of it: the URL may hold a password, the environment a secret.
        slots = f"{self.nworkers} slots on {redact(self.url)}"
        return f"<WorkerOptions {self.name}: {slots}, queues {', '.join(self.queues)}>"


@dataclass
class _Place:
    """Room for one slot: the process in it, or when the next one starts."""

    child: SlotProcess | None = None
    start_at: float = 0.0
    deaths: int = 0


class Crew:
    """The slots of one worker.

    Parameters
    ----------
    options : WorkerOptions
        How many, and how they run.
    tags : sequence of str
        What they carry.
    registration : Registration
        How the queues know of them.
    keys : list of Keys
        The queues that new ones serve; the supervisor's own list.
    """

    def __init__(
        self,
        options: WorkerOptions,
        tags: Sequence[str],
        registration: Registration,
        keys: list[Keys],
    ) -> None:
        self.options = options
        self.tags = tags
        self.registration = registration
        self.keys = keys
        self.outputs = Outputs()
        self.guard = Guard()
        most = options.terms.max_tasks
        self.allowance = None if most is None else Allowance(most)
        self.places = [_Place() for _ in range(options.nworkers)]
        self._surplus_at = 0.0
        self._was_ready = False
        #: Why a slot gave up while none had ever been ready: all would go that way.
        self.misfit = ""
        #: Where its slots put uploaded files; made with the first of them.
        self.files = str(Path(tempfile.gettempdir()) / f"dask-redisq-{secrets.token_hex(8)}")

    def __repr__(self) -> str:
        return f"<Crew of {self.options.name}, {len(list(self))} of {len(self.places)} slots>"

    def __iter__(self) -> Iterator[SlotProcess]:
        return iter([place.child for place in self.places if place.child is not None])

    # -- start and end --------------------------------------------------------------------

    def fill(self, now: float) -> None:
        """Start a slot in each place that is free, and not only since a moment ago."""
        self._make_places(now)
        for place in self.places:
            if place.child is None and now >= place.start_at:
                place.child = self._start(now)

    def _make_places(self, now: float) -> None:
        """Have a place more for each slot whose task waits for tasks, as long as it does."""
        wanted = self._answer_waits()
        if wanted >= len(self.places):
            self._surplus_at = now + STAY
            self.places += [_Place() for _ in range(wanted - len(self.places))]
        elif now >= self._surplus_at:
            self._leave_place(len(self.places) - wanted)

    def _answer_waits(self) -> int:
        """Grant a stand-in to each task that asks, up to a most; return how many places to have."""
        waiting = [child for child in self if child.page.waits()]
        most = self.options.nworkers + max(LEAST_STAND_INS, self.options.nworkers)
        asking = [child for child in waiting if child.page.stand_in() is None]
        wanted = self.options.nworkers + len(waiting) - len(asking)
        for child in asking:
            granted = wanted < most + (MORE if child.page.waits_for() == Wait.FUTURES else 0)
            if granted and self.options.resources:
                self.registration.lend(self.keys, child)
            child.page.answer_wait(granted=granted)
            wanted += granted
        if any(child.page.waits_for() != Wait.LOCK for child in waiting):
            # Story: one holds a lock and computes. Who stands in for it took a task that waits for
            # the lock, as do all who stand in for others: there are no more of those to be had.
            locked = [c for c in self if c.page.waits_for() == Wait.LOCK and c not in waiting]
            wanted = max(wanted, min(len(waiting) + len(locked) + 1, most + MORE))
        return wanted

    def _leave_place(self, count: int) -> None:
        """Give up places that are not needed any more: empty ones, or those of idle slots."""
        for place in [place for place in self.places if place.child is None][:count]:
            self.places.remove(place)
            count -= 1
        ending = sum(child.stopping for child in self)
        free = [c for c in self if not (c.stopping or c.page.waits())]
        free.sort(key=lambda child: (child.page.read().seq > 0, -child.started))
        for child in free[: max(0, count - ending)]:
            child.stop()

    def _start(self, now: float, *, counted: bool = True) -> SlotProcess:
        """Register a slot and start its process; in this order: only the registered may lease."""
        slot = secrets.token_hex(8)
        for keys in self.keys:
            self.registration.register(keys, slot, 0)
        queues = [keys.queue for keys in self.keys]
        opt = self.options
        child = start_slot(
            slot, queues, self.tags, opt.name, opt.url, self.outputs, now, opt.environment,
            opt.nworkers, self.files, opt.preload,
            self.allowance.fd if self.allowance is not None and counted else None,
        )  # fmt: skip
        self.guard.watch(child.process.pid)
        return child

    def reap(self, now: float) -> None:
        """Find slots that ended, give their leases back, and make room for others."""
        for place in self.places:
            child = place.child
            if child is None or child.poll() is None:
                continue
            place.child = None
            self.guard.forget(child.process.pid)
            held = child.page.read().seq > 0
            self.registration.remove_slot(self.keys, child)
            orderly = child.killed or (child.process.returncode == 0 and not held)
            if why := child.page.given_up():
                self._note_misfit(child, why)
            elif not orderly:
                logger.warning(
                    "slot %s ended: %s", child.slot, how_it_ended(child.process.returncode)
                )
            young = not orderly and now - child.started < YOUNG
            place.deaths = place.deaths + 1 if young else 0
            place.start_at = (
                now + min(MOST_PAUSE, 0.1 * 2**place.deaths) if place.deaths > 1 else now
            )
            self._was_ready = self._was_ready or _is_ready(child)
            child.close()

    def _note_misfit(self, child: SlotProcess, why: str) -> None:
        """Note that a slot gave up as it began, or say so if others once went beyond that."""
        if self._was_ready or any(map(_is_ready, self)):
            logger.warning("slot %s ended: %s", child.slot, why)
        elif not self.misfit:
            self.misfit = why

    def stop(self) -> None:
        """Ask all slots, once, to end after the task in hand."""
        for child in self:
            child.stop()

    def drain(self, now: float) -> None:
        """As `stop`, but for as many slots as there are tasks that wait for tasks.

        Those end after what they wait for, which would never come if nobody ran it. So it is not
        counted, either, once as many tasks began as may.
        """
        self._answer_waits()
        spent = self.allowance is not None and self.allowance.left == 0
        waiting = [child for child in self if child.page.waits()]
        able = [c for c in self if not (c in waiting or c.stopping or (spent and c.counted))]
        able = able[: len(waiting)]
        for child in self:
            if child not in able:
                child.stop()
        lacking = len(waiting) - len(able)
        empty = [place for place in self.places if place.child is None]
        self.places += [_Place() for _ in range(lacking - len(empty))]
        free = [place for place in self.places if place.child is None and now >= place.start_at]
        for place in free[:lacking]:
            place.child = self._start(now, counted=not spent)

    def kill(self) -> None:
        """End all slots now."""
        for child in self:
            child.kill()

    def close(self) -> None:
        """End all slots, and what looks after them."""
        for place in self.places:
            if place.child is not None:
                place.child.kill()
                place.child.wait()
                self.guard.forget(place.child.process.pid)
                place.child.close()
                place.child = None
        self.outputs.close()
        self.guard.close()
        if self.allowance is not None:
            self.allowance.close()
        shutil.rmtree(self.files, ignore_errors=True)

    # -- look after -------------------------------------------------------------------------

    def activity(self) -> Activity:
        """Return what the slots do now, and how much they did."""
        return Activity(
            any(child.page.read().seq > 0 for child in self),
            any(map(_is_ready, self)),
            {child.slot: child.page.leases() for child in self},
            None if self.allowance is None else self.allowance.left,
        )

    def due(self) -> list[float]:
        """Return when something is to be done for a slot, by `time.monotonic`."""
        due = [place.start_at for place in self.places if place.child is None]
        for child in self:
            cursor = child.page.read()
            at = due_at(cursor, child.page.read_limit(cursor))
            due += [time_ for time_ in (child.kill_at, at) if time_]
        return due

    def cancel(self, slot: str, job: str, seq: int) -> None:
        """Let a slot begin no further task of a lease, and kill it if one still runs after GRACE.

        Whatever its page says now: the answer that gave it the lease may still be under way. The
        slot looks before it begins, and the page is read again after GRACE.
        """
        for child in self:
            if child.slot == slot:
                child.cancel(job.encode(), seq, time.monotonic() + GRACE)

    def look_after(self, now: float) -> None:
        """Do what the slots' pages ask for: kill one, or give tasks back that it holds up."""
        for child in self:
            self._look_after(child, now)

    def _look_after(self, child: SlotProcess, now: float) -> None:
        cursor = child.page.read()
        if child.kill_at is not None and now >= child.kill_at:
            # A task of a job that was cancelled a moment ago still runs, or none.
            if child.runs_cancelled():
                child.kill()
            else:
                child.kill_at = None
        overdue = find_overdue(cursor, child.page.read_limit(cursor), now)
        if overdue is not None and not child.killed:
            logger.warning(
                "slot %s: a task ran longer than its timeout of %g s; it is killed",
                child.slot,
                overdue.seconds,
            )
            child.overdue = overdue
            child.kill()
        since = hostages_since(cursor)
        if since is not None and now >= max(since, child.ask_at) and child.given != cursor.seq:
            self._give_back(child, cursor, now)

    def _give_back(self, child: SlotProcess, cursor: Cursor, now: float) -> None:
        """Give others what waits behind a long task, if somebody waits for work."""
        keys = next((k for k in self.keys if k.queue == child.queues[cursor.queue]), None)
        if keys is None:
            return
        # The slot hears of it first. Were it told after the answer, its long task would end
        # meanwhile, and it would begin what others were given with that same answer: in a storm,
        # most of the tasks that ran twice for no fault at all.
        child.page.give_back(cursor.seq)
        now_at = child.page.read()
        if now_at.seq != cursor.seq:
            return
        answer = self.registration.give_back(keys, child, now_at)
        if answer == b"nobody":
            child.page.give_back(0)
            child.ask_at = now + ASK_AGAIN
            return
        child.given = cursor.seq


def _is_ready(child: SlotProcess) -> bool:
    """Tell whether a slot has come so far that it called the server."""
    return any(child.page.last_answered(i) for i in range(len(child.queues)))
