"""A world's course in words: who called what, in order, one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dask_redisq.codec import unpack

if TYPE_CHECKING:
    from simulator.world import World

__all__ = ["tell"]

#: What is not told: it says nothing of who did what.
_HIDDEN = {"python", "info", "expiry", "payload", "edges", "consts", "hard", "record", "want", "floor", "rest"}  # fmt: skip


def tell(world: World, last: int = 200) -> str:
    """Return the last lines of a world's story."""
    lines = []
    for now, who, what, asked, answer in world.story[-last:]:
        if not who:
            lines.append(f"{now:>8}  -- {what} --")
            continue
        words = _words(asked) if isinstance(asked, dict) else " ".join(map(_short, asked))
        lines.append(f"{now:>8}  {who}: {what} {words} -> {_short(_opened(what, answer))}")
    return "\n".join(lines)


def _words(args: dict[str, Any]) -> str:
    found = []
    for name, value in args.items():
        if name in _HIDDEN or value in ("", b""):
            continue
        if name in ("batch", "failure", "held", "tags", "tasks", "wishes"):
            value = unpack(value)
        if name == "batch":
            value = [group[1] for group in value[0]]
        found.append(f"{name}={_short(value)}")
    return " ".join(found)


def _opened(what: str, answer: Any) -> Any:
    packed = {"step", "gather", "recover", "freeze", "survey"}
    return unpack(answer) if what in packed and isinstance(answer, bytes) else answer


def _short(thing: Any) -> str:
    """Return a text of it: names of jobs and slots by their first letters."""
    if isinstance(thing, bytes):
        try:
            thing = thing.decode()
            if not thing.isprintable():
                return f"<{len(thing)} bytes>"
        except UnicodeDecodeError:
            return f"<{len(thing)} bytes>"
    if isinstance(thing, str):
        if thing.startswith("redisq:"):
            return ":".join(_short(part) for part in thing.split(":")[2:])
        long_ = len(thing) >= 16 and all(c in "0123456789abcdef" for c in thing)
        return thing[:4] if long_ else thing
    if isinstance(thing, list | tuple):
        return "[" + " ".join(map(_short, thing)) + "]"
    return str(thing)
