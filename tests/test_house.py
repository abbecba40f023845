"""The rules of the house: the direction of imports, sizes, commands in the docs, the wheel."""

import ast
import importlib
import importlib.metadata
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "dask_redisq"

#: The modules, bottom first. One may import those of the layers before its own, and no
#: other: not those after it, nor its neighbours in a layer. A package stands for all that is
#: in it. The root, with the public names, comes last: no module may import from it.
LAYERS: list[tuple[str, ...]] = [
    # plain: words, settings, decisions without I/O
    ("frames", "passwords"),
    (
        "_defaults",
        "amounts",
        "errors",
        "forks",
        "keys",
        "keeper",
        "marks",
        "alike",
        "order",
        "cache",
        "pace",
        "page",
        "task",
        "versions",
        "combine",
        "policies",
        "seeding",
        "generators",
        "signals",
        "retirement",
        "allowance",
        "spinning",
        "sizes",
        "wrappers",
    ),
    ("garbage", "annotations", "preload", "host", "inherit", "lua_text", "open_files", "staying"),
    ("pickler",),
    ("settings", "scripts", "codec", "record", "tls", "url", "trust", "output", "guard", "serving"),
    ("unnamed", "tags", "encoder"),
    ("remote_error", "plan", "batch", "recount", "dask_input", "answer", "refusals"),
    ("shared_locks",),
    ("graph", "unshared"),
    ("task_warnings", "numbering", "unsendable"),
    ("lease", "watch", "options", "callbacks", "labels"),
    ("verdict",),
    # one connection, and what is read and written over it
    ("link",),
    ("refused",),
    ("rebuild", "events", "names", "own_keys", "wishes", "job_memory"),
    ("server", "server_check", "monitor", "memory", "registry", "control", "slot_process"),
    ("secret", "files", "call_log"),
    ("pool", "removal", "suspend", "client_lease"),
    ("status", "registration", "lookout"),
    ("crew",),
    # the roles: a job's client, a slot, a worker
    ("follow",),
    ("kept",),
    ("job", "loading", "report", "supervisor", "renewer"),
    ("stepping",),
    ("slot_loop",),
    ("slot",),
    # the doors
    ("future", "worker"),
    ("persist", "failed"),
    ("part_names",),
    ("compute", "waiting", "calls", "body", "loop_progress"),
    ("stream", "on_slots", "parcel", "sending"),
    ("loop",),
    ("foreach",),
    ("loops", "jobs", "managed"),
    ("queue",),
    ("scheduler", "executor"),
    ("large_arguments",),
    ("joblib",),
    ("local",),
    ("meant",),
    ("lock",),
    ("xarray_locks",),
    ("enabled",),
    ("embedded",),
    ("on_import",),
    ("demo",),
    ("cli",),
    ("__init__",),
]

#: Modules for those who have what an extra brings.
OF_AN_EXTRA = {"joblib"}

MODULE_LINES = 400
FUNCTION_LINES = 60


# Imports point one way.


def test_imports_point_one_way() -> None:
    """A module imports only from the layers before its own, inside functions too."""
    assert list(wrong_imports(ROOT / PACKAGE, LAYERS)) == []


def test_every_module_has_its_layer() -> None:
    """A new module is placed in LAYERS, and one that is gone is taken out."""
    names = {name for layer in LAYERS for name in layer}
    found = {entry_of(module_name(path, ROOT / PACKAGE), names) for path in modules(ROOT / PACKAGE)}
    assert sorted(found) == sorted(names)


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("import pkg.high", "high"),
        ("from pkg.high import thing", "high"),
        ("from pkg import high", "high"),
        ("from . import high", "high"),
        ("from .high import thing", "high"),
        ("def later():\n    from pkg.high import thing", "high"),
        ("from pkg.rooms.door import thing", "rooms.door"),
        ("from pkg import thing", "__init__"),
        ("import pkg", "__init__"),
        ("from pkg.middle import thing", "middle"),
        ("from pkg.unplaced import thing", "unplaced"),
    ],
)
def test_an_import_against_the_order_is_told(tmp_path: Path, source: str, imported: str) -> None:
    """Every spelling of an import is seen, and named with its file and line."""
    package = made_up_package(tmp_path, middle_too=source)
    layers = [("low",), ("middle", "middle_too"), ("high", "rooms"), ("__init__",)]
    line = source.count("\n") + 1
    assert list(wrong_imports(package, layers)) == [f"middle_too.py:{line} imports {imported}"]


def test_an_import_along_the_order_is_fine(tmp_path: Path) -> None:
    """Lower layers, other packages and a module's own package may be imported."""
    package = made_up_package(
        tmp_path, high="import os\nfrom pkg.low import x\nfrom pkg import middle"
    )
    (package / "rooms" / "hall.py").write_text("from pkg.rooms.door import x")
    layers = [("low",), ("middle", "middle_too"), ("high", "rooms"), ("__init__",)]
    assert list(wrong_imports(package, layers)) == []


def made_up_package(folder: Path, **sources: str) -> Path:
    """Make a package `pkg` of four modules and a subpackage, empty but for the sources."""
    package = folder / "pkg"
    (package / "rooms").mkdir(parents=True)
    for name in ("__init__", "low", "middle", "middle_too", "high", "unplaced"):
        (package / f"{name}.py").write_text(sources.get(name, ""))
    for name in ("__init__", "door"):
        (package / "rooms" / f"{name}.py").touch()
    return package


def wrong_imports(package: Path, layers: list[tuple[str, ...]]) -> Iterator[str]:
    """Yield each import inside the package that does not point to a lower layer."""
    level = {name: number for number, layer in enumerate(layers) for name in layer}
    known = {module_name(path, package) for path in modules(package)}
    for path in modules(package):
        entry = entry_of(module_name(path, package), level)
        for line, target in inner_imports(path, package, known):
            imported = entry_of(target, level)
            # What has no layer may neither import nor be imported.
            if imported != entry and not level.get(imported, 10**6) < level.get(entry, -1):
                yield f"{path.relative_to(package)}:{line} imports {target}"


def inner_imports(path: Path, package: Path, known: set[str]) -> Iterator[tuple[int, str]]:
    """Yield the line and the module of each import of the package by one of its files."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                parts = path.relative_to(package.parent).with_suffix("").parts[: -node.level]
                start = ".".join([*parts, start]).rstrip(".")
            wanted = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in wanted:
            root, _, inner = name.partition(".")
            if root == package.name:
                yield node.lineno, longest_module(inner, known)


def longest_module(name: str, known: set[str]) -> str:
    """Return the module that a dotted name begins with: the rest is a name inside of it."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in known:
            return ".".join(parts[:end])
    return "__init__"


def modules(package: Path) -> list[Path]:
    """Return the source files of a package."""
    return sorted(package.rglob("*.py"))


def module_name(path: Path, package: Path) -> str:
    """Return a source file's dotted name below its package; the root's is ``__init__``."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def entry_of(name: str, entries: set[str] | dict[str, int]) -> str:
    """Return the entry that a module belongs to: its own, or that of a package around it."""
    parts = name.split(".")
    wider = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    return next((candidate for candidate in wider if candidate in entries), name)


def imported_by(code: str) -> set[str]:
    """Return the modules that a fresh process has after it ran `code`."""
    told = f"{code}; import sys; print(*sys.modules)"
    words = [sys.executable, "-c", told]
    found = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT)
    return set(found.stdout.split())


@pytest.mark.parametrize("module", ["slot", "renewer", "cli", "worker"])
def test_a_process_of_a_worker_imports_no_front_door(module: str) -> None:
    """They are more than half of the package; workers start often, and slots in their place."""
    doors = {f"{PACKAGE}.{door}" for door in ("queue", "job", "executor", "local", "lock")}
    assert doors.isdisjoint(imported_by(f"import {PACKAGE}.{module}"))


def test_a_public_name_is_there_when_it_is_asked_for() -> None:
    """Also in ``dir``, in a star import, and for who asks twice; another one is not."""
    package = importlib.import_module(PACKAGE)
    assert set(package.__all__) <= set(dir(package))
    found = {name: getattr(package, name) for name in package.__all__}
    assert all(getattr(package, name) is thing for name, thing in found.items())
    with pytest.raises(AttributeError, match="nonsense"):
        _ = package.nonsense
    names = f"from {PACKAGE} import *; assert Queue and get and enable"
    assert f"{PACKAGE}.queue" in imported_by(names)
    assert f"{PACKAGE}.queue" not in imported_by(f"import {PACKAGE}")


# Sizes.


def test_no_module_is_above_400_lines() -> None:
    """A module that grows beyond this has two jobs."""
    sizes = {path.name: len(path.read_text().splitlines()) for path in modules(ROOT / PACKAGE)}
    assert {name: lines for name, lines in sizes.items() if lines > MODULE_LINES} == {}


def test_no_function_is_above_60_lines() -> None:
    """A function, with its docstring, fits on a screen."""
    assert {name: lines for name, lines in function_sizes() if lines > FUNCTION_LINES} == {}


def function_sizes() -> Iterator[tuple[str, int]]:
    """Yield each function's place and its number of lines."""
    for path in modules(ROOT / PACKAGE):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                yield f"{path.name}:{node.lineno} {node.name}", lines


# The commands that the documents tell.

DOCUMENTS = [
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("[be]*s/README.md"))
    if path.name != "CHANGELOG.md"  # tells of what is gone, too
]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_tell_commands_that_exist(path: Path) -> None:
    """Each command in a code block names an existing program, subcommand and option."""
    wrong = {words: fault for words in commands(path.read_text()) if (fault := fault_of(words))}
    assert wrong == {}


def test_the_readme_tells_commands() -> None:
    """The test above has something to look at."""
    told = list(commands((ROOT / "README.md").read_text()))
    assert "tox" in told
    assert any(command.startswith("dask-redisq ") for command in told)


@pytest.mark.parametrize(
    "command",
    [
        "dask-redisq no-such-command",
        "dask-redisq-worker jobs --no-such-option",
        "python -m benchmarks no-such-command",
        "tox -e no-such-environment",
        'pip install ".[no-such-extra]"',
    ],
)
def test_a_command_that_does_not_exist_is_told(command: str) -> None:
    """The check sees the faults that it is there for."""
    assert fault_of(command)


def commands(text: str) -> Iterator[str]:
    """Yield the single commands in the code blocks of a Markdown text, comments taken off."""
    blocks = re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^ {4}(.+)$", text, re.MULTILINE)
    for line in "\n".join([*blocks, *indented]).replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|;|\|", line.partition(" #")[0]):
            if command.strip(" $&"):
                yield command.strip(" $&")


def fault_of(command: str) -> str | None:
    """Return what is wrong with a command of ours, None for another's."""
    try:
        match shlex.split(command):
            case ["dask-redisq-worker", *words] | ["dask", "redisq-worker", *words]:
                return fault_of_click(f"{PACKAGE}.cli:worker", words)
            case ["dask-redisq", *words]:
                return fault_of_click(f"{PACKAGE}.cli:main", words)
            case ["python", "-m", "benchmarks", *words]:
                return fault_of_click("benchmarks.__main__:main", words)
            case ["tox", "-e", names, *_]:
                return unknown(names.split(","), tox_environments(), "tox environment")
            case ["pip", "install", *words]:
                wanted = re.findall(r"\[([\w,-]+)\]", " ".join(words))
                return unknown(",".join(wanted).split(","), {"", *extras()}, "extra")
    except ValueError:  # an apostrophe: not a shell's line
        pass
    return None


def fault_of_click(target: str, words: list[str]) -> str | None:
    """Return what is wrong with the words after a program's name."""
    module, _, name = target.partition(":")
    command: click.Command = getattr(importlib.import_module(module), name)
    context = click.Context(command)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        if found is None:
            return f"no subcommand {words[0]}"
        command, words = found, words[1:]
    known = {option for parameter in command.get_params(context) for option in parameter.opts}
    return unknown([word.partition("=")[0] for word in words if word[0] == "-"], known, "option")


def unknown(names: list[str], known: set[str], kind: str) -> str | None:
    """Return a word about the names that are not known."""
    strange = [name for name in names if name not in known]
    return f"no {kind} {', '.join(strange)}" if strange else None


def tox_environments() -> set[str]:
    """Return the environments that tox.ini names, and one for each Python."""
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini")
    named = {section.removeprefix("testenv:") for section in config.sections()}
    factors = re.compile(r"\{,([\w-]+)\}")
    plain = {factors.sub("", name) for name in named}
    return plain | {factors.sub(r"\1", name) for name in named} | {"py", "py311", "py312", "py313"}


def extras() -> set[str]:
    """Return the extras of pyproject.toml."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return set(settings["project"]["optional-dependencies"])


# The wheel. `tox -e wheel` builds it, installs it without extras, and runs these.


@pytest.mark.wheel
def test_the_wheel_holds_the_package_and_nothing_else() -> None:
    """What is installed is each file of the source tree, the scripts and settings included."""
    source = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / PACKAGE).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    installed = {
        file.as_posix()
        for file in importlib.metadata.files("dask-redisq") or ()
        if not file.parts[0].endswith(".dist-info")
        and "__pycache__" not in file.parts
        and file.parts[0] != ".."  # the console scripts
    }
    assert installed == source
    assert {f"{PACKAGE}/py.typed", f"{PACKAGE}/redisq.yaml"} <= installed
    assert any(name.endswith(".lua") for name in installed)


@pytest.mark.wheel
def test_the_wheel_names_its_commands() -> None:
    """The console scripts and the subcommand of `dask` load."""
    points = importlib.metadata.distribution("dask-redisq").entry_points
    assert {(point.group, point.name) for point in points} == {
        ("console_scripts", "dask-redisq"),
        ("console_scripts", "dask-redisq-worker"),
        ("dask_cli", "redisq-worker"),
    }
    for point in points:
        command = point.load()
        assert isinstance(command, click.Command)
        # Dask registers a command by its own name, not by the entry point's.
        assert point.group != "dask_cli" or command.name == point.name


@pytest.mark.wheel
def test_every_module_imports_without_extras() -> None:
    """The declared dependencies are enough for all but what is of an extra."""
    for path in modules(ROOT / PACKAGE):
        name = module_name(path, ROOT / PACKAGE)
        if name.endswith("__main__") or name in OF_AN_EXTRA:
            continue
        module = importlib.import_module(PACKAGE if name == "__init__" else f"{PACKAGE}.{name}")
        assert module.__file__ is not None
        assert not Path(module.__file__).is_relative_to(ROOT / PACKAGE)
