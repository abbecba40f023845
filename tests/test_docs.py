"""The documentation is right: its examples run, and the tests that it names are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import dask
import pytest
from conftest import WorkerProcess

from dask_redisq.queue import Queue

ROOT = Path(__file__).parent.parent
PAGES = {"docs/dask.md": 9, "docs/loops.md": 11}


def blocks(page: str) -> list[tuple[int, str]]:
    """Return the Python blocks of a page, each with the number of its first line."""
    text = (ROOT / page).read_text()
    found = re.finditer(r"```python\n(.*?)```", text, re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(
    page: str,
    queue: Queue,
    workers: WorkerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One after the other, as a reader would type them, on a queue with two slots."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    found = blocks(page)
    assert len(found) >= PAGES[page]
    with dask.config.set({"redisq.url": queue.url, "redisq.queue": queue.name}):
        for line, code in found:
            exec(compile("\n" * line + code, page, "exec"), names)  # noqa: S102
    names.clear()


def functions_in(module: str) -> set[str]:
    """Return the names of the tests, and of the classes of tests, in a module."""
    tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text())
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_the_check_list_has_52_rows_with_a_test_or_a_reason_each() -> None:
    """And the tests are there."""
    page = (ROOT / "docs/checklist.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (?:`(\w+)::(\w+)`)? ?\| (.*)\|$", page, re.MULTILINE)
    assert [int(row[0]) for row in rows] == list(range(1, 53))
    for number, feature, module, test, note in rows:
        if module:
            assert test in functions_in(module), f"row {number}, {feature}: {module} has no {test}"
        else:
            assert note.strip(), f"row {number}, {feature}: neither a test nor a reason"


def test_each_scenario_of_doredis_has_a_test() -> None:
    """1 to 10 and 21 to 30 on the page about loops, where tests/faults looks after the others."""
    page = (ROOT / "docs/loops.md").read_text()
    rows = re.findall(r"^\| (\d+) \| .+? \| (`test_.+) \|$", page, re.MULTILINE)
    assert [int(number) for number, _ in rows] == [*range(1, 11), *range(21, 31)]
    for number, told in rows:
        named = re.findall(r"`(\w+)::(\w+)`", told)
        assert named
        for module, test in named:
            assert test in functions_in(module), f"scenario {number}: {module} has no {test}"


def test_dasks_own_tests_are_skipped_for_no_more_than_44_reasons() -> None:
    """The number that the contract's section 2.2 allows."""
    import sys

    sys.path.insert(0, str(ROOT / "tests" / "dask_suite"))
    try:
        from skips import SKIPS
    finally:
        sys.path.pop(0)
    assert len(SKIPS) <= 44
    assert all(SKIPS.values())
