"""What those call who repair a job, or let it go on."""

from __future__ import annotations

import contextlib
from hashlib import sha1
from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import precondition, rule

from dask_redisq.link import Link
from dask_redisq.rebuild import rebuild
from machine.slots import SlotCalls

__all__ = ["RepairCalls"]


class Stopped(Exception):
    """A rebuilder was stopped, or died."""


class Rebuilder:
    """A link over which one rebuild goes, or half of it.

    Parameters
    ----------
    link : Link
        The link.
    until : str
        The script that it does not call any more; '' if it comes to its end.

    Attributes
    ----------
    args : dict of str to dict
        What it told each script.
    """

    def __init__(self, link: Link, until: str) -> None:
        self.link = link
        self.until = until
        self.args: dict[str, dict[str, Any]] = {"freeze": {"generation": ""}}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.link, name)

    def call(self, script: str, keys: Any, **args: Any) -> Any:
        """Call a script."""
        self.args[script] = args
        if script == self.until:
            raise Stopped
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
        if data.draw(st.booleans()):
            self._rebuild(name, None, "")
            self.work(data, 3)
            self.fail_for_good(data, 1)

    def fail_for_good(self, data: st.DataObject, times: int = 3) -> None:
        """Some slot lets what it holds fail, again and again."""
        for slot in [slot for slot in self.slots if slot.lease][:1]:
            for _ in range(times):
                tasks = slot.lease.tasks[:1] if slot.lease else []
                self._report(data, slot, [], failure=tasks[0] if tasks else None)

    @precondition(lambda self: any(job.values for job in self.model.jobs.values()))
    @rule(data=st.data(), is_gone=st.booleans())
    def miss(self, data: st.DataObject, is_gone: bool) -> None:
        """A value is gone, or not found though it is there; a slot asks for it, or the client."""
        with_values = sorted(name for name, job in self.model.jobs.items() if job.values)
        name = data.draw(st.sampled_from(with_values))
        job = self.model.jobs[name]
        needed = data.draw(st.sampled_from(sorted(job.values)))
        if is_gone:
            self.engine.lose_value(name, needed)
            self.model.lose_value(name, needed)
        users = [t for t in job.tasks if needed in job.inputs[t]]
        task = data.draw(st.sampled_from([*users, -1]))
        answer = self.engine.call("report_missing", job=name, task=task, input=needed)
        assert answer.decode() == self.model.report_missing(name, task, needed)

    @precondition(lambda self: self.model.jobs)
    @rule(
        data=st.data(),
        by_client=st.booleans(),
        until=st.sampled_from(["", "", "rebuild", "survey"]),
    )
    def rebuild(self, data: st.DataObject, by_client: bool, until: str) -> None:
        """A job is rebuilt, by its client, which knows what it has, or by somebody else, who may be stopped."""
        held = sorted(name for name, job in self.model.jobs.items() if job.frozen or job.damaged)
        name = data.draw(st.sampled_from([*held, *held, *sorted(self.model.jobs)]))
        self._rebuild(name, {*self.arrived[name]} if by_client else None, until)

    def _rebuild(self, name: str, have: set[int] | None, until: str) -> None:
        over, done = Rebuilder(self.link, until), False
        with contextlib.suppress(Stopped):
            done = rebuild(over, self.engine.keys, name, have)  # type: ignore[arg-type]
        status = self.model.freeze(name, over.args["freeze"]["generation"])
        assert done == (status == "frozen" and not until), f"to freeze it answers {status}"
        if status == "frozen" and until != "survey":
            self.built.append((name, over.args["rebuild"], self.model.build(name, have)))
        if done:
            _, args, built = self.built[-1]
            assert self.model.rebuild(name, args["generation"], built) == "rebuilt"

    @precondition(lambda self: self.built)
    @rule(data=st.data())
    def end_rebuild(self, data: st.DataObject) -> None:
        """A rebuilder goes on that was stopped, or a copy of its call comes late."""
        name, args, built = self.built[-1 - data.draw(st.integers(0, len(self.built) - 1))]
        answer = self.link.call("rebuild", self.engine.keys, **args).decode()
        assert answer == self.model.rebuild(name, args["generation"], built)
