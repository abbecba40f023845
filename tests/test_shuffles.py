"""Shuffles of dataframes through a local disk become shuffles by tasks, however they are nested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

import dask_redisq as redisq


@pytest.fixture(scope="module")
def cluster() -> Iterator[redisq.LocalCluster]:
    """A server and two slots for the module."""
    with redisq.LocalCluster(n_workers=2, queue="test") as running:
        yield running


@pytest.fixture
def frame() -> Any:
    """A frame of some partitions, whose shuffles go through a disk unless somebody minds."""
    numbers = np.arange(1000)
    plain = pd.DataFrame({"a": numbers % 13, "b": numbers % 7, "c": numbers})
    with dask.config.set({"dataframe.shuffle.method": "disk"}):
        yield dd.from_pandas(plain, npartitions=5)


def twice_below(df: Any) -> Any:
    """A shuffle, merged with another one of itself."""
    once = df.shuffle("a")
    return once.merge(once.shuffle("b"), on="c")


def beside(df: Any) -> Any:
    """A shuffle above another, next to that."""
    once = df.shuffle("a")
    return dd.concat([once.shuffle("b"), once])


def grouped(df: Any) -> Any:
    """A merge with what was grouped of another merge."""
    merged = df.merge(df, on="a")
    sums = merged.groupby("b_x").c_x.sum(split_out=3).reset_index()
    return merged.merge(sums, on="b_x")


@pytest.mark.parametrize("shuffled", [twice_below, beside, grouped])
def test_a_shuffle_that_is_used_twice_is_rewritten_in_both_places(
    cluster: redisq.LocalCluster, frame: Any, shuffled: Callable[[Any], Any]
) -> None:
    """No row is lost, and none is refused."""
    df = shuffled(frame)
    got, expected = df.compute(scheduler=cluster.get), df.compute(scheduler="sync")
    columns = list(expected.columns)
    pd.testing.assert_frame_equal(
        got.sort_values(columns).reset_index(drop=True),
        expected.sort_values(columns).reset_index(drop=True),
    )


def test_the_advice_for_what_cannot_be_rewritten_fits_dataframes_too(
    cluster: redisq.LocalCluster, frame: Any
) -> None:
    """With a delayed value beside it the frame was turned into tasks before we see it."""
    other = dask.delayed(len)([1])
    with (
        pytest.warns(UserWarning, match="mixed collections"),
        pytest.raises(redisq.RedisqError, match='shuffle_method="tasks" to a dataframe'),
    ):
        dask.compute(frame.shuffle("a"), other, scheduler=cluster.get)
