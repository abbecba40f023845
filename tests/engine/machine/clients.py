"""What clients call: jobs are made, uploaded, read, ended."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from driver import LONG
from hypothesis.stateful import precondition, rule
from model import Job
from model.job import SOFT

from machine.base import Machine

__all__ = ["ClientCalls", "graphs", "options"]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[int, tuple[int, ...]], set[int]]:
    """Draw a small graph: the inputs of each task, and the outputs."""
    n = draw(st.sampled_from([6, 8, 4, 3, 2, 1]))
    few = st.sampled_from([0, 1, 2])
    inputs = {
        t: tuple(sorted(draw(st.sets(st.integers(0, t - 1), max_size=draw(few))))) if t else ()
        for t in range(n)
    }
    used = {i for its in inputs.values() for i in its}
    outputs = {t for t in range(n) if t not in used} | draw(
        st.sets(st.integers(0, n - 1), max_size=1)
    )
    return inputs, outputs


#: Of a worker, of some slots, of nobody; and those that others may run, too.
TAGS = [("w1",), ("big",), ("nobody",), ("w0", SOFT), ("nobody", SOFT)]


def options() -> st.SearchStrategy[dict[str, Any]]:
    """What a job may be given, by the names that the scripts and the model share."""
    return st.fixed_dictionaries(
        {
            "block": st.sampled_from([2, 128]),
            "chunk": st.sampled_from([3, 0, 2, 3, -1]),
            "priority": st.integers(0, 1),
            "retries": st.integers(0, 2),
            "asks": st.sampled_from([False, False, True]),
            "patience": st.just(500),
            "hard": st.dictionaries(st.integers(0, 7), st.sampled_from(TAGS), max_size=3),
            "retry_delay": st.sampled_from([0, 500]),
        }
    )


class ClientCalls(Machine):
    """The calls of clients."""

    @precondition(lambda self: len(self.model.jobs) < 3)
    @rule(
        graph=graphs(), options=options(), ttl=st.sampled_from([LONG, 0]),
        whole=st.sampled_from([True, True, True, False]),
    )  # fmt: skip
    def create(self, graph: Any, options: dict[str, Any], ttl: int, whole: bool) -> None:
        """A job is made, and maybe all of it is sent."""
        inputs, outputs = graph
        hard = {t: tags for t, tags in options["hard"].items() if t in inputs}
        options = {**options, "hard": hard}
        told = {"policy": "return {}" if options["asks"] else "", **options}
        told.pop("asks")
        name = self.engine.create(inputs, outputs, allowed=2, ttl=ttl, **told)
        tasks = tuple(inputs[t] for t in range(len(inputs)))
        self.model.jobs[name] = job = Job(
            tasks,
            frozenset(outputs),
            allowed=2,
            detached=ttl > 0,
            epoch=self.engine.epochs[name],
            **options,
        )
        self.cursors[name], self.arrived[name] = (0, b""), set()
        if whole:
            for number in job.numbers:
                self._put_block(name, number)
            self._call("seal", name, wait=0)

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), seal=st.booleans())
    def upload(self, data: st.DataObject, seal: bool) -> None:
        """A block arrives, maybe once more; or the word that all are there."""
        name = data.draw(st.sampled_from(sorted(self.model.jobs)))
        if seal:
            self._call("seal", name, wait=0)
        else:
            self._put_block(name, data.draw(st.sampled_from(self.model.jobs[name].numbers)))

    def _put_block(self, name: str, number: int) -> None:
        assert self.engine.put_block(name, number).decode() == self.model.put_block(name, number)

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), verb=st.sampled_from(["sweep", "sweep", "forget", "cancel"]))
    def end_job(self, data: st.DataObject, verb: str) -> None:
        """A job that ended is swept, or one is forgotten or cancelled."""
        name = data.draw(st.sampled_from(sorted(self.model.jobs)))
        self._call(verb, name, **({"reason": "", "tomb": ""} if verb == "cancel" else {}))

    def _call(self, verb: str, name: str, **more: object) -> None:
        answer = self.engine.call(verb, job=name, **more)
        answer = answer.decode() if isinstance(answer, bytes) else answer
        assert answer == getattr(self.model, verb)(name)

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), limit=st.integers(1, 3), arrived=st.booleans())
    def gather(self, data: st.DataObject, limit: int, arrived: bool) -> None:
        """A client asks for outputs; what it got the last time has arrived, or is asked for again."""
        name = data.draw(st.sampled_from(sorted(self.model.jobs)))
        cursor, generation = self.cursors[name]
        found = self.engine.gather(name, cursor, limit, generation)
        state, error, finished, cursor, outputs, wanted = self.model.gather(
            name, cursor, limit, generation.decode()
        )
        assert (found.state, found.finished, found.cursor) == (state, finished, cursor)
        assert list(found.values) == outputs
        assert found.wanted == wanted
        told = found.error and (found.error[0].decode(), found.error[1])
        assert (told or ("", -1)) == error
        if arrived:
            self.cursors[name] = cursor, found.generation
            self.arrived[name] |= {t for t, value in found.values.items() if value is not None}
