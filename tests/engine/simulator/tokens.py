"""Who waits for a token looks for it, all of them in one command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.actors import Actor, Wait

if TYPE_CHECKING:
    from simulator.world import World

__all__ = ["look_for_tokens"]


def look_for_tokens(world: World, actors: list[Actor]) -> None:
    """Let those who wait, up to the first who goes on, have looked if there is no token for any of them.

    If there is one, or somebody has to connect first, each looks by himself. A world without this is
    the same world: half of its commands looked for tokens, one after the other.
    """
    looking: list[tuple[Actor, str]] = []
    for actor in actors:
        if actor.over or actor.frozen:
            continue
        if not isinstance(actor.op, Wait):
            break
        if actor.op.wake and actor.looked != world.calls:
            if actor.unbroken_since is None:
                break
            looking.append((actor, actor.op.wake))
        if actor.op.until <= world.server.now:
            break
    if len(looking) > 1 and not world.server.command("EXISTS", *[name for _, name in looking]):
        for actor, _ in looking:
            actor.looked = world.calls
