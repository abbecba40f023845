"""docs/faults.md names a test for each row, hole and scenario, and each of them exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "faults.md").read_text()
#: Table -> what its first column must hold, each once.
TABLES = {
    "Fault rows": [f"{n}" for n in range(1, 47)],
    "Holes of the engine": [
        *(f"H{n}" for n in range(1, 15)),
        "H14b",
        *(f"H{n}" for n in range(15, 70)),
    ],
    "Acceptance scenarios": [f"{n}" for n in range(11, 21)],
}


def rows(title: str) -> dict[str, str]:
    """Return the first column of the table under a heading -> its last column."""
    part = TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return {line[0]: line[-1] for line in lines[2:]}


def all_tests() -> set[str]:
    """Return the names of all tests."""
    return {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("title", TABLES)
def test_each_fault_has_a_test_or_a_reason(title: str) -> None:
    """Rows are complete and in order; each ends with tests, or with why there is none."""
    found = rows(title)
    assert list(found) == TABLES[title]
    bare = {
        name: last
        for name, last in found.items()
        if not re.search(r"`test_\w+`", last) and not re.match(r"no test: \w.{9,}", last)
    }
    assert bare == {}


def test_each_test_that_the_document_names_exists() -> None:
    """A test that is renamed is renamed here, too."""
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(named) > 100
    assert sorted(named - all_tests()) == []
