"""Tasks that give something else each time, whose values get lost: what `pure=False` promises."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any

import dask
import pytest
from conftest import WorkerProcess, wait_until
from test_faults import Background

from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.queue import Queue


def draw() -> str:
    """Give another text each time."""
    return secrets.token_hex(8)


def early(log: Path, drawn: str) -> str:
    """Note that it ran, and give its input."""
    with log.open("a") as file:
        file.write("ran\n")
    return drawn


def late(gate: Path, drawn: str) -> str:
    """Wait for the gate, and give its input."""
    while not gate.exists():
        time.sleep(0.01)
    return drawn


def lose_what_was_drawn(link: Link, workers: WorkerProcess) -> None:
    """Once one of the two outputs arrived, lose the input of both: on the server, and in slots."""
    prefix = Keys("test").prefix.replace("{", "\\{") + "job:*"

    def arrived() -> bool:
        jobs = [k for k in link.command("KEYS", prefix) if k.count(b":") == 3]
        return bool(jobs) and link.command("HGET", jobs[0], "acked") == b"1"

    wait_until(arrived)
    (values,) = link.command("KEYS", prefix + ":values")
    link.command("DEL", values)
    for slot in workers.slots():
        slot.kill()


@pytest.mark.parametrize("pure", [False, True])
def test_only_impure_tasks_are_made_again_with_what_they_came_from(
    queue: Queue, workers: WorkerProcess, tmp_path: Path, *, pure: bool
) -> None:
    """An output that had arrived is of the lost draw: it is made again, unless tasks are pure."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    dsk: dict[Any, Any] = {
        "drawn": (draw,), "early": (early, log, "drawn"), "late": (late, gate, "drawn"),
    }  # fmt: skip
    job = Background(queue.get, dsk, ["early", "late"], pure=pure, chunk_size=1)
    link = Link(queue.url)
    lose_what_was_drawn(link, workers)
    gate.touch()
    link.close()
    first, second = job.result()
    assert (first == second) is not pure
    assert log.read_text().count("ran") == (1 if pure else 2)


def test_a_reader_of_a_detached_job_has_outputs_that_fit_together(
    queue: Queue, workers: WorkerProcess, tmp_path: Path
) -> None:
    """It had read one of them before the loss, and does not keep that."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    drawn = dask.delayed(draw)()
    outputs = [dask.delayed(early)(log, drawn), dask.delayed(late)(gate, drawn)]
    future = queue.compute(*outputs, detach=True, pure=False, chunk_size=1)
    reader = Background(queue.attach(future.id).result)
    link = Link(queue.url)
    job = Keys("test")("job", future.id)
    # Who waits has read what is finished: the reader has the early output.
    wait_until(lambda: link.command("HMGET", job, "finished", "waiting") == [b"2", b"1"])
    link.command("DEL", Keys("test")("values", future.id))
    link.close()
    for slot in workers.slots():
        slot.kill()
    gate.touch()
    first, second = reader.result()
    assert first == second
    future.forget()
