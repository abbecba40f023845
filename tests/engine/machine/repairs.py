"""What those call who repair a job, or let it go on."""

from __future__ import annotations

from hashlib import sha1
from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import precondition, rule

from dask_redisq.link import Link
from dask_redisq.rebuild import rebuild
from machine.slots import SlotCalls

__all__ = ["RepairCalls"]


class Rebuilder:
    """A link over which one rebuild goes.

    Attributes
    ----------
    generation : str
        The name of the rebuild.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.generation = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.link, name)

    def call(self, script: str, keys: Any, **args: Any) -> Any:
        """Call a script."""
        if script == "freeze":
            self.generation = args["generation"]
        return self.link.call(script, keys, **args)


class RepairCalls(SlotCalls):
    """The calls of repairers."""

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), fresh=st.integers(0, 3), late=st.sampled_from([False, False, True]))
    def rerun(self, data: st.DataObject, fresh: int, late: bool) -> None:
        """A job that failed is to go on, or that is a copy of an older call."""
        jobs = self.model.jobs
        self.fail_for_good(data)
        failed = sorted(
            name for name in jobs if jobs[name].detached and jobs[name].state == "failed"
        )
        name = data.draw(st.sampled_from([*failed, *failed, *failed, *sorted(jobs)]))
        epoch = "an older one" if late else self.model.jobs[name].epoch
        answer = self.engine.call("rerun", job=name, epoch=epoch, fresh=fresh)
        run = self.link.command("HGET", self.engine.keys("queue"), "run") or b""
        made = sha1(f"{fresh} {run.decode()}".encode(), usedforsecurity=False).hexdigest()[:16]
        assert answer.decode() == self.model.rerun(name, epoch, made)

    def fail_for_good(self, data: st.DataObject) -> None:
        """Some slot lets what it holds fail, again and again."""
        for slot in [slot for slot in self.slots if slot.lease][:1]:
            for _ in range(3):
                tasks = slot.lease.tasks[:1] if slot.lease else []
                self._report(data, slot, [], failure=tasks[0] if tasks else None)

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), by_client=st.booleans())
    def rebuild(self, data: st.DataObject, by_client: bool) -> None:
        """A job is rebuilt, by its client, which knows what it has, or by somebody else."""
        held = sorted(name for name, job in self.model.jobs.items() if job.frozen or job.damaged)
        name = data.draw(st.sampled_from([*held, *sorted(self.model.jobs)]))
        have = self.arrived[name] if by_client else None
        over = Rebuilder(self.link)
        done = rebuild(over, self.engine.keys, name, have)  # type: ignore[arg-type]
        status = self.model.freeze(name, over.generation)
        assert done == (status == "frozen")
        if done:
            built = self.model.build(name, have)
            assert self.model.rebuild(name, over.generation, built) == "rebuilt"
