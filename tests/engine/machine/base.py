"""The queue and its model side by side, and what must be the same of them after each call."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from driver import Engine, Slot
from hypothesis.stateful import RuleBasedStateMachine, rule
from invariants import JobView
from model import Call, Queue
from model.repair import LIFE, Built
from simulator.server import BEGIN, CLOCK

from dask_redisq.keys import Keys
from dask_redisq.link import Link

__all__ = ["Machine"]


class Machine(RuleBasedStateMachine):
    """A queue of which nothing is there yet."""

    link: Link

    def __init__(self) -> None:
        super().__init__()
        self.link.command("FLUSHALL")
        self.link.command("SET", CLOCK, BEGIN)
        self.engine = Engine(self.link, Keys("model"), replay=False)
        self.engine.checking = False
        self.model = Queue()
        self.slots: list[Slot] = []
        #: What a slot reported in each of its calls, for copies that come late.
        self.calls: list[tuple[dict[str, Any], Call]] = []
        #: Calls that met a job that was held: their slots make them again.
        self.held: dict[str, tuple[dict[str, Any], Call]] = {}
        #: Jobs whose policy a slot is to ask before its next call.
        self.asked: dict[str, str] = {}
        #: How far the client of each job has read, and of which log; what arrived of it.
        self.cursors: dict[str, tuple[int, bytes]] = {}
        self.arrived: dict[str, set[int]] = {}
        #: What slow rebuilders are about to put in place: job, arguments, and as the model has it.
        self.built: list[tuple[str, dict[str, Any], Built]] = []

    @rule(ms=st.sampled_from([500, 500, 499, 1, LIFE]))
    def pass_time(self, ms: int) -> None:
        """Time passes."""
        self.link.command("INCRBY", CLOCK, ms)
        self.model.pass_time(ms)

    # -- after each call -----------------------------------------------------------------------

    def check_invariants(self, *args: Any, **kwargs: Any) -> None:
        """All that can be seen of the queue is what the model has."""
        super().check_invariants(*args, **kwargs)
        state = self.engine.state()
        assert state.members("slots") == set(self.model.slots)
        assert state.members("jobs") == set(self.model.jobs)
        assert state.mapping("active") == self.model.active
        assert ("suspended" in state.mapping("queue")) == self.model.suspended
        for name, job in self.model.jobs.items():
            view = JobView(state, name, self.engine.graphs[name])
            assert view.meta["state"].decode() == job.state
            assert ("sealed" in view.meta) == job.sealed
            assert view.finished == job.finished
            assert ("frozen" in view.meta) == bool(job.frozen)
            assert int(view.meta.get("damaged", 0)) == job.damaged
            assert ("asks" in view.meta) == job.asks
            assert view.parked == job.parked
            assert view.values.keys() == job.values
            assert view.sets == {s: {*job.ready_in(s)} for s in {*map(job.set_of, job.ready)}}
            assert state.mapping("sets", name) == {s: BEGIN + at for s, at in job.since.items()}
            assert view.alone == job.alone
            assert view.due == {t: BEGIN + at for t, at in job.delayed.items()}
            assert view.log == job.log
            leases = {s: (x.seq, x.tasks, x.given) for s, x in job.leases.items()}
            assert {s: (*x, view.given.get(s, [])) for s, x in view.leases.items()} == leases
            for task in job.tasks:
                if task not in job.finished:
                    assert view.wait[task] == job.wait(task), f"wait[{task}]"
                if task not in job.finished or task in job.values:
                    assert view.consumers[task] == job.consumers(task), f"consumers[{task}]"
