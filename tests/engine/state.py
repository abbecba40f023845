"""All that a server holds at one moment, in one round trip; what did not change is not read again."""

from __future__ import annotations

from typing import Any

from dask_redisq.codec import pack, unpack
from dask_redisq.keys import Keys
from dask_redisq.link import Link

__all__ = ["SUMS", "State", "look"]

#: Of every key its name, the checksum of its dump, and milliseconds to live; type and content, too,
#: unless the caller knows that checksum. (TYPE alone takes half as long as DUMP with its checksum.)
_LOOK = """
local known = cmsgpack.unpack(ARGV[1])
local read = {
  string = function(name) return redis.call('GET', name) end,
  hash = function(name) return redis.call('HGETALL', name) end,
  set = function(name) return redis.call('SMEMBERS', name) end,
  list = function(name) return redis.call('LRANGE', name, 0, -1) end,
  stream = function(name) return redis.call('XRANGE', name, '-', '+') end,
  zset = function(name) return redis.call('ZRANGE', name, 0, -1, 'WITHSCORES') end,
}
local out, n = {}, 0
local scale = redis.call('EXISTS', 'clock') == 1 and 1000 or 1
for _, name in ipairs(redis.call('KEYS', '*')) do
  if name ~= 'clock' then -- of a simulated world, see simulator/server.py
    local sum = string.sub(redis.call('DUMP', name), -8)
    out[n + 1], out[n + 2] = name, sum
    out[n + 3] = math.floor(redis.call('PTTL', name) / scale)
    if known[name] == sum then
      out[n + 4], out[n + 5] = false, false
    else
      local kind = redis.call('TYPE', name).ok
      out[n + 4], out[n + 5] = kind, read[kind](name)
    end
    n = n + 5
  end
end
return cmsgpack.pack(out)
"""
_SUMS = """
local out = {}
for _, name in ipairs(redis.call('KEYS', '*')) do
  if name ~= 'clock' then
    out[#out + 1] = name
    out[#out + 1] = string.sub(redis.call('DUMP', name), -8)
  end
end
return table.concat(out)
"""
#: The command that `State.same` takes the reply of.
SUMS = ("EVAL", _SUMS, 0)


def look(before: State | None = None) -> tuple[Any, ...]:
    """Return the command that reads all keys, but for the content that `before` has."""
    return ("EVAL", _LOOK, 0, pack({} if before is None else before.sums))


class State:
    """All keys of the database at one moment, each in its Python form.

    Parameters
    ----------
    link, keys : Link, Keys
        What is read, and the queue.
    before : State, optional
        An earlier state: its content is shared where it is the same.
    reply : bytes, optional
        The reply to ``look(before)``, if that was sent already.

    Attributes
    ----------
    sums : dict of bytes to bytes
        Name -> checksum of the content.
    """

    def __init__(
        self, link: Link, keys: Keys, before: State | None = None, reply: bytes = b""
    ) -> None:
        self.keys = keys
        self.content: dict[str, Any] = {}
        self.ttl: dict[str, int] = {}
        self.sums: dict[bytes, bytes] = {}
        found = unpack(reply or link.command(*look(before)))
        for i in range(0, len(found), 5):
            raw, total, ttl, kind, content = found[i : i + 5]
            name = raw.decode()
            self.sums[raw] = total
            self.ttl[name] = ttl
            if kind or before is None:
                self.content[name] = _python_form(kind, content)
            else:
                self.content[name] = before.content[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and self.content == other.content

    __hash__ = None  # type: ignore[assignment]

    def same(self, reply: bytes) -> bool:
        """Tell by a reply to `SUMS` whether nothing changed; false may mean another order only."""
        return b"".join([word for pair in self.sums.items() for word in pair]) == reply

    def get(self, name: str, *parts: object) -> Any:
        """Return what a key holds, None without it."""
        return self.content.get(self.keys(name, *parts))

    def mapping(self, name: str, *parts: object) -> dict[str, Any]:
        """Return a hash, or a sorted set with its scores, as a dict."""
        return self.get(name, *parts) or {}

    def members(self, name: str, *parts: object) -> set[str]:
        """Return the members of a set or a sorted set."""
        return set(self.get(name, *parts) or ())

    def difference(self, other: State) -> dict[str, tuple[Any, Any]]:
        """Return name -> (here, there) for keys that differ; for messages."""
        names = self.content.keys() | other.content.keys()
        pairs = {n: (self.content.get(n), other.content.get(n)) for n in sorted(names)}
        return {n: (a, b) for n, (a, b) in pairs.items() if a != b}


def _python_form(kind: bytes, content: Any) -> Any:
    if kind == b"hash":
        return {k.decode(): v for k, v in zip(content[::2], content[1::2], strict=True)}
    if kind == b"zset":
        return {k.decode(): float(v) for k, v in zip(content[::2], content[1::2], strict=True)}
    if kind == b"set":
        return {x.decode() for x in content}
    if kind == b"stream":
        return [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in content]
    return content
