"""A pytest plugin: Dask's own tests run on workers of dask-redisq, whatever scheduler they name.

Most of them name one: ``scheduler="sync"`` in `assert_eq`, ``from dask.threaded import get`` in
modules. So each name and each function leads here. See `run.py` for how to start it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import dask
import dask.base
import dask.local
import dask.multiprocessing
import dask.threaded
import pytest
from dask.delayed import Delayed
from skips import SKIPS

import dask_redisq as redisq

#: What dask's pyproject.toml declares.
MARKERS = (
    "network", "slow", "gpu", "array_expr", "normal_and_array_expr", "skip_with_pyarrow_strings",
    "xfail_with_pyarrow_strings", "skip_if_no_pyarrow",
)  # fmt: skip
#: Not run: they need an option of dask's conftest, which the wheel does not have.
OFF = {"network", "slow", "gpu", "array_expr"}

#: They look at the order in which one worker runs all.
ONE_SLOT = ("tests/test_local.py::test_complex_ordering",)
# When this module is imported, for dask's conftest imports collections, which read the names.
CLUSTER = redisq.LocalCluster(n_workers=2, queue="dask-suite")
# Not the bound method, which has a persist: what it stands for has persisted values here.
get = partial(CLUSTER.get)
for _name_of_one in dask.base.named_schedulers:
    dask.base.named_schedulers[_name_of_one] = get
dask.base.named_schedulers["processes"] = partial(get)  # collections of different defaults clash
Delayed.__dask_scheduler__ = staticmethod(get)
dask.local.get_sync = get
dask.threaded.get = get
# Yet another one: to this very one Dask gives locks that only children of this process can use.
dask.multiprocessing.get = partial(get)
dask.get = get
# There is one host; and some store into an array, and look at what the call returns only.
dask.config.set({"redisq.allow-disk-shuffle": True, "redisq.allow-memory-store": True})


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the options that Dask's tests ask for."""
    parser.addoption("--runslow", action="store_true")
    parser.addoption("--runarrayexpr", action="store_true")


def pytest_configure(config: pytest.Config) -> None:
    """Declare what Dask's own configuration does; the workers end with the run."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    config.add_cleanup(CLUSTER.close)


def _name(item: pytest.Item) -> str:
    """Return a test's name from the folder of dask on: ``tests/test_local.py::test_order``."""
    return item.nodeid.replace(os.sep, "/").rpartition("dask/")[2]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what cannot apply, and say why; an entry for a test that is not there is an error."""
    used: set[str] = set()
    files = {_name(item).split("::")[0] for item in items}
    for item in items:
        for mark in item.iter_markers():
            if mark.name in OFF:
                item.add_marker(pytest.mark.skip(reason=f"{mark.name}: not in these sets"))
        name = _name(item)
        if name in SKIPS:
            used.add(name)
            item.add_marker(pytest.mark.skip(reason=f"redisq: {SKIPS[name]}"))
    unused = [s for s in SKIPS if s.split("::")[0] in files and s not in used]
    if unused and not any("::" in arg for arg in config.args):
        raise pytest.UsageError(f"there are no such tests to skip: {unused}")


@pytest.fixture(autouse=True)
def _one_slot(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let a test that asks for one worker, by the scheduler that it names, have one."""
    if not _name(request.node).startswith(ONE_SLOT):
        yield
        return
    CLUSTER.scale(1)
    with dask.config.set({"redisq.chunk-size": 1}):
        yield
    CLUSTER.scale(2)
