"""The one server of a world: scripts on a clock that only the world moves, older states, full memory.

The scripts are the package's own, but for what a world cannot leave to chance. They read their
time from a key that the world sets, so that an hour passes at once and a seed replays; expiries
are a thousand times as long, so that the time that a world really takes is none. They see the
members of a set in order, since Redis has them in that of a random hash. And they count 2 edges a
call where the real ones count 2,000, so that small graphs have lists to settle.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from hashlib import sha1
from typing import Any

from dask_redisq import batch, lease, scripts
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from simulator.wire import Wire

__all__ = ["CLOCK", "EDGES", "Server", "simulated"]

#: The key of the world's clock, in ms; it is no key of the queue.
CLOCK = "clock"
#: When a world begins, in ms since 1970: no time that a script reads is small.
BEGIN = 1_000_000_000_000
#: Edges that one call counts.
EDGES = 2

#: What is called in place of some commands, by each script that has them. (A wrapper of all calls
#: made scripts a third slower.)
_WORLDS_OWN = {
    "TIME": """
local function world_time()
  local now = tonumber(redis.call('GET', 'clock'))
  return {math.floor(now / 1000), now % 1000 * 1000}
end
""",
    "SMEMBERS": """
local function world_smembers(name)
  local found = redis.call('SMEMBERS', name)
  table.sort(found)
  return found
end
""",
    "PEXPIRE": """
local function world_pexpire(name, ms) return redis.call('PEXPIRE', name, ms * 1000) end
""",
    "SET": """
local function world_set(name, value, px, ms) return redis.call('SET', name, value, px, ms * 1000) end
""",
}
_CALL = re.compile(r"\bredis\.p?call\b(?:\('(\w+)'(, )?)?")
_REAL_EDGES = "local SETTLED = 2000"

#: Let time pass: all expiries come nearer, but for those of the keys that somebody renews meanwhile.
_ADVANCE = """
local kept = {}
for i = 2, #ARGV do kept[ARGV[i]] = true end
redis.call('HDEL', 'queue', '') -- before its first write a script is refused by a full server
for _, name in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', name)
  if left > 0 and not kept[name] then redis.call('PEXPIRE', name, left - ARGV[1] * 1000) end
end
return redis.call('INCRBY', 'clock', ARGV[1])
"""
_SAVE = """
local out = {}
for _, name in ipairs(redis.call('KEYS', '*')) do
  out[#out + 1] = name
  out[#out + 1] = redis.call('PTTL', name)
  out[#out + 1] = redis.call('DUMP', name)
end
return out
"""
_RESTORE = """
for i = 1, #ARGV, 3 do redis.call('RESTORE', ARGV[i], ARGV[i + 1], ARGV[i + 2]) end
"""


@contextlib.contextmanager
def simulated(
    patches: Sequence[tuple[str, str, str]] = (), *, clock: bool = True
) -> Iterator[None]:
    """Let every link of this process call the scripts as worlds have them.

    Parameters
    ----------
    patches : sequence of tuple of str, optional
        A file below ``lua/``, text in it, and what is there instead: a rule switched off.
    clock : bool, default True
        Without it they are the package's own, but for the patches.
    """
    real, read = scripts.load, scripts._read
    texts: dict[str, str] = {}
    for file, old, new in patches:
        text = texts.get(file, read(file))
        assert text.count(old) == 1, f"this is {text.count(old)} times in {file}: {old}"
        texts[file] = text.replace(old, new)

    def load(name: str) -> scripts.Script:
        script = scripts.build(name)
        text = script.text
        if clock:
            text = _on_a_worlds_clock(text).replace(_REAL_EDGES, f"local SETTLED = {EDGES}")
        return replace(
            script, text=text, sha=sha1(text.encode(), usedforsecurity=False).hexdigest()
        )

    scripts._read = lambda file: texts[file] if file in texts else read(file)  # type: ignore[assignment]
    scripts.load = cache(load)
    if clock:
        batch.EDGES = lease.EDGES = EDGES  # type: ignore[attr-defined]
    try:
        yield
    finally:
        scripts.load, scripts._read = real, read
        batch.EDGES = lease.EDGES = 2000  # type: ignore[attr-defined]


def _on_a_worlds_clock(text: str) -> str:
    """Return a script that calls what is in `_WORLDS_OWN`."""
    used: dict[str, str] = {}

    def called(match: re.Match[str]) -> str:
        assert match[1], (
            f"a script that does not say what it calls: {match.string[match.start() :][:60]}"
        )
        if match[1] not in _WORLDS_OWN:
            return match[0]
        used[match[1]] = _WORLDS_OWN[match[1]]
        return f"world_{match[1].lower()}("

    first, rest = _CALL.sub(called, text).split("\n", 1)
    return "\n".join([first, *used.values(), rest])  # a shebang stays the first line


class Server:
    """One server, one queue, and what time it is.

    Parameters
    ----------
    link, keys : Link, Keys
        The connection and the queue. All that the server holds is removed.

    Attributes
    ----------
    now : int
        The time, in ms.
    """

    def __init__(self, link: Link, keys: Keys) -> None:
        self.link = link
        self.keys = keys
        self.now = BEGIN
        self._saved: tuple[int, list[Any]] | None = None
        self._full = False
        # Each look at the whole state makes dumps of all keys, and compressing those took longer.
        self._wire = Wire(link)
        self.commands([
            ("CONFIG", "SET", "rdbcompression", "no"), ("FLUSHALL",), ("SET", CLOCK, self.now),
        ])  # fmt: skip

    def __repr__(self) -> str:
        return f"<Server at {self.now - BEGIN} ms>"

    @property
    def elapsed(self) -> int:
        """Milliseconds since the world began."""
        return self.now - BEGIN

    def call(self, script: str, args: Mapping[str, object]) -> Any:
        """Call a script of the queue."""
        return self._wire.call(script, self.keys, args)[0]

    def call_and_look(
        self, script: str, args: Mapping[str, object], words: Sequence[Any]
    ) -> tuple[Any, bytes]:
        """Call a script, and send a command that looks at what it did; in one round trip."""
        answer, seen = self._wire.call(script, self.keys, args, words)
        return answer, seen

    def commands(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send some commands in one round trip."""
        return self._wire.ask(*commands) if commands else []

    def command(self, *words: Any) -> Any:
        """Send one command."""
        if words[0] == "TIME":
            return [self.now // 1000, self.now % 1000 * 1000]
        if words[0] in ("SET", "PEXPIRE"):
            words = (*words[:-1], words[-1] * 1000) if "PX" in words or words[0] != "SET" else words
        return self._wire.ask(words)[0]

    def advance(self, ms: int, renewed: Mapping[str, int] | None = None) -> list[int]:
        """Let time pass; tell which of the keys `renewed` are there, which are renewed meanwhile.

        Parameters
        ----------
        renewed : Mapping of str to int, optional
            Key -> its expiry, in ms.
        """
        renewed = renewed or {}
        self.now += ms
        _, *found = self.commands([
            ("EVAL", _ADVANCE, 0, ms, *renewed),
            *[("PEXPIRE", name, expiry * 1000) for name, expiry in renewed.items()],
        ])  # fmt: skip
        return found

    def save(self) -> None:
        """Remember the state, as a snapshot on disk."""
        self._saved = (self.now, self.command("EVAL", _SAVE, 0))

    def roll_back(self, *, empty: bool = False) -> bool:
        """Come back with the state that was saved, or none; tell whether there is one."""
        then, items = (self.now, []) if empty else self._saved or (0, None)
        if items is None:
            return False
        self.full = False
        self.command("FLUSHALL")
        passed, words = 1000 * (self.now - then), list[Any]()
        for name, left, data in zip(items[::3], items[1::3], items[2::3], strict=True):
            if name != CLOCK.encode() and left > passed:
                words += [name, left - passed, data]
        if words:
            self.command("EVAL", _RESTORE, 0, *words)
        self.command("SET", CLOCK, self.now)
        return True

    @property
    def full(self) -> bool:
        """Whether the memory is full: nothing is taken that needs more."""
        return self._full

    @full.setter
    def full(self, full: bool) -> None:
        if full != self._full:
            self.command("CONFIG", "SET", "maxmemory", 1 if full else 0)
            self._full = full
