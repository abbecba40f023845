"""Make a script small: what it does not use is left out, and keys are names, not calls. No I/O.

The server makes each function of a script anew at each call, 0.3 to 1 us for each. seal.lua, which
includes half of ``lua/lib``, made 70 functions, and that took longer than its work.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from dask_redisq.keys import PATTERNS

__all__ = ["Piece", "needed_pieces", "pieces_of", "whole_piece", "with_seldom"]

_PIECE = re.compile(r"^(?=local )", re.MULTILINE)
_NAMES = re.compile(r"local (?:function )?(\w+(?:, ?\w+)*)")
_TOKEN = re.compile(r"'[^']*'|[()\[\]{},]")
_LINE_COMMENT = re.compile(r"^ *--.*(?:\n|\Z)", re.MULTILINE)
_COMMENT = re.compile(r"\s--\s.*$", re.MULTILINE)
_STRING = re.compile(r"'[^']*'")
_WORD = re.compile(r"[A-Za-z_]\w*")
_KEY = re.compile(r"\bkey\.(\w+)\(")
#: An argument that needs no parentheses.
_PLAIN = re.compile(r"[\w.]+(?:\[[\w.]+\])?$")


@dataclass(frozen=True)
class Piece:
    """Some Lua that is used as a whole, or not at all.

    Attributes
    ----------
    names : frozenset of str
        What it defines.
    words : frozenset of str
        All that it may use: a word in code is a use of whatever has that name.
    keys : frozenset of str
        The keys that it builds.
    text : str
        It, without comments, and with the names of keys in place of calls.
    """

    names: frozenset[str]
    words: frozenset[str]
    keys: frozenset[str]
    text: str


def pieces_of(library: str) -> list[Piece]:
    r"""Return the pieces of a library: each ``local`` at the beginning of a line, up to the next.

    Raises
    ------
    ValueError
        If something else stands before the first one, or as for `whole_piece`.

    Examples
    --------
    >>> [sorted(piece.names) for piece in pieces_of("local A, B = 1, 2\nlocal function f() end")]
    [['A', 'B'], ['f']]
    """
    first, *rest = _PIECE.split(_LINE_COMMENT.sub("", library))
    if first.strip():
        raise ValueError(f"a library begins with a local, not with {first.strip()!r}")
    return [whole_piece(text) for text in rest]


def whole_piece(text: str) -> Piece:
    """Return a Lua text as one piece.

    ``key.NAME(a, b)`` is the key NAME of a and b. A call of a function that puts the name together
    cost as much as the command that it is for.

    Raises
    ------
    ValueError
        If a key has no pattern in `keys.PATTERNS`, or other arguments, or is written otherwise.

    Examples
    --------
    >>> whole_piece("redis.call('GET', key.value(job, i + 1, a))").text
    "redis.call('GET', (PREFIX .. 'job:' .. job .. ':value:' .. (i + 1) .. ':' .. a))"
    """
    text = _LINE_COMMENT.sub("", text)
    plain = _COMMENT.sub("", text)
    found = _NAMES.match(text)
    expanded = _with_key_names(plain)
    if left := re.search(r"\bkey\.\w+", expanded):
        raise ValueError(f"{left[0]} is no call: only key.NAME(...) stands for a key")
    return Piece(
        frozenset(_WORD.findall(found[1]) if found else ()),
        frozenset(_WORD.findall(plain)),
        frozenset(_KEY.findall(plain)),
        expanded,
    )


def needed_pieces(libraries: Iterable[Sequence[Piece]], script: Piece) -> list[Piece]:
    """Return those pieces of libraries that a script needs, directly or not, and the script.

    Parameters
    ----------
    libraries : iterable of sequence of Piece
        In the order of the text: what is used stands before what uses it.
    script : Piece
        What comes behind them.
    """
    words, kept = set(script.words), [script]
    for library in reversed(list(libraries)):
        for piece in reversed(library):
            if not piece.names.isdisjoint(words):
                words |= piece.words
                kept.append(piece)
    return kept[::-1]


def with_seldom(pieces: Sequence[Piece], seldom: Collection[str]) -> list[str]:
    """Return the texts of pieces, some functions inside of one that is called when they are needed.

    A call ``wake(a)`` of such a function becomes ``seldom'wake'(a)``. The first one makes them all.

    Parameters
    ----------
    pieces : sequence of Piece
        As `needed_pieces` returns them.
    seldom : collection of str
        Names of functions; those that are not among the pieces are left out.

    Raises
    ------
    ValueError
        For one that is not only called.

    Examples
    --------
    >>> parts = [whole_piece(text) for text in ("local function f() end", "if x then f() end")]
    >>> for text in with_seldom(parts, {"f"}):
    ...     print(text)
    local made, seldom
    seldom = function(name)
    if made then return made[name] end
    local function f() end
    made = {f = f}
    return made[name]
    end
    if x then seldom'f'() end
    """
    rare = [piece for piece in pieces[:-1] if piece.names and piece.names <= set(seldom)]
    names = [name for piece in rare for name in sorted(piece.names)]
    if not rare:
        return [piece.text for piece in pieces]
    call = re.compile(rf"(?<![\w.:])({'|'.join(names)})(?=\()")
    texts = []
    for piece in pieces:
        if piece not in rare:
            texts.append(call.sub(r"seldom'\1'", piece.text))
            left = set(_WORD.findall(_STRING.sub("", texts[-1]))).intersection(names)
            if left:
                raise ValueError(f"functions made seldom are only called: {sorted(left)}")
    made = ", ".join(f"{name} = {name}" for name in names)
    head = "seldom = function(name)\nif made then return made[name] end"
    tail = f"made = {{{made}}}\nreturn made[name]\nend"
    return ["local made, seldom", *texts[:-1], head, *[x.text for x in rare], tail, texts[-1]]


def _with_key_names(text: str) -> str:
    out, at = [], 0
    while match := _KEY.search(text, at):
        words, end = _arguments(text, match.end())
        name = _concatenation(match[1], [_with_key_names(word) for word in words])
        out += [text[at : match.start()], name]
        at = end
    return "".join([*out, text[at:]])


def _arguments(text: str, start: int) -> tuple[list[str], int]:
    """Return the arguments of a call whose ``(`` ends at `start`, and where the call ends."""
    words, depth, begun = [], 0, start
    for match in _TOKEN.finditer(text, start):
        found = match[0]
        depth += (found in "([{") - (found in ")]}")
        if depth < 0 or (depth == 0 and found == ","):
            words.append(text[begun : match.start()].strip())
            begun = match.end()
        if depth < 0:
            return [word for word in words if word], begun
    raise ValueError(f"a call has no end: {text[start : start + 60]}")


def _concatenation(name: str, words: list[str]) -> str:
    if name not in PATTERNS:
        raise ValueError(f"no such key: {name}; the table is dask_redisq/keys.py")
    pieces = PATTERNS[name][0].split("%s")
    if len(words) != len(pieces) - 1:
        raise ValueError(f"key.{name} is of {len(pieces) - 1} arguments, not of {words}")
    parts = ["PREFIX"]
    for piece, word in zip(pieces, [*words, ""], strict=True):
        parts += [f"'{piece}'"] if piece else []
        if word:
            parts.append(word if _PLAIN.match(word) else f"({word})")
    return f"({' .. '.join(parts)})"
