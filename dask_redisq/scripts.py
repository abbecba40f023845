"""Load the Lua scripts of the package and call them by name.

A script opens with a header that the loader reads, so that names, not positions, join
Python and Lua::

    -- Purpose, in one sentence.
    -- keys: job wait ready          (names in dask_redisq.keys.PATTERNS that the script may build)
    -- args: job epoch
    -- returns: what the caller gets
    -- flags: no-writes               (if the server is to see to that; Redis 7.0)
    --@include ready                  (lua/lib/ready.lua, itself with a header; each once)
    --@seldom wake_for end_job        (functions of libraries that most calls do without)

The loader writes ``arg.job`` for each argument, and the name of the key for ``key.wait(job)``; one
that no header lists is an error, so the headers cannot lie. What a script does not use of its
includes is left out, and what it uses seldom is made when it is needed (`dask_redisq.lua_text`).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from dask_redisq.keys import PATTERNS
from dask_redisq.lua_text import Piece, needed_pieces, pieces_of, whole_piece, with_seldom

__all__ = ["Script", "load", "script_names"]

_HEADER = re.compile(r"^-- (flags|keys|args|returns): ?(.*)$")
_SELDOM = re.compile(r"^--@seldom (.+)$", re.MULTILINE)
_INCLUDE = re.compile(r"^--@include (\w+)$", re.MULTILINE)


@dataclass(frozen=True)
class Script:
    """One atomic transition, ready to be sent.

    Attributes
    ----------
    name : str
        The file's name without ``.lua``.
    purpose : str
        The first sentence of its header.
    keys : tuple of str
        The key patterns that it may touch, its includes' among them.
    args : tuple of str
        Names of its arguments, in the order of ARGV.
    returns : str
        What it answers.
    text : str
        The whole Lua source with prelude and includes.
    sha : str
        The SHA-1 by which EVALSHA names it.
    """

    name: str
    purpose: str
    keys: tuple[str, ...]
    args: tuple[str, ...]
    returns: str
    text: str
    sha: str

    def argv(self, values: dict[str, object]) -> list[object]:
        """Return `values` in the order of the header; a missing or unknown name is a TypeError."""
        if len(values) != len(self.args):
            raise TypeError(f"{self.name} takes {self.args}, not {tuple(values)}")
        try:
            return [values[name] for name in self.args]
        except KeyError as error:
            raise TypeError(f"{self.name} needs the argument {error}") from None


@cache
def _installed() -> Traversable:
    return files("dask_redisq").joinpath("lua")


def _folder() -> Traversable:
    return _installed()


def script_names() -> list[str]:
    """Return the names of all scripts, sorted."""
    return sorted(f.name[:-4] for f in _folder().iterdir() if f.name.endswith(".lua"))


@cache
def _text(folder: Any, path: str) -> str:
    return str(folder.joinpath(path).read_text())


def _read(path: str) -> str:
    """Return the text of a file below ``lua/``."""
    folder: Any = _folder()
    return _text(folder, path)


@cache
def _header(where: str, text: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Parse the comment block at the top of a Lua file, and what it includes; a gap is an error."""
    lines = text.splitlines()
    if not lines or not lines[0].startswith("-- "):
        raise ValueError(f"{where} must open with its purpose in a comment")
    header = {"purpose": lines[0][3:]}
    for line in lines[1:]:
        if not line.startswith("--"):
            break
        if match := _HEADER.match(line):
            header[match[1]] = match[2]
    return header, tuple(_INCLUDE.findall(text))


def _library(name: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return header and includes of ``lua/lib/NAME.lua``."""
    where = f"lib/{name}.lua"
    return _header(where, _read(where))


#: By text: half of the scripts have the same libraries, and all of them are built at times.
_pieces = cache(pieces_of)


def _includes(names: tuple[str, ...], path: tuple[str, ...] = ()) -> list[str]:
    """Return `names` and what they include, each once, what is used before what uses it."""
    order: list[str] = []
    for name in names:
        if name in path:
            raise ValueError(f"lua/lib includes in a circle: {' -> '.join((*path, name))}")
        for found in (*_includes(_library(name)[1], (*path, name)), name):
            if found not in order:
                order.append(found)
    return order


def _seldom(name: str, text: str, included: list[list[Piece]]) -> list[str]:
    """Return the functions of libraries that a script says it calls seldom.

    They are moved behind the others, where they must not find another local of a name.
    """
    found = [local for names in _SELDOM.findall(text) for local in names.split()]
    defined = Counter(local for library in included for piece in library for local in piece.names)
    if unknown := [local for local in found if local not in defined]:
        raise ValueError(f"{name}.lua calls seldom what it does not include: {unknown}")
    if twice := [local for local, times in defined.items() if times > 1]:
        raise ValueError(f"{name}.lua includes two locals of a name: {twice}")
    return found


@cache
def load(name: str) -> Script:
    """Return `build` of a script: of an installed package it is always the same."""
    return build(name)


def build(name: str) -> Script:
    """Return the script ``lua/NAME.lua`` with its includes.

    Raises
    ------
    ValueError
        If a header has a gap, names an unknown key or function, or files include one another in a
        circle, or two locals of one name.
    """
    text = _read(f"{name}.lua")
    header, includes = _header(f"{name}.lua", text)
    missing = {"keys", "args", "returns"} - set(header)
    if missing:
        raise ValueError(f"{name}.lua lacks {sorted(missing)} in its header")
    libraries = _includes(includes)
    keys = list(header["keys"].split())
    for library in libraries:
        keys += [k for k in _library(library)[0].get("keys", "").split() if k not in keys]
    if unknown := [k for k in keys if k not in PATTERNS]:
        raise ValueError(f"no such key: {unknown}; the table is dask_redisq/keys.py")
    included = [_pieces(_read(f"lib/{x}.lua")) for x in libraries]
    pieces = needed_pieces(included, whole_piece(text))
    seldom = _seldom(name, text, included)
    if hidden := {k for piece in pieces for k in piece.keys}.difference(keys):
        raise ValueError(f"{name}.lua builds keys that no header lists: {sorted(hidden)}")
    args = tuple(header["args"].split())
    named = ", ".join(f"{name} = ARGV[{i}]" for i, name in enumerate(args, 1))
    whole = "\n".join([
        *([f"#!lua flags={header['flags']}"] if "flags" in header else []),
        "local PREFIX = string.sub(KEYS[1], 1, -6)",
        f"local arg = {{{named}}}",
        *with_seldom(pieces, seldom),
    ])  # fmt: skip
    sha = hashlib.sha1(whole.encode(), usedforsecurity=False).hexdigest()
    return Script(name, header["purpose"], tuple(keys), args, header["returns"], whole, sha)
