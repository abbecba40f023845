"""What a host has."""

from __future__ import annotations

from pathlib import Path

from dask_redisq.host import memory


def test_the_limit_of_a_container_is_lower_than_the_memory_of_its_host(tmp_path: Path) -> None:
    """By whichever kind of cgroup; no limit is none."""
    limit, none = tmp_path / "memory.max", tmp_path / "none"
    limit.write_text("1000000\n")
    none.write_text("max\n")
    assert memory([str(limit), str(none), str(tmp_path / "missing")]) == 1_000_000
    assert memory([str(none)]) == memory([]) > 1_000_000
