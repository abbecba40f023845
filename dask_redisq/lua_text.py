"""Make a script small: what it does not use is left out, and keys are names, not calls. No I/O.

The server makes each function of a script anew at each call, 0.3 to 1 us for each. seal.lua, which
includes half of ``lua/lib``, made 70 functions, and that took longer than its work.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

__all__ = ["with_key_names", "without_unused"]

_PIECE = re.compile(r"^(?=local )", re.MULTILINE)
_NAMES = re.compile(r"local (?:function )?(\w+(?:, \w+)*)")
_COMMENT = re.compile(r"^\s*--.*$|\s--\s.*$", re.MULTILINE)
_WORD = re.compile(r"[A-Za-z_]\w*")
_KEY = re.compile(r"\bkey\.(\w+)\(")
_PLAIN = re.compile(r"[\w.]+(?:\[[\w.]+\])?$")


def without_unused(libraries: Iterable[str], script: str) -> list[str]:
    """Return those top-level pieces of libraries that a script needs, directly or not.

    A piece is a ``local`` that begins a line, with all that follows up to the next one; a word in
    code is a use of whatever has that name. Both err on the side of what stays.

    Parameters
    ----------
    libraries : iterable of str
        Lua texts in the order of the script: what is used stands before what uses it.
    script : str
        The text that comes behind them.

    Examples
    --------
    >>> without_unused(["local A = 1", "local B = 2", "local function f() return B end"], "f()")
    ['local B = 2', 'local function f() return B end']
    """
    needed, kept = _words(script), []
    for library in reversed(list(libraries)):
        for piece in reversed(_PIECE.split(library)):
            match = _NAMES.match(piece)
            if match is not None and not needed.isdisjoint(match[1].split(", ")):
                needed |= _words(piece)
                kept.append(piece)
    return kept[::-1]


def _words(text: str) -> set[str]:
    return set(_WORD.findall(_COMMENT.sub("", text)))


def with_key_names(text: str, patterns: Mapping[str, str]) -> str:
    """Return a Lua text with the names of keys in place of calls that look like those of functions.

    Parameters
    ----------
    text : str
        In it ``key.NAME(a, b)`` is the key NAME of a and b.
    patterns : Mapping of str to str
        Name -> what follows the prefix of the queue, with a ``%s`` for each argument.

    Raises
    ------
    ValueError
        If a key has no pattern, or other arguments.

    Examples
    --------
    >>> with_key_names("redis.call('GET', key.value(job, i + 1))", {"value": "job:%s:%s"})
    "redis.call('GET', (PREFIX .. 'job:' .. job .. ':' .. (i + 1)))"
    """
    out, at = [], 0
    while match := _KEY.search(text, at):
        words, end = _arguments(text, match.end())
        words = [with_key_names(word, patterns) for word in words]
        out += [text[at : match.start()], _concatenation(match[1], words, patterns)]
        at = end
    return "".join([*out, text[at:]])


def _arguments(text: str, start: int) -> tuple[list[str], int]:
    """Return the arguments of a call whose ``(`` ends at `start`, and where the call ends."""
    words, depth, begun, at = [], 0, start, start
    while depth >= 0:
        if text[at] == "'":
            at = text.index("'", at + 1)
        elif text[at] in "([{":
            depth += 1
        elif text[at] in ")]}":
            depth -= 1
        if depth < 0 or (depth == 0 and text[at] == ","):
            words.append(text[begun:at].strip())
            begun = at + 1
        at += 1
    return [word for word in words if word], at


def _concatenation(name: str, words: list[str], patterns: Mapping[str, str]) -> str:
    if name not in patterns:
        raise ValueError(f"key.{name} is built, and the header does not list it")
    pieces = patterns[name].split("%s")
    if len(words) != len(pieces) - 1:
        raise ValueError(f"key.{name} is of {len(pieces) - 1} arguments, not of {words}")
    parts = ["PREFIX"]
    for piece, word in zip(pieces, [*words, ""], strict=True):
        plain = not word or _PLAIN.match(word)
        parts += [f"'{piece}'"] if piece else []
        parts += [word if plain else f"({word})"] if word else []
    return f"({' .. '.join(parts)})"
