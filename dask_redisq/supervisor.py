"""A worker: a supervisor process that keeps its slots and its alive key.

It renews the alive key from a process of its own, since a thread beside the user's code
starves while C code holds the GIL (7.4 s measured). It sees a dead slot at once, gives its lease
back and starts another. One thread, one selector: children, signals, and the server's words
(``stop``, ``cancel``) all arrive in the same loop.
"""

from __future__ import annotations

import logging
import secrets
import selectors
import socket
import time
from contextlib import closing

from dask_redisq.annotations import RESOURCE
from dask_redisq.control import ControlWords, Word
from dask_redisq.crew import Crew, WorkerOptions
from dask_redisq.errors import PreloadFailed, ServerRefused, ServerUnavailable
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.monitor import Monitor
from dask_redisq.passwords import redact
from dask_redisq.registration import Registration
from dask_redisq.registry import has_work
from dask_redisq.retirement import Retirement
from dask_redisq.server_check import warn_about_server
from dask_redisq.signals import Signals
from dask_redisq.versions import python_tag

__all__ = ["Supervisor", "WorkerOptions", "supervise"]

logger = logging.getLogger("dask_redisq.worker")

#: Seconds that a stopped worker waits for a server that is away.
LAST_PATIENCE = 2.0
#: Seconds for which a starting worker waits for an answer, however little time is left.
LEAST_PATIENCE = 1.0
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
    #: When it ends by itself.
    retirement: Retirement

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
            # The user's first, before the Python's: see `slot._first_tag`.
            dict.fromkeys([*options.tags, python_tag(), options.name, socket.gethostname(), *has])
        )
        self.registration = Registration(
            self.link, self.worker, options.name, self._tags, options.nworkers,
            options.alive_expiry, options.resources,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<Supervisor {self.options.name} {self.worker}, queues {self.options.queues}>"

    # -- life ---------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until stopped.

        Raises
        ------
        ServerUnavailable
            If a starting worker found no server in time, or is refused.
        PreloadFailed
            If what the first slots preload raises.
        """
        try:
            self._find_server()
            with Signals(self._on_stop) as signals:
                self._serve(signals)
        finally:
            self.link.close()
            self.words.close()
        logger.info("worker %s ended", self.options.name)

    def _serve(self, signals: Signals) -> None:
        self.crew = Crew(self.options, self._tags, self.registration, self.keys)
        self.retirement = Retirement(self.options.terms, time.monotonic())
        try:
            self._register_all()
            logger.info(
                "worker %s: %d slots on %s, queues %s",
                self.options.name,
                self.options.nworkers,
                redact(self.options.url),
                ", ".join(self.options.queues),
            )
            while self._turn(signals):
                pass
            self.crew.kill()  # of one that no slot fits some may still be on their way
            self.registration.leave(self.keys)
        except ServerUnavailable as error:
            logger.warning("left without a word to the server: %s", error)
        finally:
            self.crew.close()
        if self.crew.misfit:
            raise PreloadFailed(
                f"worker {self.options.name} ends, since none of its slots was ready when "
                f"{self.crew.misfit}"
            )

    def _find_server(self) -> None:
        """Connect; a starting worker that finds no server says so once and gives up in time."""
        deadline, said = time.monotonic() + self.options.death_timeout, False
        while True:
            left = max(LEAST_PATIENCE, deadline - time.monotonic())
            try:
                with closing(Link(self.options.url, longest=left)) as probe:
                    probe.connect()  # whoever takes connections there may never say a word
                self.link.connect()
                return warn_about_server(self.link, logger)
            except ServerRefused:
                raise
            except ServerUnavailable as error:
                if not said:
                    logger.warning("%s; trying for %g s", error, self.options.death_timeout)
                    said = True
                if time.monotonic() >= deadline:
                    raise
                time.sleep(min(0.5, max(0.01, deadline - time.monotonic())))

    def _on_stop(self) -> None:
        self.stopping = True
        self.signals += 1
        self.link.patience = LAST_PATIENCE  # the server may be away: leave all the same

    # -- one turn of the loop -------------------------------------------------------------

    def _turn(self, signals: Signals) -> bool:
        """Do what is due, then wait for something to happen; false when all is over."""
        now = time.monotonic()
        self.crew.reap(now)
        if self.crew.misfit:
            return False
        if not self.stopping:
            self._retire(now)
        if self.stopping:
            self.crew.drain(now)
            if self.signals > 1:
                self.crew.kill()
            if not list(self.crew) and (self.signals or not self.retirement.lingers(now)):
                return False
        else:
            self.crew.fill(now)
        self.crew.look_after(now)
        if now >= self._next_beat:
            self._beat()
        for monitor in self.monitors:
            monitor.run(now)
        self._listen(signals, now)
        return True

    def _retire(self, now: float) -> None:
        """Drain if it is time to. The server is waited for: the tasks in hand are to count."""
        reason = self.retirement.reason(now, self.crew.activity(), self._has_work)
        if reason is not None:
            logger.info("worker %s ends: %s", self.options.name, reason)
            self.stopping = True

    def _has_work(self) -> bool:
        return any(has_work(self.link, keys) for keys in self.keys)

    def _listen(self, signals: Signals, now: float) -> None:
        """Wait for a signal, a child's end, or a word from the server."""
        self.words.ask(self.keys, now)
        due = [self._next_beat, now + TICK, *self.crew.due()]
        with selectors.DefaultSelector() as selector:
            selector.register(signals, selectors.EVENT_READ)
            if self.words.listening:
                selector.register(self.words, selectors.EVENT_READ)
            selector.select(max(0.0, min(due) - time.monotonic()))
        signals.clear()
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
        elif not word.verb:
            logger.warning("queue %s: a control word cannot be read", word.keys.queue)

    def _leave_queue(self, keys: Keys) -> None:
        """Leave one queue; without any the worker ends."""
        self.registration.leave([keys])
        self.link.unwatch(keys)
        self.keys.remove(keys)
        self.monitors = [m for m in self.monitors if m.keys is not keys]
        if not self.keys:
            self.retirement.queues_gone(time.monotonic())
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


def supervise(options: WorkerOptions) -> int:
    """Run a worker in this process until it is stopped; return its exit code."""
    try:
        Supervisor(options).run()
    except (ServerRefused, PreloadFailed) as error:
        logger.error("%s", error)  # noqa: TRY400 - a traceback says no more
        return 1
    except ServerUnavailable as error:
        logger.error("gave up: %s", error)  # noqa: TRY400 - a traceback says no more
        return 1
    return 0
