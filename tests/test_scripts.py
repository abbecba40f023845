"""Every Lua file has a whole header that tells the truth, and the loader refuses the rest."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

import dask_redisq
from dask_redisq import scripts
from dask_redisq.keys import PATTERNS, Keys
from dask_redisq.link import Link

LUA = Path(dask_redisq.__file__).parent / "lua"
FILES = sorted(LUA.rglob("*.lua"))


def header(path: Path, field: str) -> list[str]:
    """Return the words of a header's field."""
    found = re.search(rf"^-- {field}: ?(.*)$", path.read_text(), re.MULTILINE)
    return found[1].split() if found else []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(LUA)))
def test_a_header_lists_the_keys_that_its_file_builds(path: Path) -> None:
    """Purpose, keys that the file names itself, and keys that are in the table."""
    text = path.read_text()
    assert re.match(r"-- [A-Z].+[.:]$", text.splitlines()[0])
    used = set(re.findall(r"\bkey\.(\w+)\(", text))
    assert used <= set(header(path, "keys")) <= set(PATTERNS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(LUA)))
def test_text_in_lua_is_written_as_the_loader_reads_it(path: Path) -> None:
    """In single quotes, without an escaped one, and without what looks like a comment."""
    for line in path.read_text().splitlines():
        code = re.sub(r"(?:^|\s)--(?:\s.*|@.*)?$", "", line)
        assert '"' not in code
        assert "\\'" not in code
        assert code.count("'") % 2 == 0


@pytest.mark.parametrize("name", scripts.script_names())
def test_a_script_is_whole(name: str, link: Link, keys: Keys) -> None:
    """Arguments that it uses are those of its header; it compiles; it says what it answers."""
    script = scripts.load(name)
    text = (LUA / f"{name}.lua").read_text()
    libraries = "".join(p.read_text() for p in (LUA / "lib").iterdir())
    used = set(re.findall(r"\barg\.(\w+)", text))
    assert used <= set(script.args) <= used | set(re.findall(r"\barg\.(\w+)", libraries))
    assert script.returns
    assert link.command("SCRIPT", "LOAD", script.text).decode() == script.sha
    assert keys("queue") == "redisq:{test}:queue"


def test_every_key_is_used_by_somebody() -> None:
    """The table holds no key that no script and no module names."""
    package = Path(dask_redisq.__file__).parent
    python = "".join(p.read_text() for p in package.glob("*.py"))
    named = {word for path in FILES for word in header(path, "keys")}
    assert {k for k in PATTERNS if k not in named and f'"{k}"' not in python} == set()


def test_a_missing_argument_is_told() -> None:
    """Python passes names; a wrong one never reaches the server."""
    with pytest.raises(TypeError, match="cancel"):
        scripts.load("cancel").argv({"job": "x"})
    with pytest.raises(TypeError, match="reason"):
        scripts.load("cancel").argv({"job": "x", "other": "y"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("return 1", "purpose"),
        ("-- Does.\n-- keys: job\n-- args: job\nreturn 1", "returns"),
        ("-- Does.\n-- keys: nope\n-- args:\n-- returns: 1\nreturn 1", "nope"),
    ],
)
def test_a_gap_in_a_header_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, words: str
) -> None:
    """No purpose, a field that is missing, a key that is not in the table."""
    (tmp_path / "bad.lua").write_text(text)
    monkeypatch.setattr(scripts, "_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match=words):
        scripts.load("bad")


def test_libraries_that_include_each_other_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The message shows the circle."""
    (tmp_path / "lib").mkdir()
    for one, other in (("ping", "pong"), ("pong", "ping")):
        (tmp_path / "lib" / f"{one}.lua").write_text(f"-- A half.\n--@include {other}\n")
    (tmp_path / "bad.lua").write_text(
        "-- Does.\n-- keys: job\n-- args:\n-- returns: 1\n--@include ping\nreturn 1"
    )
    monkeypatch.setattr(scripts, "_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match="circle"):
        scripts.load("bad")


def _built(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str, library: str = "") -> str:
    """Return the text of a script that includes one library."""
    (folder / "lib").mkdir()
    (folder / "lib" / "part.lua").write_text(f"-- A part.\n-- keys: ready\n{library}")
    (folder / "whole.lua").write_text(
        f"-- Does.\n-- keys: job\n-- args: job\n-- returns: 1\n--@include part\n{text}"
    )
    monkeypatch.setattr(scripts, "_folder", lambda: folder)
    return scripts.build("whole").text


def test_what_a_script_does_not_use_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A function that only an unused one calls goes with it; what a used one needs stays."""
    library = """
local LIMIT, OTHER = 3, 4
local function inner() return LIMIT end
local function used()
  return inner() -- not unused()
end
local function unused() return used() end
"""
    text = _built(monkeypatch, tmp_path, "return used()", library)
    assert re.findall(r"local (?:function )?(\w+)", text) == [
        "PREFIX", "arg", "LIMIT", "inner", "used",
    ]  # fmt: skip


def test_what_a_script_calls_seldom_is_made_when_it_is_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, link: Link, keys: Keys
) -> None:
    """All of it at once; it finds what it uses, in its place and out of it."""
    library = """
local calls = 0
local function often() calls = calls + 1 return calls end
local function inner() return 10 * often() end
local function outer(n) return n + inner() end
local function another() return calls > 9 and outer(0) or calls end
"""
    text = "--@seldom inner outer unused\nif arg.job == '' then return another() end\n"
    text += "return {outer(1), inner(), another()}"
    library += "local function unused() end"
    built = _built(monkeypatch, tmp_path, text, library)
    assert "unused" not in built
    assert re.findall(r"seldom'(\w+)'", built) == ["outer", "outer", "inner"]
    run = partial(link.command, "EVAL", built, 1, keys("queue"))
    assert run("x") == [11, 20, 2]
    assert run("") == 0


@pytest.mark.parametrize(
    ("text", "library", "words"),
    [
        ("--@seldom nothing\nreturn 1", "local function f() end", r"not include: \['nothing'\]"),
        ("--@seldom f\nreturn pcall(f)", "local function f() end", r"only called: \['f'\]"),
        ("return A", "local A = 1\nlocal A = 2", r"two locals of a name: \['A'\]"),
    ],
)
def test_a_function_that_cannot_be_moved_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, library: str, words: str
) -> None:
    """One that there is not, one that is no call, one that another local may hide."""
    with pytest.raises(ValueError, match=words):
        _built(monkeypatch, tmp_path, text, library)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("return key.wait(arg.job)", r"no header lists: \['wait'\]"),
        ("return key.nothing(arg.job)", "no such key: nothing"),
        ("local k = key.job", "key.job is no call"),
        ("return key.job(arg.job", "has no end"),
        ("return key.job()", "key.job is of 1 arguments"),
        ("return key.job(arg.job, 1)", "key.job is of 1 arguments"),
    ],
)
def test_a_key_that_no_header_lists_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, words: str
) -> None:
    """So is one with too few arguments, or too many, or one that is written otherwise."""
    with pytest.raises(ValueError, match=words):
        _built(monkeypatch, tmp_path, text)


def test_a_library_has_only_locals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other code in front of them would be left out, whatever it does."""
    with pytest.raises(ValueError, match=r"redis.call\('TIME'\)"):
        _built(monkeypatch, tmp_path, "return 1", "redis.call('TIME')\nlocal A = 1")


def test_a_key_is_written_as_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever its arguments are: calls, other keys, sums."""
    text = _built(
        monkeypatch, tmp_path, "redis.call('DEL', key.job(one(2, ')')), key.ready(a + 1))"
    )
    assert text.endswith(
        "redis.call('DEL', (PREFIX .. 'job:' .. (one(2, ')'))), "
        "(PREFIX .. 'job:' .. (a + 1) .. ':ready'))"
    )
