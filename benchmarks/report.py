"""What a run says: tables and bars on the terminal, everything in JSON."""

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks.run import OVERHEAD_BARS, Row

PACKAGES = ("dask-redisq", "dask", "distributed", "ray", "redis", "hiredis", "cloudpickle")


@dataclass(frozen=True)
class Figure:
    """One measured number, and the bar that it has to meet.

    Parameters
    ----------
    what
        What was measured, in a few words.
    value, unit
        The number.
    bar
        The bound, or None for a number that is only told.
    at_least
        Whether the bar is a lower bound; else it is an upper one.
    """

    what: str
    value: float
    unit: str
    bar: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without one."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def __str__(self) -> str:
        """Return the figure, its bar and the verdict in one line."""
        line = f"{self.what:<58}{self.value:>10.4g} {self.unit:<9}"
        if self.bar is None:
            return line.rstrip()
        relation = ">=" if self.at_least else "<="
        return f"{line}bar {relation} {self.bar:<8.4g}{verdict(self.met)}"


def verdict(met: bool | None) -> str:  # noqa: FBT001 - the one thing it is asked
    """Return the word for a bar met or not."""
    return {True: "met", False: "NOT MET", None: ""}[met]


def machine() -> dict[str, Any]:
    """Return what the numbers depend on besides this code."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_at_start": os.getloadavg()[0],
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def print_machine(facts: Mapping[str, Any], about: Mapping[str, str]) -> None:
    """Print the machine, the versions, and what there is to say about each peer."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    click.echo(
        f"{facts['cpus']} cpus, {facts['memory_gib']} GiB, {facts['system']}, "
        f"load {facts['load_at_start']:.2f} at the start\n"
        f"Python {facts['python']}, {versions}"
    )
    for peer, remark in about.items():
        click.echo(f"{peer}: {remark}")


def print_overhead(rows: Sequence[Row]) -> None:
    """Print the time per task of each peer, then redisq's ratios beside their bars."""
    peers = list(dict.fromkeys(peer for row in rows for peer in row.seconds))
    most = max((len(times) for row in rows for times in row.seconds.values()), default=0)
    click.echo(f"\nus per task, median of {most} runs (of fewer: how many, in brackets)")
    print_table(
        ["shape", "tasks", "edges", *peers],
        [
            [row.label, str(row.tasks), str(row.edges), *(_cell(row, peer, most) for peer in peers)]
            for row in rows
        ],
    )
    if "redisq" in peers:
        print_ratios(rows, [peer for peer in peers if peer != "redisq"])
    for row in rows:
        for peer, why in row.failures.items():
            click.echo(f"FAILED: {peer} on {row.label}: {why}", err=True)


def print_ratios(rows: Sequence[Row], peers: Sequence[str]) -> None:
    """Print redisq's time as a multiple of each peer's, and the verdict where there is a bar."""
    bars = [f" (bar {OVERHEAD_BARS[peer]:.3g})" if peer in OVERHEAD_BARS else "" for peer in peers]
    click.echo("\nredisq's time as a multiple of a peer's")
    print_table(
        ["shape", *(f"/ {peer}{bar}" for peer, bar in zip(peers, bars, strict=True))],
        [[row.label, *(_ratio(row, peer) for peer in peers)] for row in rows],
    )


def _cell(row: Row, peer: str, most: int) -> str:
    value = row.per_task(peer)
    if value is None:
        return "failed" if peer in row.failures else "-"
    runs = len(row.seconds[peer])
    return f"{value:.1f}" + (f" ({runs})" if runs < most else "")


def _ratio(row: Row, peer: str) -> str:
    value = row.ratio("redisq", peer)
    if value is None:
        return "-"
    bar = OVERHEAD_BARS.get(peer) if row.barred else None
    return f"{value:.3f} {verdict(None if bar is None else value <= bar)}".rstrip()


def print_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    """Print aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    for cells in (head, *body):
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        click.echo("  ".join([first, *rest]).rstrip())


def print_figures(figures: Iterable[Figure]) -> None:
    """Print each figure on a line of its own."""
    for figure in figures:
        click.echo(str(figure))


def figures_as_json(figures: Iterable[Figure]) -> list[dict[str, Any]]:
    """Return the figures in plain types, each with its verdict."""
    return [asdict(figure) | {"met": figure.met} for figure in figures]


def save(path: Path, **parts: Any) -> None:
    """Write the run to a file."""
    path.write_text(json.dumps(parts, indent=1) + "\n")


def progress(text: str) -> None:
    """Show what is going on, where a person is watching."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text}", nl=False, err=True)


def progress_done() -> None:
    """Take the line of `progress` away."""
    progress("")
