"""A worker's supervisor as a generator: it registers, renews, reaps, gives back, obeys; a monitor is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dask_redisq.codec import pack
from dask_redisq.monitor import Audit, Recovery
from dask_redisq.watch import due_at, find_overdue, hostages_since
from simulator.actors import Actor, Call, Command, Life, Wait, in_thread
from simulator.jobs import RESOURCE
from simulator.slot import Slot

if TYPE_CHECKING:
    from simulator.world import World

__all__ = ["EXPIRY", "INTERVAL", "Look", "Supervisor"]

#: Of alive keys, between two looks for the dead, and what a cancelled task gets, in ms.
EXPIRY, INTERVAL, GRACE, ASK_AGAIN = 15_000, 5000, 1000, 250


class _Away:
    """A link that is not connected."""

    unbroken_since = None

    def served_since(self, _longest: float) -> None:
        """Tell that it is not served."""


class Look:
    """The monitor of one actor, which is the package's own."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        # Without rule 14 it judges at once, however long it was away.
        expiry = EXPIRY / 1000 if actor.world.off != "R14" else 0.0
        away: Any = _Away()
        self._away = away
        about = (actor.world.server.keys, actor.name, INTERVAL / 1000)
        self._recovery = Recovery(away, *about, expiry)
        self._recovery._ahead = 0.0  # a world has one clock
        self._audit = Audit(away, *about)

    def run(self) -> Life[None]:
        """Look for the dead if it is time."""
        now, since = self.actor.world.server.now / 1000, self.actor.unbroken_since
        young = since is None or now - since / 1000 < self._recovery.expiry
        if now < self._recovery._next or young:  # no thread for nothing
            self._recovery.link = self._away
            self._recovery.run(now)
            return

        def look(link: Any) -> None:
            self._recovery.link = self._audit.link = link
            self._recovery.run(now)
            self._audit.run(now)

        yield from in_thread(self.actor, look)


class Supervisor(Actor):
    """A worker.

    Attributes
    ----------
    slots : list of Slot
        Its slots, as it knows them; one that ended is here until it sees that.
    renewed : int
        When the server last heard its beat.
    """

    def __init__(self, world: World, name: str, tags: tuple[str, ...], count: int) -> None:
        self.tags, self.count = tags, count
        self.slots: list[Slot] = []
        self.stopping = False
        self.renewed = world.server.now
        #: The ids of all slots that it ever had.
        self.ever: list[str] = []
        self._kill_at: dict[str, int] = {}
        #: Leases whose resources were lent.
        self._lent: set[tuple[str, int]] = set()
        self.look: Look | None = None
        super().__init__(world, name)

    def live(self) -> Life[None]:
        """Register, then look after the slots until it is stopped."""
        server, beat = self.world.server, 0
        self.look = Look(self)
        yield from self._register("")
        while True:
            yield from self._reap()
            if self.stopping and not self.slots:
                break
            if not self.stopping:
                yield from self._fill()
            for slot in self._surplus():
                slot.stop()
            for slot in list(self.slots):
                yield from self._look_after(slot)
            yield from self._obey()
            if server.now >= beat:
                yield from self._beat()
                beat = server.now + EXPIRY // 3
            yield from self.look.run()
            if any(slot.over or self._is_to_lend(slot) for slot in self.slots):
                continue  # it looks at their pages more often than it waits here
            yield Wait(min([beat, server.now + 5000, *self._dues()]))
        yield Call("unregister", self._unregistered("", (-1, -1, -1), ""))

    def stop(self) -> None:
        """Leave the queue once the slots have ended."""
        self.stopping = True
        self.nudge()

    def kill_all(self) -> None:
        """The host is gone."""
        for slot in self.slots:
            slot.kill()
        self.kill()

    # -- slots ---------------------------------------------------------------------------

    def _fill(self) -> Life[None]:
        while len(self.slots) < self.count + self._waiting() and not self.stopping:
            slot = Slot(self.world, self)
            self.world.slots[slot.slot] = slot
            self.ever.append(slot.slot)
            self.slots.append(slot)  # it cannot step before it is registered: it begins by that
            yield from self._register(slot.slot)
            self.world.actors.append(slot)

    def _waiting(self) -> int:
        """How many of its slots wait for what their tasks compute: others stand in for them."""
        return sum(slot.waits_for is not None for slot in self.slots if not slot.over)

    def _surplus(self) -> list[Slot]:
        """Return slots that are to end: all, or stand-ins for those that wait no more."""
        if self.stopping:
            return self.slots
        going = [slot for slot in self.slots if not (slot.over or slot.stopping)]
        free = [slot for slot in going if slot.waits_for is None]
        return free[: max(0, len(going) - self.count - self._waiting())]

    def _reap(self) -> Life[None]:
        for slot in [s for s in self.slots if s.over]:
            cursor = slot.page.cursor
            place = (
                (cursor.seq or -1, cursor.begun, cursor.position) if cursor.seq else (-1, -1, -1)
            )
            kind = slot.kind if cursor.seq else ""
            yield Call("unregister", self._unregistered(slot.slot, place, kind))
            self.slots.remove(slot)
            self._kill_at.pop(slot.slot, None)

    def _unregistered(self, slot: str, place: tuple[int, int, int], kind: str) -> dict[str, Any]:
        seq, begun, position = place
        return {
            "worker": self.name, "slot": slot, "seq": seq, "begun": begun, "position": position, "kind": kind,
            "record": pack([self.name, -9]), "retries": -1,
        }  # fmt: skip

    def _lend(self, slot: Slot) -> Life[None]:
        """Let others have the resource of a slot whose task waits for what it computes."""
        if self._is_to_lend(slot):
            self._lent.add((slot.slot, slot.page.cursor.seq))
            yield Call("lend", {"slot": slot.slot, "seq": slot.page.cursor.seq})

    def _is_to_lend(self, slot: Slot) -> bool:
        waits = slot.waits_for is not None and not slot.over
        return (
            waits and RESOURCE in self.tags and (slot.slot, slot.page.cursor.seq) not in self._lent
        )

    def _look_after(self, slot: Slot) -> Life[None]:
        yield from self._lend(slot)
        page, now = slot.page, self.world.server.now
        cursor = page.cursor
        if slot.over:
            return
        kill_at = self._kill_at.get(slot.slot)
        if kill_at is not None and now >= kill_at:
            del self._kill_at[slot.slot]
            if page.stopped(cursor.job.decode(), cursor.seq):
                slot.die("")
                return
        if find_overdue(cursor, page.limit, now / 1000) is not None:
            slot.die("timeout")
            return
        since = hostages_since(cursor)
        if since is not None and page.given != cursor.seq and now >= since * 1000:
            args = {"slot": slot.slot, "seq": cursor.seq, "position": cursor.position}
            answer = yield Call("give_back", args)
            if answer == b"given" and not self.world.chance(0.5):  # else it hears of it too late
                page.given = cursor.seq

    def _dues(self) -> list[int]:
        now = self.world.server.now
        dues = list(self._kill_at.values())
        for slot in self.slots:
            cursor = slot.page.cursor
            due = due_at(cursor, slot.page.limit)
            if due is not None:
                dues.append(int(due * 1000) + 1)
            since = hostages_since(cursor)
            if since is not None and slot.page.given != cursor.seq:
                dues.append(max(now + ASK_AGAIN, int(since * 1000) + 1))
        return [max(due, now + 1) for due in dues]

    # -- what it tells and hears ---------------------------------------------------------

    def _register(self, slot: str, seq: int = 0) -> Life[None]:
        tags = ["python", self.name, *self.tags]
        info = pack({"resources": {"GPU": 1} if RESOURCE in tags else {}})
        yield Call("register", {
            "worker": self.name, "info": info, "expiry": EXPIRY, "slot": slot, "seq": seq, "tags": pack(tags),
        })  # fmt: skip

    def _beat(self) -> Life[None]:
        held: list[Any] = []
        for slot in self.slots:
            held += [slot.slot, slot.page.cursor.seq]
        answer = yield Call("renew", {"worker": self.name, "expiry": EXPIRY, "held": pack(held)})
        if answer == b"unknown":
            yield from self._register("")
            for slot in list(self.slots):
                if not slot.over:
                    yield from self._register(slot.slot, slot.page.answered)

    def _obey(self) -> Life[None]:
        name = self.world.server.keys("control", self.name)
        words = yield Command(("XRANGE", name, "-", "+"))
        for word, fields in words:
            told = dict(zip(fields[::2], fields[1::2], strict=True))
            for slot in self.slots:
                if told[b"verb"] == b"cancel" and slot.slot == told[b"slot"].decode():
                    slot.page.stop_job = told[b"job"].decode()
                    slot.page.stop_seq = int(told[b"seq"])
                    self._kill_at[slot.slot] = self.world.server.now + GRACE
            yield Command(("XDEL", name, word))
