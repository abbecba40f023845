"""Dask's own conformance class: what every ``get`` must do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from dask.utils_test import GetFunctionTestMixin

import dask_redisq as redisq


@pytest.fixture(scope="module")
def cluster() -> Iterator[redisq.LocalCluster]:
    """A server and two slots for the module."""
    with redisq.LocalCluster(n_workers=2, queue="contract") as running:
        yield running


class TestRedisq(GetFunctionTestMixin):
    """`dask.utils_test.GetFunctionTestMixin`, eleven tests, on real workers."""

    get: Any

    @pytest.fixture(autouse=True)
    def _scheduler(self, cluster: redisq.LocalCluster) -> None:
        self.get = cluster.get
