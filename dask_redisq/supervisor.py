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

from dask_redisq.annotations import RESOURCE
from dask_redisq.control import ControlWords, Word
from dask_redisq.crew import Crew, WorkerOptions
from dask_redisq.errors import ServerRefused, ServerUnavailable
from dask_redisq.keys import Keys
from dask_redisq.link import Link, redact
from dask_redisq.monitor import Monitor
from dask_redisq.registration import Registration
from dask_redisq.server_check import warn_about_server
from dask_redisq.versions import python_tag

__all__ = ["Supervisor", "WorkerOptions", "run_worker"]

logger = logging.getLogger("dask_redisq.worker")

#: Seconds that a stopped worker waits for a server that is away.
LAST_PATIENCE = 2.0
#: Seconds between two turns of the loop if nothing happens: slots' pages are looked at in each.
TICK = 0.25


class Supervisor:
    """The loop of one worker; see the module.

    Parameters
    ----------
    options : WorkerOptions
        How to run.
    """

    #: Its slots, once it found its server.
    crew: Crew

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self.worker = secrets.token_hex(8)  # new at each start: pids and host names come again
        self.keys = [Keys(name) for name in options.queues]
        self.link = Link(options.url, patience=None)
        for keys in self.keys:
            self.link.watch(keys)
        self.words = ControlWords(options.url, self.worker)
        self.monitors = [
            Monitor(self.link, k, self.worker, expiry=options.alive_expiry) for k in self.keys
        ]
        self.stopping = False
        self.signals = 0
        self._next_beat = 0.0
        has = [RESOURCE + name for name in options.resources]
        self._tags = tuple(
            dict.fromkeys([python_tag(), options.name, socket.gethostname(), *options.tags, *has])
        )
        self.registration = Registration(
            self.link, self.worker, options.name, self._tags, options.nworkers,
            options.alive_expiry, options.resources,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<Supervisor {self.options.name} {self.worker}, queues {self.options.queues}>"

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
        self.crew = Crew(self.options, self._tags, self.registration, self.keys)
        self._register_all()
        logger.info(
            "worker %s: %d slots on %s, queues %s",
            self.options.name,
            self.options.nworkers,
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
            self.crew.close()
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
        self.crew.reap(now)
        if self.stopping:
            self.crew.drain(now)
            if self.signals > 1:
                self.crew.kill()
            if not list(self.crew):
                return False
        else:
            self.crew.fill(now)
        self.crew.look_after(now)
        if now >= self._next_beat:
            self._beat()
        for monitor in self.monitors:
            monitor.run(now)
        self._listen(wake_read, now)
        return True

    def _listen(self, wake_read: int, now: float) -> None:
        """Wait for a signal, a child's end, or a word from the server."""
        self.words.ask(self.keys, now)
        due = [self._next_beat, now + TICK, *self.crew.due()]
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
        elif word.verb == "restart":
            self.crew.stop()  # each place is filled again
        elif word.verb == "cancel":
            self.crew.cancel(word.slot, word.job, word.seq)

    def _leave_queue(self, keys: Keys) -> None:
        """Leave one queue; without any the worker ends."""
        self.registration.leave([keys])
        self.link.unwatch(keys)
        self.keys.remove(keys)
        self.monitors = [m for m in self.monitors if m.keys is not keys]
        if not self.keys:
            self.stopping = True
        else:  # its slots still know the queue: new ones do not
            self.crew.stop()

    # -- the beat -----------------------------------------------------------------------

    def _register_all(self) -> None:
        for keys in self.keys:
            self.registration.register(keys)
            for child in self.crew:
                seq = child.page.last_answered(child.queues.index(keys.queue))
                self.registration.register(keys, child.slot, seq)

    def _beat(self) -> None:
        """Renew the alive keys; a registration that vanished is made again."""
        for keys in self.registration.renew(self.keys, self.crew):
            logger.warning("queue %s forgot this worker: registering again", keys.queue)
            self._register_all()
        self._next_beat = time.monotonic() + self.options.alive_expiry / 3


def run_worker(options: WorkerOptions) -> int:
    """Run a worker in this process until it is stopped; return its exit code."""
    if platform.system() == "Windows":
        raise OSError("dask-redisq workers need a POSIX system")
    return Supervisor(options).run()
