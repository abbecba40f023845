"""Random sequences of calls: the scripts and the model agree in each answer and in what is left."""

from __future__ import annotations

import os
from typing import Any

import hypothesis.strategies as st
import pytest
from driver import PYTHON, Answer, Engine, Slot
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from invariants import JobView
from model import Job, Queue
from redis.exceptions import ResponseError
from simulator.ablations import ABLATIONS
from simulator.server import simulated

from dask_redisq.codec import pack
from dask_redisq.keys import Keys
from dask_redisq.link import Link

#: Sequences, and calls in each; `tox -e simulate` asks for more.
EXAMPLES = int(os.environ.get("REDISQ_MODEL_EXAMPLES", "60"))
CALLS = 40
LIMITS = {
    "stateful_step_count": CALLS,
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[int, tuple[int, ...]], set[int]]:
    """Draw a small graph: the inputs of each task, and the outputs."""
    n = draw(st.integers(1, 6))
    inputs = {
        t: tuple(sorted(draw(st.sets(st.integers(0, t - 1), max_size=2)))) if t else ()
        for t in range(n)
    }
    used = {i for its in inputs.values() for i in its}
    outputs = {t for t in range(n) if t not in used} | draw(
        st.sets(st.integers(0, n - 1), max_size=1)
    )
    return inputs, outputs


class QueueMachine(RuleBasedStateMachine):
    """Makes each call twice: to the scripts by hand, and to the model."""

    link: Link

    def __init__(self) -> None:
        super().__init__()
        self.link.command("FLUSHALL")
        self.engine = Engine(self.link, Keys("model"), replay=False)
        self.engine.checking = False
        self.model = Queue()
        self.slots: list[Slot] = []
        #: What a slot reported in each of its calls, for copies that come late.
        self.calls: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.cursors: dict[str, int] = {}

    @initialize()
    def begin(self) -> None:
        """Two workers of two slots and of one."""
        for worker in ("w0", "w0", "w1"):
            slot = self.engine.slot(worker)
            self.model.register(slot.id, worker, 0)
            self.slots.append(slot)

    # -- jobs --------------------------------------------------------------------------------

    @precondition(lambda self: len(self.model.jobs) < 3)
    @rule(
        graph=graphs(), block=st.sampled_from([2, 128]), chunk=st.sampled_from([0, 0, 1, 2, -1]),
        priority=st.integers(0, 1), retries=st.integers(0, 2), ttl=st.sampled_from([0, 0, 3_600_000]),
    )  # fmt: skip
    def create(
        self, graph: Any, block: int, chunk: int, priority: int, retries: int, ttl: int
    ) -> None:
        """A job is made."""
        inputs, outputs = graph
        options: dict[str, Any] = {
            "block": block,
            "chunk": chunk,
            "priority": priority,
            "retries": retries,
        }
        name = self.engine.create(inputs, outputs, allowed=2, ttl=ttl, **options)
        tasks = tuple(inputs[t] for t in range(len(inputs)))
        self.model.jobs[name] = Job(
            tasks, frozenset(outputs), allowed=2, detached=ttl > 0, **options
        )
        self.cursors[name] = 0

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data())
    def upload(self, data: st.DataObject) -> None:
        """A block arrives, maybe once more."""
        name = data.draw(st.sampled_from(sorted(self.model.jobs)))
        job = self.model.jobs[name]
        number = data.draw(st.integers(0, (len(job.inputs) - 1) // job.block))
        assert self.engine.put_block(name, number).decode() == self.model.put_block(name, number)

    @precondition(lambda self: self.model.jobs)
    @rule(
        data=st.data(), verb=st.sampled_from(["seal", "seal", "seal", "cancel", "forget", "sweep"])
    )
    def manage(self, data: st.DataObject, verb: str) -> None:
        """A job is sealed, cancelled, forgotten or swept."""
        name = data.draw(st.sampled_from(sorted(self.model.jobs)))
        words: dict[str, dict[str, object]]
        words = {"cancel": {"reason": "", "tomb": ""}, "seal": {"wait": 0}}
        more = words.get(verb, {})
        answer = self.engine.call(verb, job=name, **more)
        answer = answer.decode() if isinstance(answer, bytes) else answer
        assert answer == getattr(self.model, verb)(name)

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), limit=st.integers(1, 3), arrived=st.booleans())
    def gather(self, data: st.DataObject, limit: int, arrived: bool) -> None:
        """A client asks for outputs; what it got the last time has arrived, or is asked for again."""
        name = data.draw(st.sampled_from(sorted(self.model.jobs)))
        found = self.engine.gather(name, self.cursors[name], limit)
        state, error, finished, cursor, outputs, wanted = self.model.gather(
            name, self.cursors[name], limit
        )
        assert (found.state, found.finished, found.cursor) == (state, finished, cursor)
        assert list(found.values) == outputs
        assert found.wanted == wanted
        told = found.error and (found.error[0].decode(), found.error[1])
        assert (told or ("", -1)) == error
        self.cursors[name] = cursor if arrived else self.cursors[name]

    @precondition(lambda self: any(job.values for job in self.model.jobs.values()))
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        """A slot did not find an input that is there."""
        with_values = sorted(name for name, job in self.model.jobs.items() if job.values)
        name = data.draw(st.sampled_from(with_values))
        job = self.model.jobs[name]
        task = data.draw(st.sampled_from([-1, *job.tasks]))
        needed = data.draw(st.sampled_from(sorted(job.values)))
        answer = self.engine.call("report_missing", job=name, task=task, input=needed)
        assert answer.decode() == self.model.report_missing(name, task, needed)

    # -- slots -------------------------------------------------------------------------------

    @rule(
        data=st.data(), fails=st.booleans(), follow=st.booleans(),
        want=st.sampled_from([(1000, 1000), (1000, 1), (2, 2), (0, 1)]),
    )  # fmt: skip
    def step(self, data: st.DataObject, fails: bool, follow: bool, want: tuple[int, int]) -> None:
        """A slot reports some of its lease, and what followed from it, and gets the next."""
        slot = self.slots[data.draw(st.integers(0, 2))]
        groups, components, failure, job = [], list[list[int]](), None, ""
        if slot.lease is not None and slot.lease.job in self.engine.graphs:
            job = slot.lease.job
            made = slot.lease.tasks[: data.draw(st.integers(0, len(slot.lease.tasks)))]
            made = self._followed(slot, made) if follow else made
            if fails and made:
                failure = made.pop()
            groups = self.engine.groups(slot, made)
            components = [tasks for kind, names, *_ in groups for tasks in ([names] if kind else [[t] for t in names])]  # fmt: skip
        known = data.draw(st.sampled_from(["", *sorted(self.model.jobs)]))
        args = self.engine.prepare(
            slot, groups, failure=None if failure is None else (failure, b"boom"), want=want[0],
            floor=want[1], known=known, rest=True, job=job,
        )  # fmt: skip
        told = {
            "slot": slot.id, "seq": args["seq"], "name": job, "components": components, "failure": failure,
            "known": known, "want": want[0], "floor": want[1],
        }  # fmt: skip
        self.calls.append((args, told))
        slot.lease = self._send(args, told).lease

    def _followed(self, slot: Slot, made: list[int]) -> list[int]:
        """Return these tasks and all that can be made from them alone."""
        assert slot.lease is not None
        graph, made = self.engine.graphs[slot.lease.job], list(made)
        for task in range(len(graph)):
            inputs = set(graph.inputs[task])
            if not slot.lease.alone and task not in made and inputs and inputs <= set(made):
                made.append(task)
        return made

    def _send(self, args: dict[str, Any], told: dict[str, Any]) -> Answer:
        answer = self.engine.send(args)
        lease = answer.lease
        held = (lease.job, lease.tasks, lease.alone) if lease else ("", [], False)
        expected = self.model.step(**told)
        assert (answer.status, answer.refused, *held) == expected
        return answer

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def step_again(self, data: st.DataObject) -> None:
        """A copy of some step arrives, of the last one or of an older one."""
        args, told = self.calls[-1 - data.draw(st.integers(0, len(self.calls) - 1))]
        self._send(args, told)

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
        new = self.engine.slot(slot.worker)
        self.model.register(new.id, slot.worker, 0)
        self.slots[self.slots.index(slot)] = new

    @rule(worker=st.sampled_from(["w0", "w1"]))
    def lose(self, worker: str) -> None:
        """A worker is missed; it lives, and registers again."""
        assert self.engine.lose_worker(worker) == [worker]
        self.model.lose(worker)
        for slot in self.slots:
            if slot.worker == worker:
                self.engine.register(slot)
                self.model.register(slot.id, worker, slot.seq)

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

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        """What waits behind a long task is given to others."""
        slot = self.slots[data.draw(st.integers(0, 2))]
        if slot.lease is None:
            return
        position = data.draw(st.integers(0, len(slot.lease.tasks)))
        idle = self.link.command("ZCARD", self.engine.keys("idle", PYTHON)) > 0
        answer = self.engine.give_back(slot, position).decode()
        seq = slot.lease.seq
        assert answer == self.model.give_back(slot.id, seq, position, somebody_idle=idle)

    # -- after each call -----------------------------------------------------------------------

    def check_invariants(self, *args: Any, **kwargs: Any) -> None:
        """All that can be seen of the queue is what the model has."""
        super().check_invariants(*args, **kwargs)
        state = self.engine.state()
        assert state.members("slots") == set(self.model.slots)
        assert state.members("jobs") == set(self.model.jobs)
        assert state.mapping("active") == self.model.active
        for name, job in self.model.jobs.items():
            view = JobView(state, name, self.engine.graphs[name])
            assert view.meta["state"].decode() == job.state
            assert ("sealed" in view.meta) == job.sealed
            assert view.finished == job.finished
            assert view.values.keys() == job.values
            assert view.sets.get("", set()) == job.ready
            assert view.alone == job.alone
            assert view.log == job.log
            leases = {s: (x.seq, x.tasks, x.given) for s, x in job.leases.items()}
            assert {s: (*x, view.given.get(s, [])) for s, x in view.leases.items()} == leases
            for task in job.tasks:
                if task not in job.finished:
                    assert view.wait[task] == job.wait(task), f"wait[{task}]"
                if task not in job.finished or task in job.values:
                    assert view.consumers[task] == job.consumers(task), f"consumers[{task}]"


@pytest.fixture
def machine(link: Link) -> type[QueueMachine]:
    """The machine on the test's server."""
    return type("Machine", (QueueMachine,), {"link": link})


def test_the_scripts_do_what_the_model_says(machine: type[QueueMachine]) -> None:
    """Whatever is called in whatever order."""
    limits: dict[str, Any] = {**LIMITS, "max_examples": EXAMPLES}
    run_state_machine_as_test(machine, settings=settings(**limits))


@pytest.mark.parametrize(
    "rule_off",
    [
        "R2, an accepted task leaves ready sets and leases",
        "R3, what may have run before runs alone",
        "R6, an older call is refused",
        "R17, a block counts once",
    ],
)
def test_the_model_misses_a_rule(machine: type[QueueMachine], rule_off: str) -> None:
    """With one rule switched off in the Lua they do not agree."""
    # The first example that fails ends it. Job ids are random, and so is which of two is due first.
    limits: dict[str, Any] = {**LIMITS, "max_examples": 2000, "phases": [Phase.generate]}
    limits |= {"report_multiple_bugs": False, "derandomize": True}
    patched = simulated(ABLATIONS[rule_off].patches, clock=False)
    with patched, pytest.raises((AssertionError, ResponseError, KeyError)):
        run_state_machine_as_test(machine, settings=settings(**limits))
