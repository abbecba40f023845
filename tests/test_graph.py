"""A plan without what has arrived: what is left to compute, for a client that submits again."""

from __future__ import annotations

import random
import weakref
from pathlib import Path
from typing import Any

import pandas as pd
from dask.utils_test import inc

from dask_redisq.graph import plan_graph
from dask_redisq.plan import Plan
from dask_redisq.task import run_task


def run(plan: Plan) -> dict[int, Any]:
    """Run the tasks of a plan in the order of their numbers; return task -> value."""
    values: dict[int, Any] = {}
    for first in plan.block_starts():
        for i, task in enumerate(plan.block(first).tasks):
            values[first + i] = run_task(task, values)
    return values


def test_what_is_missing_is_computed_from_what_arrived() -> None:
    """Three outputs in a chain; the middle one arrived, so only the last is left."""
    plan = plan_graph({"a": (inc, 0), "b": (inc, "a"), "c": (inc, "b")}, ["a", "b", "c"])
    task = plan.outputs["b"]
    left = plan.without({task: 100, plan.outputs["a"]: 1})
    assert left.keys == ["c"]
    assert left.inputs == [()]
    assert run(left) == {0: 101}
    assert left.outputs == {"c": 0}


def test_what_only_the_received_needed_is_left_out() -> None:
    """Its inputs are not run again."""
    plan = plan_graph({"a": (inc, 0), "b": (inc, "a"), "z": (inc, 5)}, ["b", "z"])
    left = plan.without({plan.outputs["b"]: 2})
    assert left.keys == ["z"]


def test_a_restriction_stays_with_its_task() -> None:
    """Under its new number."""
    plan = plan_graph({"a": (inc, 0), "b": (inc, 1)}, ["a", "b"])
    plan.restricted = {plan.outputs["b"]: ("gpu",)}
    plan.limits = {plan.outputs["b"]: (1.0, 2)}
    left = plan.without({plan.outputs["a"]: 1})
    assert left.limits == {left.outputs["b"]: (1.0, 2)}
    assert left.restricted == {left.outputs["b"]: ("gpu",)}


def test_an_alias_of_what_arrived_is_known() -> None:
    """A task reads a received value by another name."""
    plan = plan_graph({"a": (inc, 0), "n": "a", "b": (inc, "n")}, ["n", "b"])
    left = plan.without({plan.outputs["n"]: 41})
    assert run(left) == {0: 42}


def test_any_graph_gives_the_same_outputs_after_any_loss() -> None:
    """500 random graphs, of which any part of the outputs arrived; then once more."""
    for seed in range(500):
        rng = random.Random(seed)
        n = rng.randint(1, 25)
        dsk: dict[Any, Any] = {"const": 7}
        for i in range(n):
            inputs = rng.sample(range(i), min(i, rng.choice([0, 1, 2, 3])))
            args: list[Any] = [("t", j) for j in inputs] + rng.choice([[], ["const"], [i]])
            rng.shuffle(args)
            dsk["t", i] = rng.choice([(sum, args), (max, 0, 0, *args)])
        keys = rng.sample([("t", i) for i in range(n)], rng.randint(1, n))
        plan = plan_graph(dsk, keys)
        whole = run(plan)
        expected = {key: whole[task] for key, task in plan.outputs.items()}
        found: dict[Any, Any] = {}
        for _ in range(2):
            tasks = [t for t in set(plan.outputs.values()) if rng.random() < 0.5]
            if len(tasks) == len(set(plan.outputs.values())):
                tasks.pop()
            received = {t: whole[t] for t in tasks}
            found |= {k: received[t] for k, t in plan.outputs.items() if t in received}
            plan = plan.without(received)
            whole = run(plan)
            assert [len(u) for u in plan.users] == [
                sum(t in inputs for inputs in plan.inputs) for t in range(len(plan))
            ]
        found |= {key: whole[task] for key, task in plan.outputs.items()}
        assert found == expected, f"the seed is {seed}"


def test_only_what_can_be_read_once_becomes_a_list(tmp_path: Path) -> None:
    """An open file has lines, and a weak proxy has every method: they stay what they are."""
    from dask_redisq.task import settled

    frame = pd.DataFrame({"x": [1]})
    with (tmp_path / "file").open("w") as file:
        for kept in (file, weakref.proxy(frame), frame, [1], "ab"):
            assert settled(kept) is kept
    assert settled(iter("ab")) == settled(x for x in "ab") == ["a", "b"]
