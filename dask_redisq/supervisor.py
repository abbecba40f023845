"""A worker: a supervisor process that keeps its slots and its alive key.

It renews the alive key from a process of its own, since a thread beside the user's code
starves while C code holds the GIL (7.4 s measured). It sees a dead slot at once, gives its lease
back and starts another. One thread, one selector: children, signals, and the server's words
(``stop``, ``cancel``) all arrive in the same loop.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import secrets
import selectors
import signal
import socket
import time
from dataclasses import dataclass, field

from dask_redisq.control import ControlWords, Word
from dask_redisq.errors import ServerRefused, ServerUnavailable
from dask_redisq.guard import Guard
from dask_redisq.keys import Keys
from dask_redisq.link import Link, redact
from dask_redisq.monitor import Monitor
from dask_redisq.output import Outputs
from dask_redisq.page import Cursor
from dask_redisq.registration import Registration
from dask_redisq.server_check import warn_about_server
from dask_redisq.slot_process import SlotProcess, start_slot
from dask_redisq.verdict import how_it_ended
from dask_redisq.versions import python_tag
from dask_redisq.watch import due_at, find_overdue, hostages_since

__all__ = ["Supervisor", "WorkerOptions", "run_worker"]

logger = logging.getLogger("dask_redisq.worker")

#: Seconds that a task of a cancelled job may still run.
GRACE = 1.0
#: Seconds that a stopped worker waits for a server that is away.
LAST_PATIENCE = 2.0
#: Seconds between two turns of the loop if nothing happens: slots' pages are looked at in each.
TICK = 0.25
#: Seconds between two questions whether a slot is idle, while one holds tasks up.
ASK_AGAIN = 1.0
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
    environment : dict of str to str
        What its slots have in their environment besides its own.
    """

    queues: tuple[str, ...]
    url: str
    nworkers: int
    name: str
    tags: tuple[str, ...] = ()
    alive_expiry: float = 10.0
    death_timeout: float = 60.0
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class _Place:
    """Room for one slot: the process in it, or when the next one starts."""

    child: SlotProcess | None = None
    start_at: float = 0.0
    deaths: int = 0


class Supervisor:
    """The loop of one worker; see the module.

    Parameters
    ----------
    options : WorkerOptions
        How to run.
    """

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self.worker = secrets.token_hex(8)  # new at each start: pids and host names come again
        self.keys = [Keys(name) for name in options.queues]
        self.link = Link(options.url, patience=None)
        for keys in self.keys:
            self.link.watch(keys)
        self.words = ControlWords(options.url, self.worker)
        self.outputs = Outputs()
        self.monitors = [
            Monitor(self.link, k, self.worker, expiry=options.alive_expiry) for k in self.keys
        ]
        self.places = [_Place() for _ in range(options.nworkers)]
        self.stopping = False
        self.signals = 0
        self._next_beat = 0.0
        self._tags = tuple(
            dict.fromkeys([python_tag(), options.name, socket.gethostname(), *options.tags])
        )
        self.registration = Registration(
            self.link, self.worker, options.name, self._tags, options.nworkers, options.alive_expiry
        )

    def __repr__(self) -> str:
        running = sum(p.child is not None for p in self.places)
        return (
            f"<Supervisor {self.options.name} {self.worker}, {running} of {len(self.places)} slots>"
        )

    # -- life ---------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until stopped; return the exit code."""
        if not self._find_server():
            return 1
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        self.guard = Guard()
        self._register_all()
        logger.info(
            "worker %s: %d slots on %s, queues %s",
            self.options.name,
            len(self.places),
            redact(self.options.url),
            ", ".join(self.options.queues),
        )
        try:
            while self._turn(wake_read):
                pass
            self.registration.leave(self.keys)
        except ServerUnavailable as error:
            logger.warning("left without a word to the server: %s", error)
        finally:
            self._kill_all()
            self.outputs.close()
            self.guard.close()
            signal.set_wakeup_fd(-1)
            os.close(wake_read)
            os.close(wake_write)
        self.link.close()
        self.words.close()
        logger.info("worker %s ended", self.options.name)
        return 0

    def _find_server(self) -> bool:
        """Connect; a starting worker that finds no server says so once and gives up in time."""
        deadline, said = time.monotonic() + self.options.death_timeout, False
        while True:
            try:
                self.link.connect()
                warn_about_server(self.link, logger)
                return True
            except ServerRefused as error:
                logger.error("%s", error)  # noqa: TRY400 - a traceback says no more
                return False
            except ServerUnavailable as error:
                if not said:
                    logger.warning("%s; trying for %g s", error, self.options.death_timeout)
                    said = True
                if time.monotonic() >= deadline:
                    logger.error("gave up: %s", error)  # noqa: TRY400 - a traceback says no more
                    return False
                time.sleep(min(0.5, max(0.01, deadline - time.monotonic())))

    def _on_stop(self, _number: int, _frame: object) -> None:
        self.stopping = True
        self.signals += 1
        self.link.patience = LAST_PATIENCE  # the server may be away: leave all the same

    # -- one turn of the loop -------------------------------------------------------------

    def _turn(self, wake_read: int) -> bool:
        """Do what is due, then wait for something to happen; false when all is over."""
        now = time.monotonic()
        self._reap(now)
        if self.stopping:
            self._drain()
            if all(place.child is None for place in self.places):
                return False
        else:
            self._fill(now)
        for child in self._children():
            self._look_after(child, now)
        if now >= self._next_beat:
            self._beat()
        for monitor in self.monitors:
            monitor.run(now)
        self._listen(wake_read, now)
        return True

    def _listen(self, wake_read: int, now: float) -> None:
        """Wait for a signal, a child's end, or a word from the server."""
        self.words.ask(self.keys, now)
        due = [self._next_beat, now + TICK]
        due += [p.child.kill_at for p in self.places if p.child and p.child.kill_at]
        due += [p.start_at for p in self.places if not p.child]
        for child in self._children():
            cursor = child.page.read()
            due += [at for at in [due_at(cursor, child.page.read_limit(cursor))] if at]
        with selectors.DefaultSelector() as selector:
            selector.register(wake_read, selectors.EVENT_READ)
            if self.words.listening:
                selector.register(self.words, selectors.EVENT_READ)
            selector.select(max(0.0, min(due) - time.monotonic()))
        with contextlib.suppress(BlockingIOError):
            os.read(wake_read, 4096)
        words = self.words.read()
        for word in words:
            self._obey(word)
        self.words.delete(self.link, words)

    def _obey(self, word: Word) -> None:
        """Do what a control word says; a word that comes twice changes nothing the second time."""
        if word.verb == "stop" and word.keys in self.keys:
            logger.info("queue %s was removed", word.keys.queue)
            self._leave_queue(word.keys)
        elif word.verb == "cancel":
            for place in self.places:
                child = place.child
                # Whatever its page says now: the answer that gave it the lease may still be under
                # way. The slot looks before it begins, and the page is read again after GRACE.
                if child is not None and child.slot == word.slot:
                    child.cancel(word.job.encode(), time.monotonic() + GRACE)

    def _leave_queue(self, keys: Keys) -> None:
        """Leave one queue; without any the worker ends."""
        self.registration.leave([keys])
        self.keys.remove(keys)
        self.monitors = [m for m in self.monitors if m.keys is not keys]
        if not self.keys:
            self.stopping = True
        else:  # its slots still know the queue: new ones do not
            for place in self.places:
                if place.child is not None:
                    place.child.stop()

    # -- slots --------------------------------------------------------------------------

    def _fill(self, now: float) -> None:
        for place in self.places:
            if place.child is None and now >= place.start_at:
                place.child = self._start(now)

    def _start(self, now: float) -> SlotProcess:
        """Register a slot and start its process; in this order: only the registered may lease."""
        slot = secrets.token_hex(8)
        for keys in self.keys:
            self.registration.register(keys, slot, 0)
        queues = [keys.queue for keys in self.keys]
        opt = self.options
        child = start_slot(
            slot, queues, self._tags, opt.name, opt.url, self.outputs, now, opt.environment
        )
        self.guard.watch(child.process.pid)
        return child

    def _reap(self, now: float) -> None:
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
            if not orderly:
                logger.warning(
                    "slot %s ended: %s", child.slot, how_it_ended(child.process.returncode)
                )
            young = not orderly and now - child.started < YOUNG
            place.deaths = place.deaths + 1 if young else 0
            place.start_at = (
                now + min(MOST_PAUSE, 0.1 * 2**place.deaths) if place.deaths > 1 else now
            )
            child.close()

    def _drain(self) -> None:
        """Ask the slots to end after the task in hand; a second signal kills them."""
        for place in self.places:
            if place.child is not None:
                place.child.stop()
                if self.signals > 1:
                    place.child.kill()

    def _look_after(self, child: SlotProcess, now: float) -> None:
        """Do what a slot's page asks for: kill it, or give tasks back that it holds up."""
        cursor = child.page.read()
        if child.kill_at is not None and now >= child.kill_at:
            # A task of a job that was cancelled a moment ago still runs, or none.
            if cursor.job == child.kill_job:
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
        answer = self.registration.give_back(keys, child, cursor)
        if answer == b"nobody":
            child.ask_at = now + ASK_AGAIN
            return
        child.given = cursor.seq
        if answer == b"given":
            child.page.give_back(cursor.seq)

    # -- the beat -----------------------------------------------------------------------

    def _children(self) -> list[SlotProcess]:
        return [place.child for place in self.places if place.child is not None]

    def _register_all(self) -> None:
        for keys in self.keys:
            self.registration.register(keys)
            for child in self._children():
                seq = child.page.last_answered(child.queues.index(keys.queue))
                self.registration.register(keys, child.slot, seq)

    def _beat(self) -> None:
        """Renew the alive keys; a registration that vanished is made again."""
        for keys in self.registration.renew(self.keys, self._children()):
            logger.warning("queue %s forgot this worker: registering again", keys.queue)
            self._register_all()
        self._next_beat = time.monotonic() + self.options.alive_expiry / 3

    def _kill_all(self) -> None:
        for place in self.places:
            if place.child is not None:
                place.child.kill()
                place.child.wait()
                self.guard.forget(place.child.process.pid)
                place.child.close()
                place.child = None


def run_worker(options: WorkerOptions) -> int:
    """Run a worker in this process until it is stopped; return its exit code."""
    if platform.system() == "Windows":
        raise OSError("dask-redisq workers need a POSIX system")
    return Supervisor(options).run()
