"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import dask_redisq

MODULES = sorted(m.name for m in pkgutil.iter_modules(dask_redisq.__path__))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_right(name: str) -> None:
    """Each shows what it says that it shows."""
    module = importlib.import_module(f"dask_redisq.{name}")
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0
