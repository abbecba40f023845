"""A call that comes once more: it must change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from state import SUMS, State

from simulator.actors import Call

if TYPE_CHECKING:
    from simulator.world import World

__all__ = ["replay"]

#: Scripts of which a second call must change nothing; others work in slices.
REPLAYED = {
    "cancel", "create", "drop_values", "forget", "freeze", "give_back", "greet", "lend", "put_block", "rebuild", "register", "rerun",
    "renew", "renew_client", "report_missing", "seal", "stage", "step", "suspend", "unregister",
}  # fmt: skip


def replay(world: World, state: State, call: Call) -> None:
    """Send a call again, after which the state was this one, and assert that it is still."""
    if call.script not in REPLAYED or _moves_on(state, call.args):
        return
    _, sums = world.server.call_and_look(call.script, call.args, SUMS)
    if not state.same(sums):
        changed = state.difference(State(world.server.link, world.server.keys))
        assert not changed, f"a replay of {call.script} changes {changed}"


def _moves_on(state: State, args: dict[str, Any]) -> bool:
    """Tell whether each call counts more edges: no answer of the unregistered is kept."""
    unregistered = "slot" in args and args["slot"] not in state.members("slots")
    return unregistered and bool(state.get("settle", args.get("job", "")))
