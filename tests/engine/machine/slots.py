"""What slots and their supervisors call."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import model
from driver import PYTHON, Answer, Slot
from hypothesis.stateful import precondition, rule
from model import Call

from dask_redisq.codec import pack
from machine.base import Machine

__all__ = ["SlotCalls"]


class SlotCalls(Machine):
    """The calls of slots and supervisors."""

    @precondition(lambda self: self.model.active or any(s.lease for s in self.slots))
    @rule(data=st.data(), turns=st.integers(1, 6))
    def work(self, data: st.DataObject, turns: int) -> None:
        """Slots finish what they hold, one after the other, and get the next."""
        first = data.draw(st.integers(0, 2))
        for turn in range(first, first + turns):
            slot = self.slots[turn % 3]
            self._report(data, slot, slot.lease.tasks if slot.lease else [])

    @rule(data=st.data(), turns=st.integers(1, 3), late=st.integers(0, 2))
    def suspend(self, data: st.DataObject, turns: int, late: int) -> None:
        """The queue is held for some calls of slots, or for longer; a copy of that comes late."""
        stays = data.draw(st.integers(0, 4)) == 4
        for on in [True] if stays else [True, False]:
            self._suspend(self.model.turns, on=on)
            self.work(data, turns)
        self._suspend(max(0, self.model.turns - late), on=self.model.suspended)

    def _suspend(self, turn: int, *, on: bool) -> None:
        answer = self.engine.call("suspend", on=int(on), turn=turn).decode()
        assert answer == self.model.suspend(turn, on=on)

    @rule(data=st.data(), follow=st.booleans(), want=st.sampled_from([1000, 1000, 2, 0]))
    def step(self, data: st.DataObject, follow: bool, want: int) -> None:
        """A slot reports some of its lease, and what followed from it, and gets the next."""
        slot = self.slots[data.draw(st.integers(0, 2))]
        tasks = slot.lease.tasks if slot.lease else []
        made = tasks[: data.draw(st.integers(0, len(tasks)))]
        self._report(data, slot, self._followed(slot, made) if follow else made, want=want)

    @precondition(lambda self: any(slot.lease for slot in self.slots))
    @rule(data=st.data(), follow=st.booleans(), turns=st.integers(1, 3))
    def fail(self, data: st.DataObject, follow: bool, turns: int) -> None:
        """The last task that a slot ran raised; maybe that of its next lease, too."""
        slot = data.draw(st.sampled_from([slot for slot in self.slots if slot.lease]))
        for _ in range(turns):
            tasks = slot.lease.tasks if slot.lease else []
            made = tasks[: data.draw(st.integers(min(1, len(tasks)), len(tasks)))]
            made = self._followed(slot, made) if follow else made
            self._report(data, slot, made[:-1], failure=made[-1] if made else None)

    def _report(
        self,
        data: st.DataObject,
        slot: Slot,
        made: list[int],
        failure: int | None = None,
        want: int = 1000,
    ) -> None:
        if slot.id in self.held:
            self._send(slot, *self.held[slot.id])
            return
        job, groups = slot.lease.job if slot.lease else "", list[Any]()
        if job:
            groups = self.engine.groups(slot, made)
        components = [tasks for kind, names, *_ in groups for tasks in ([names] if kind else [[t] for t in names])]  # fmt: skip
        known = data.draw(st.sampled_from([*sorted(self.model.jobs), ""]))
        floor = data.draw(st.sampled_from([1000, 1]))
        wishes = self._wishes(data, self.asked.pop(slot.id, ""))
        epoch = slot.lease.epoch if slot.lease else ""
        args = self.engine.prepare(
            slot, groups, failure=None if failure is None else (failure, b"boom"), want=want,
            floor=floor, known=known, rest=True, job=job, wishes=wishes,
        )  # fmt: skip
        args["epoch"] = epoch
        call = Call(
            slot.id, args["seq"], job, components, failure, epoch, known, want, floor, wishes
        )
        self.calls.append((args, call))
        self._send(slot, args, call)

    def _wishes(self, data: st.DataObject, name: str) -> dict[str, list[int] | bool]:
        """What the policy of a job answers that is to be asked: anything, or nothing within its time."""
        if name not in self.model.jobs:
            return {}
        tasks = st.lists(st.sampled_from(self.model.jobs[name].tasks), max_size=4)
        return {name: data.draw(tasks) if data.draw(st.integers(0, 7)) else False}

    def _followed(self, slot: Slot, made: list[int]) -> list[int]:
        """Return these tasks and all that can be made from them alone."""
        if slot.lease is None:
            return []
        graph, made = self.engine.graphs[slot.lease.job], list(made)
        for task in range(len(graph)):
            inputs = set(graph.inputs[task])
            if not slot.lease.alone and task not in made and inputs and inputs <= set(made):
                made.append(task)
        return made

    def _send(self, slot: Slot, args: dict[str, Any], call: Call) -> None:
        """Make a call, or make it again that met a job that was held."""
        answer = self._step(args, call)
        slot.lease = answer.lease
        self.held.pop(slot.id, None)
        if answer.status == "wish":
            self.asked[slot.id] = answer.asked
        if answer.status == "frozen":
            self.held[slot.id] = args, call

    def _step(self, args: dict[str, Any], call: Call) -> Answer:
        answer = self.engine.send(args)
        lease = answer.lease
        held = (lease.job, tuple(lease.tasks), lease.alone) if lease else (answer.asked, (), False)
        found = model.Answer(answer.status, tuple(answer.refused), *held, answer.retry)
        expected = self.model.step(call)
        assert found == expected, f"step answers {found}, not {expected}"
        return answer

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def step_again(self, data: st.DataObject) -> None:
        """A copy of some step arrives, of the last one or of an older one."""
        args, call = self.calls[-1 - data.draw(st.integers(0, len(self.calls) - 1))]
        self._step(args, call)

    @rule(data=st.data(), kind=st.sampled_from(["died", "timeout", ""]))
    def end(self, data: st.DataObject, kind: str) -> None:
        """A slot's process ends; another one takes its place."""
        slot = self.slots[data.draw(st.integers(0, 2))]
        tasks = slot.lease.tasks if slot.lease else []
        position = data.draw(st.integers(0, len(tasks) - 1)) if tasks else -1
        begun = tasks[position] if tasks else -1
        seq = slot.lease.seq if slot.lease else -1
        self.engine.unregister(
            slot, begun=begun, position=position, kind=kind, record=pack(["w", -9]), seq=seq
        )
        self.model.unregister(slot.id, seq, begun, position, kind)
        self._replace(slot)

    def _replace(self, slot: Slot) -> None:
        new = self.engine.slot(slot.worker, slot.tags[2:])
        self.model.register(new.id, slot.worker, 0, new.tags)
        self.slots[self.slots.index(slot)] = new

    @rule(worker=st.sampled_from(["w1", "w1", "w0"]))
    def lose(self, worker: str) -> None:
        """A worker is missed; it lives, and registers again."""
        assert self.engine.lose_worker(worker) == [worker]
        self.model.lose(worker)
        for slot in self.slots:
            if slot.worker == worker:
                answered = slot.seq - (slot.id in self.held)
                self.engine.register(slot, answered)
                self.model.register(slot.id, worker, answered, slot.tags)

    @precondition(lambda self: any(slot.lease for slot in self.slots))
    @rule(data=st.data())
    def overtake(self, data: st.DataObject) -> None:
        """A worker is missed; what its slot ran fails in others, and then its report comes."""
        slot = data.draw(st.sampled_from([slot for slot in self.slots if slot.lease]))
        tasks = slot.lease.tasks if slot.lease else []
        self.lose(slot.worker)
        for other in [other for other in self.slots if other.worker != slot.worker]:
            self._report(data, other, [])
            taken = other.lease.tasks[:1] if other.lease else []
            self._report(data, other, [], failure=taken[0] if taken else None)
        self._report(data, slot, tasks)

    @rule(worker=st.sampled_from(["w0", "w1"]), dead=st.booleans(), data=st.data())
    def renew(self, worker: str, dead: bool, data: st.DataObject) -> None:
        """A worker beats; one of its slots may have ended just before."""
        mine = [s for s in self.slots if s.worker == worker]
        gone = data.draw(st.sampled_from(mine)) if dead else None
        live = [s for s in mine if s is not gone]
        held = [x for s in live for x in (s.id, s.lease.seq if s.lease else 0)]
        answer = self.engine.call("renew", worker=worker, expiry=3_600_000, held=pack(held))
        assert answer.decode() == self.model.renew(worker, [s.id for s in live])
        if gone is not None:
            self._replace(gone)

    @precondition(lambda self: any(slot.lease for slot in self.slots))
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        """What waits behind a long task is given to others."""
        slots = [slot for slot in self.slots if slot.lease]
        slot = data.draw(
            st.sampled_from([s for s in slots if s.lease and s.lease.tasks[1:]] or slots)
        )
        assert slot.lease is not None
        position = data.draw(st.integers(0, len(slot.lease.tasks)))
        idle = self.link.command("ZCARD", self.engine.keys("idle", PYTHON)) > 0
        answer = self.engine.give_back(slot, position).decode()
        seq = slot.lease.seq
        assert answer == self.model.give_back(slot.id, seq, position, somebody_idle=idle)
