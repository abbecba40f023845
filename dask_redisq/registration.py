"""What a worker tells its queues of itself: it is here, its slots are, they are gone."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dask_redisq.codec import pack
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.page import Cursor
from dask_redisq.slot_process import SlotProcess
from dask_redisq.versions import about_worker

__all__ = ["Registration"]


class Registration:
    """One worker as the server knows it, on any of its queues.

    Parameters
    ----------
    link : Link
        Its connection.
    worker : str
        Its start id.
    name : str
        Shown to people.
    tags : tuple of str
        What its slots carry.
    slots : int
        How many it has room for.
    expiry : float
        Seconds without a beat after which it counts as dead.
    resources : Mapping of str to float
        What its slots share.
    """

    def __init__(
        self,
        link: Link,
        worker: str,
        name: str,
        tags: tuple[str, ...],
        slots: int,
        expiry: float,
        resources: Mapping[str, float],
    ) -> None:
        self.link = link
        self.worker = worker
        self.name = name
        self._tags = tags
        self._expiry = int(expiry * 1000)
        self._about = pack(about_worker(name, tags, slots, expiry, resources))

    def __repr__(self) -> str:
        return f"<Registration of {self.name} {self.worker}>"

    def register(self, keys: Keys, slot: str = "", seq: int = 0) -> None:
        """Register one slot of the worker, or the worker alone; what was there stays as it is.

        `seq` is the slot's last call there that was answered.
        """
        self.link.call(
            "register",
            keys,
            worker=self.worker,
            info=self._about,
            expiry=self._expiry,
            slot=slot,
            seq=seq,
            tags=pack(list(self._tags)),
        )

    def renew(self, queues: Sequence[Keys], slots: Iterable[SlotProcess]) -> list[Keys]:
        """Renew the alive keys; return the queues that do not know the worker, or a slot of it."""
        held: list[list[Any]] = [[] for _ in queues]
        for slot in slots:
            cursor = slot.page.read()
            for keys, pairs in zip(queues, held, strict=True):
                mine = slot.queues[cursor.queue] == keys.queue
                pairs += [slot.slot, cursor.seq if mine else 0]
        unknown = []
        for keys, pairs in zip(queues, held, strict=True):
            answer = self.link.call(
                "renew", keys, worker=self.worker, expiry=self._expiry, held=pack(pairs)
            )
            if answer == b"unknown":
                unknown.append(keys)
        return unknown

    def remove_slot(self, queues: Sequence[Keys], slot: SlotProcess) -> None:
        """Give an ended slot's lease back; its page and its exit code tell what to charge."""
        cursor = slot.page.read()
        retries = slot.page.read_limit(cursor).retries
        kind, record = self._charge(slot, cursor)
        for keys in queues:
            mine = slot.queues[cursor.queue] == keys.queue and cursor.seq > 0
            self.link.call(
                "unregister",
                keys,
                worker=self.worker,
                slot=slot.slot,
                seq=cursor.seq if mine else -1,
                begun=cursor.begun if mine else -1,
                position=cursor.position if mine else -1,
                kind=kind if mine else "",
                record=record,
                retries=retries,
            )

    def _charge(self, slot: SlotProcess, cursor: Cursor) -> tuple[str, bytes]:
        """Return what the task that was running is charged with, and the record of it."""
        code, overdue = slot.process.returncode, slot.overdue
        slot.tail.wait()
        if overdue is not None and code == -signal.SIGKILL:
            # The kill may have hit the task behind the one that took too long.
            if (cursor.begun, cursor.seq) == (overdue.task, overdue.seq):
                told = [self.name, overdue.seconds, slot.peak, slot.tail.lines()]
                return "timeout", pack(told)
            return "", b""
        # Not for its own end while it was told to cancel what it died of; another job's is charged.
        if slot.killed or slot.runs_cancelled():
            return "", b""
        # Exit code 0 too: a slot that ends in order has no task in hand, but a task may call exit.
        told = [self.name, code, slot.peak, slot.tail.lines(), cursor.doing]
        return "died", pack([*told, *slot.page.being_read()])

    def give_back(self, keys: Keys, slot: SlotProcess, cursor: Cursor) -> bytes:
        """Give back what did not begin of a lease; see give_back.lua for the answer."""
        answer: bytes = self.link.call(
            "give_back", keys, slot=slot.slot, seq=cursor.seq, position=cursor.position
        )
        return answer

    def lend(self, queues: Iterable[Keys], slot: SlotProcess) -> None:
        """Let others have the resources of a slot whose task waits for other tasks."""
        cursor = slot.page.read()
        for keys in queues:
            if slot.queues[cursor.queue] == keys.queue:
                self.link.call("lend", keys, slot=slot.slot, seq=cursor.seq)

    def leave(self, queues: Iterable[Keys]) -> None:
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
                kind="",
                record=b"",
                retries=-1,
            )
