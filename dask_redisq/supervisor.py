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
from dataclasses import dataclass
from typing import Any

from dask_redisq.codec import pack
from dask_redisq.control import ControlWords, Word
from dask_redisq.errors import ServerRefused, ServerUnavailable
from dask_redisq.keys import Keys
from dask_redisq.link import Link, redact
from dask_redisq.monitor import Monitor
from dask_redisq.server_check import warn_about_server
from dask_redisq.slot_process import SlotProcess, start_slot
from dask_redisq.verdict import how_it_ended
from dask_redisq.versions import about_worker, python_tag

__all__ = ["Supervisor", "WorkerOptions", "run_worker"]

logger = logging.getLogger("dask_redisq.worker")

#: Seconds that a task of a cancelled job may still run.
GRACE = 1.0
#: Seconds that a stopped worker waits for a server that is away.
LAST_PATIENCE = 2.0
#: Seconds between two turns of the loop if nothing happens.
TICK = 1.0
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
    """

    queues: tuple[str, ...]
    url: str
    nworkers: int
    name: str
    tags: tuple[str, ...] = ()
    alive_expiry: float = 10.0
    death_timeout: float = 60.0


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
        self.monitors = [Monitor(self.link, k, self.worker) for k in self.keys]
        self.places = [_Place() for _ in range(options.nworkers)]
        self.stopping = False
        self.signals = 0
        self._next_beat = 0.0
        self._tags = tuple(
            dict.fromkeys([python_tag(), options.name, socket.gethostname(), *options.tags])
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
        self._register()
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
            self._leave(self.keys)
        except ServerUnavailable as error:
            logger.warning("left without a word to the server: %s", error)
        finally:
            self._kill_all()
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
        self._kill_overdue(now)
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
        self._leave([keys])
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
            self._register_slot(keys, slot, 0)
        queues = [keys.queue for keys in self.keys]
        options = self.options
        return start_slot(slot, queues, self._tags, options.name, options.url, now)

    def _reap(self, now: float) -> None:
        """Find slots that ended, give their leases back, and make room for others."""
        for place in self.places:
            child = place.child
            if child is None or child.process.poll() is None:
                continue
            place.child = None
            self._unregister_slot(child)
            orderly = child.process.returncode == 0
            if not orderly:
                logger.warning(
                    "slot %s ended: %s", child.slot, how_it_ended(child.process.returncode)
                )
            young = not orderly and child.kill_at is None and now - child.started < YOUNG
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
                    place.child.process.kill()

    def _kill_overdue(self, now: float) -> None:
        """Kill slots that still run a task of a job that was cancelled a moment ago."""
        for place in self.places:
            child = place.child
            if child is None or child.kill_at is None or now < child.kill_at:
                continue
            if child.page.read().job == child.kill_job:
                child.process.kill()
            else:
                child.kill_at = None

    def _kill_all(self) -> None:
        for place in self.places:
            if place.child is not None:
                place.child.kill()
                place.child.close()
                place.child = None

    # -- the server ---------------------------------------------------------------------

    def _register(self) -> None:
        for i, keys in enumerate(self.keys):
            self._register_slot(keys, "", 0)
            for child in [p.child for p in self.places if p.child is not None]:
                self._register_slot(keys, child.slot, child.page.last_answered(i))

    def _register_slot(self, keys: Keys, slot: str, seq: int) -> None:
        self.link.call(
            "register",
            keys,
            worker=self.worker,
            info=pack(about_worker(self.options.name, self._tags, len(self.places))),
            expiry=int(self.options.alive_expiry * 1000),
            slot=slot,
            seq=seq,
            tags=pack(list(self._tags)),
        )

    def _beat(self) -> None:
        """Renew the alive keys; a registration that vanished is made again."""
        held: list[list[Any]] = [[] for _ in self.keys]
        for place in self.places:
            if place.child is not None:
                cursor = place.child.page.read()
                for i, pairs in enumerate(held):
                    pairs += [place.child.slot, cursor.seq if cursor.queue == i else 0]
        for keys, pairs in zip(self.keys, held, strict=True):
            answer = self.link.call(
                "renew",
                keys,
                worker=self.worker,
                expiry=int(self.options.alive_expiry * 1000),
                held=pack(pairs),
            )
            if answer == b"unknown":
                logger.warning("queue %s forgot this worker: registering again", keys.queue)
                self._register()
        self._next_beat = time.monotonic() + self.options.alive_expiry / 3

    def _unregister_slot(self, child: SlotProcess) -> None:
        cursor = child.page.read()
        code = child.process.returncode
        for i, keys in enumerate(self.keys):
            mine = cursor.queue == i and cursor.seq > 0
            killed_by_us = child.kill_at is not None
            self.link.call(
                "unregister",
                keys,
                worker=self.worker,
                slot=child.slot,
                seq=cursor.seq if mine else -1,
                begun=cursor.begun if mine else -1,
                position=cursor.position if mine else -1,
                death=b"" if code == 0 or killed_by_us else pack([self.options.name, code]),
            )

    def _leave(self, queues: list[Keys]) -> None:
        """Unregister the worker; its leases go back."""
        for keys in queues:
            self.link.call(
                "unregister",
                keys,
                worker=self.worker,
                slot="",
                seq=-1,
                begun=-1,
                position=-1,
                death=b"",
            )


def run_worker(options: WorkerOptions) -> int:
    """Run a worker in this process until it is stopped; return its exit code."""
    if platform.system() == "Windows":
        raise OSError("dask-redisq workers need a POSIX system")
    return Supervisor(options).run()
