"""What each kind of fault does to the storm's own processes."""

import heapq
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import psutil
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from benchmarks.storm.fleet import Fleet
from benchmarks.storm.ledger import Ledger
from benchmarks.storm.runs import Hit, Outage
from benchmarks.storm.schedule import ALIVE_EXPIRY, FT_INTERVAL, Fault
from benchmarks.storm.workers import look, send

T = TypeVar("T")

#: Seconds that the storm itself waits for the server; it may be frozen just then.
PATIENCE = 0.3
#: Workers are not started beyond so many more than there should be.
MOST_MORE = 2
#: Seconds between two looks at what the slots of a frozen supervisor hold.
WATCH = 0.1


class Weather:
    """Hits a fleet by a schedule, and clears up in the end.

    Parameters
    ----------
    fleet
        What is hit.
    ledger
        Hears which clients are gone.
    restart_clients
        Starts client processes in the place of those that are gone.
    """

    def __init__(self, fleet: Fleet, ledger: Ledger, restart_clients: Callable[[], None]) -> None:
        self.fleet = fleet
        self.counts: Counter[str] = Counter()
        #: Slots that were hit, and what they held.
        self.hits: list[Hit] = []
        self.outages: list[Outage] = []
        self._ledger = ledger
        self._restart_clients = restart_clients
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._number = itertools.count()
        self._over = False
        self._log = (fleet.folder / "faults").open("w", buffering=1)
        self._redis = redis.Redis(
            unix_socket_path=str(fleet.server.socket),
            socket_timeout=PATIENCE,
            socket_connect_timeout=PATIENCE,
            retry=Retry(NoBackoff(), 0),
        )

    # -- time ------------------------------------------------------------------------------

    def run(self, faults: Iterable[Fault], start: float) -> None:
        """Let all faults happen, each at its time after `start`."""
        for fault in faults:
            self._wait(start + fault.at)
            hit = getattr(self, "_" + fault.kind.replace(" ", "_"))
            now = time.monotonic_ns()
            if hit(fault):
                self.counts[fault.kind] += 1
                self._log.write(f"{now} {fault.kind} {fault.dice:.3f} {fault.seconds:.2f}\n")

    def clear(self) -> None:
        """Bring back what is frozen, held or away; from here on nothing more happens."""
        self._over = True
        while self._later:
            heapq.heappop(self._later)[2]()
        self.fleet.fill()
        self._restart_clients()
        self._redis.close()
        self._log.close()

    def _wait(self, until: float) -> None:
        """Do what is due, until `until`."""
        while self._later and self._later[0][0] <= until:
            at, _, action = heapq.heappop(self._later)
            time.sleep(max(0.0, at - time.monotonic()))
            action()
        time.sleep(max(0.0, until - time.monotonic()))

    def _in(self, seconds: float, action: Callable[[], object]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._number), action))

    # -- slots -----------------------------------------------------------------------------

    def _slot_killed(self, fault: Fault) -> bool:
        slot = _choose(list(self.fleet.slots()), fault)
        return slot is not None and self._kill([slot], fault)

    def _slot_frozen(self, fault: Fault) -> bool:
        slot = _choose(list(self.fleet.slots()), fault)
        return slot is not None and self._freeze([slot], fault)

    _slot_frozen_long = _slot_frozen

    # -- workers ---------------------------------------------------------------------------

    def _worker_killed(self, fault: Fault) -> bool:
        worker = _choose(self.fleet.living(), fault)
        if worker is None:
            return False
        # Stopped first, so that it starts no new slot meanwhile: a host goes all at once.
        send(worker.supervisor, signal.SIGSTOP)
        done = self._kill([*worker.slots(), worker.supervisor], fault)
        self._in(fault.seconds, self.fleet.fill)
        return done

    def _worker_frozen(self, fault: Fault) -> bool:
        worker = _choose(self.fleet.living(), fault)
        if worker is None:
            return False
        send(worker.supervisor, signal.SIGSTOP)
        return self._freeze([*worker.slots(), worker.supervisor], fault)

    _worker_frozen_long = _worker_frozen

    def _supervisor_killed(self, fault: Fault) -> bool:
        worker = _choose(self.fleet.living(), fault)
        if worker is None:
            return False
        self._hold([worker.supervisor, *worker.slots()], fault.kind)
        self._in(fault.seconds, self.fleet.fill)
        # Its slots, and what they started, have to go by themselves.
        return send(worker.supervisor, signal.SIGKILL)

    def _supervisor_frozen_long(self, fault: Fault) -> bool:
        worker = _choose(self.fleet.living(), fault)
        if worker is None or not send(worker.supervisor, signal.SIGSTOP):
            return False
        # Its slots go on until somebody finds their worker dead; what they hold then is taken, and
        # they get no more. So it is the last that each held which counts.
        start, last = time.monotonic_ns(), {}
        end = time.monotonic() + fault.seconds

        def watch() -> None:
            for slot in worker.slots():
                hit = look(slot, fault.kind, self.fleet.runs)
                if hit.leased or slot.pid not in last:
                    last[slot.pid] = hit
            if time.monotonic() < end and not self._over:
                self._in(WATCH, watch)
                return
            now = time.monotonic_ns()
            self.hits += [replace(hit, ns=start, until=now, running=None) for hit in last.values()]
            send(worker.supervisor, signal.SIGCONT)

        watch()
        return True

    def _worker_leaves(self, fault: Fault) -> bool:
        worker = _choose(self.fleet.living(), fault)
        if worker is None:
            return False
        worker.leave()
        self._in(fault.seconds, self.fleet.fill)
        return True

    def _worker_joins(self, _: Fault) -> bool:
        if len(self.fleet.living()) >= self.fleet.wanted + MOST_MORE:
            return False
        self.fleet.start_worker()
        return True

    # -- connections -----------------------------------------------------------------------

    def _connection_killed(self, fault: Fault) -> bool:
        def kill() -> object:
            mine = self._redis.client_id()
            others = [row["id"] for row in self._redis.client_list() if int(row["id"]) != mine]
            chosen = _choose(others, fault)
            return chosen and self._redis.client_kill_filter(_id=chosen)

        return self._ask(kill)

    def _all_connections_killed(self, _: Fault) -> bool:
        return self._ask(lambda: self._redis.client_kill_filter(_type="normal", skipme=True))

    def _scripts_flushed(self, _: Fault) -> bool:
        return self._ask(self._redis.script_flush)

    def _clients_paused(self, fault: Fault) -> bool:
        return self._ask(lambda: self._redis.client_pause(int(fault.seconds * 1000)))

    def _connections_cut(self, fault: Fault) -> bool:
        return self._detour(fault, "cut")

    def _request_lost(self, fault: Fault) -> bool:
        return self._detour(fault, "request")

    def _reply_lost(self, fault: Fault) -> bool:
        return self._detour(fault, "reply")

    def _reply_cut(self, fault: Fault) -> bool:
        return self._detour(fault, "half")

    def _network_held(self, fault: Fault) -> bool:
        detour = _choose(self.fleet.detours, fault)
        if detour is None:
            return False
        detour.tell("hold")
        self._in(fault.seconds, lambda: detour.tell("pass"))
        return True

    def _detour(self, fault: Fault, word: str) -> bool:
        detour = _choose(self.fleet.detours, fault)
        if detour is None:
            return False
        detour.tell(word)
        return True

    def _ask(self, command: Callable[[], object]) -> bool:
        """Send a command of our own; false if the server is away, or stands still."""
        try:
            return bool(command())
        except (redis.RedisError, OSError):
            return False

    # -- the server ------------------------------------------------------------------------

    def _server_killed(self, fault: Fault) -> bool:
        if not self.fleet.server.running:
            return False
        killed = time.monotonic_ns()
        self.fleet.server.kill()
        self._in(fault.seconds, partial(self._restart, killed))
        return True

    def _restart(self, killed: int) -> None:
        server = self.fleet.server
        server.start()
        # All have heard now what the old one had to say, and can do no more before they are let
        # in: a result of a lease from before may be refused, and its tasks run again.
        self.hits += [look(slot, "server killed", self.fleet.runs) for slot in self.fleet.slots()]
        server.admit()
        self.outages.append(Outage(killed, time.monotonic_ns()))

    def _server_frozen(self, fault: Fault) -> bool:
        if not self.fleet.server.running:
            return False
        self.fleet.server.freeze()
        self._in(fault.seconds, self.fleet.server.thaw)
        return True

    _server_frozen_long = _server_frozen

    # -- clients ---------------------------------------------------------------------------

    def _client_killed(self, fault: Fault) -> bool:
        name = _choose(self.fleet.running_clients(), fault)
        if name is None:
            return False
        os.kill(self.fleet.clients[name].pid, signal.SIGKILL)
        self.fleet.clients[name].close()
        self._ledger.abandon(name)
        self._restart_clients()
        return True

    # -- signals ---------------------------------------------------------------------------

    def _kill(self, processes: list[psutil.Process], fault: Fault) -> bool:
        """Kill processes all at once."""
        self._hold(processes, fault.kind)
        killed = [send(process, signal.SIGKILL) for process in processes]
        return all(killed)

    def _freeze(self, processes: list[psutil.Process], fault: Fault) -> bool:
        """Stop processes for some time."""
        # A slot that another fault lets go on meanwhile works for a worker that is found dead; and
        # if its first beat after that is lost, so is one that was stopped for less than an expiry.
        until = time.monotonic_ns() + int((fault.seconds + ALIVE_EXPIRY + FT_INTERVAL) * 1e9)
        self._hold(processes, fault.kind, until)
        for process in processes:
            self._in(fault.seconds, partial(send, process, signal.SIGCONT))
        return True

    def _hold(self, processes: list[psutil.Process], kind: str, until: int = 0) -> None:
        """Stop processes, and note what the slots among them hold."""
        for process in processes:
            send(process, signal.SIGSTOP)
        hits = [look(process, kind, self.fleet.runs) for process in processes]
        self.hits += [replace(hit, until=until) for hit in hits]


def _choose(things: list[T], fault: Fault) -> T | None:
    """Return the one of some things that the dice fell for."""
    return things[int(fault.dice * len(things))] if things else None
