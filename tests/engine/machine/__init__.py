"""Random calls, each made twice: to the scripts by hand, and to the model."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from driver import LONG
from hypothesis.stateful import initialize

from machine.clients import ClientCalls, graphs, options
from machine.repairs import RepairCalls

__all__ = ["QueueMachine"]


class QueueMachine(ClientCalls, RepairCalls):
    """All calls of a queue, in whatever order."""

    @initialize(
        data=st.data(),
        graph=graphs(),
        options=options(),
        ttl=st.sampled_from([LONG, 0]),
        turns=st.integers(0, 4),
    )
    def begin(
        self, data: st.DataObject, graph: Any, options: dict[str, Any], ttl: int, turns: int
    ) -> None:
        """Two workers of two slots and of one, and a job, maybe begun."""
        for worker, tags in (("w0", ()), ("w0", ("big",)), ("w1", ("big",))):
            slot = self.engine.slot(worker, tags)
            self.model.register(slot.id, worker, 0, slot.tags)
            self.slots.append(slot)
        self.create(graph, options, ttl, whole=True)
        self.work(data, turns)
