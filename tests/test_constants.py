"""Large constants of a graph: stored once, read once by each slot, writable, not too large."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dask_redisq as redisq
import dask_redisq.codec as codec_module
from dask_redisq.link import Link
from dask_redisq.queue import Queue


def length(x: Any) -> int:
    """Return how long the argument is."""
    return len(x)


@pytest.mark.parametrize("constant", [np.zeros(200_000), "x" * 1_600_000], ids=["array", "text"])
def test_a_constant_that_no_server_holds_is_refused_before_it_is_sent(
    queue: Queue, link: Link, monkeypatch: pytest.MonkeyPatch, constant: Any
) -> None:
    """The error says that it is a constant, and how large; no key of the job stays."""
    monkeypatch.setattr(codec_module, "MOST_BYTES", 1_000_000)
    with pytest.raises(redisq.ValueTooLarge, match=r"constant .* takes 1,600,\d+ bytes"):
        queue.get({"x": (length, constant)}, "x")
    assert not [name for name in link.command("KEYS", "*") if b":job:" in name]


def test_many_small_constants_that_no_server_holds_together_are_refused(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 tasks with 30 kB each go in one block."""
    monkeypatch.setattr(codec_module, "MOST_BYTES", 1_000_000)
    dsk = {("x", i): (length, f"{i}" * 30_000) for i in range(100)}
    with pytest.raises(redisq.ValueTooLarge, match="100 tasks"):
        queue.get(dsk, list(dsk))
