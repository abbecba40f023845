"""Which of the ready tasks a slot may be given: those that are its own, and the others in their order."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from dask_redisq.annotations import SOFT
from simulator.jobs import Job

if TYPE_CHECKING:
    from simulator.world import World

__all__ = ["check_order", "check_patience"]


def check_order(world: World, job: Job, tasks: list[int]) -> None:
    """Of an ordered job no lower task is left in the set that a lease was taken from.

    A job with a policy is not looked at: what that wishes goes first. Nor is one with values stored
    apart: where they were made their users go first.
    """
    if not job.settings["ordered"] or job.settings["policy"] or job.apart:
        return
    keys, wanted = world.server.keys, job.graph.hard.get(tasks[0])
    name = keys("ready", job.id)
    if wanted:
        name = keys("tagged", job.id, f"hard:{job.graph.restrictions.index(wanted) + 1}")
    left = world.server.command("ZRANGE", name, 0, 0)
    assert not left or int(left[0]) > max(tasks), (
        f"{tasks} of {job} are leased, and {int(left[0])} is left"
    )


def check_patience(
    world: World, job: Job, slot: str, tags: Collection[str], tasks: list[int]
) -> None:
    """What is meant for others a slot gets only after a while, or when they are gone.

    Looked at if all was seen right before the call that leased these tasks.
    """
    state, now = world.judge.state, world.server.now
    if state is None or world.judge.looked != world.calls - 1:
        return
    for name, since in state.mapping("sets", job.id).items():
        found = {int(task) for task in state.members("tagged", job.id, name)}.intersection(tasks)
        if not found or now - since >= job.settings["patience"]:
            continue
        if name.startswith("hard:"):
            wanted = job.graph.restrictions[int(name[5:]) - 1]
            meant = SOFT not in wanted or not set(wanted).isdisjoint(tags)
        else:
            meant = name == slot or name not in state.members("slots")
        assert meant, (
            f"{slot} takes {found} of {job} from {name!r}, which are there since {since:.0f}"
        )
