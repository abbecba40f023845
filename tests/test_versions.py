"""A client and workers of unlike versions: told once, refused where pickles would break."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import pytest
from conftest import WorkerProcess, wait_until
from dask.utils_test import inc

from dask_redisq.codec import pack
from dask_redisq.errors import NoWorkersError
from dask_redisq.link import Link
from dask_redisq.queue import Queue
from dask_redisq.versions import about_worker, differences, versions


def register(link: Link, queue: Queue, **info: str) -> None:
    """Register a worker that tells this about itself."""
    about: dict[str, Any] = about_worker("other", ("python3.99",), 1, 10.0, {})
    link.call(
        "register", queue.keys, worker="w" * 16, info=pack({**about, **info}), expiry=60_000,
        slot="", seq=0, tags=b"",
    )  # fmt: skip


def test_what_differs_is_said_with_both_versions() -> None:
    """And nothing where nothing does, or is not known."""
    assert differences(versions()) == ""
    assert differences({}) == ""
    assert differences({"dask": "2020.1"}) == f"dask 2020.1 there and {versions()['dask']} here"
    assert differences({"tblib": "1.0"}) == f"tblib 1.0 there and {versions()['tblib']} here"


def test_a_client_is_told_once_of_workers_with_other_versions(
    queue: Queue, link: Link, workers: WorkerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """Those with the same ones are not spoken of."""
    register(link, queue, dask="2020.1")
    with caplog.at_level(logging.WARNING, "dask_redisq"):
        for _ in range(2):
            queue.pool._look_at = 0.0
            assert dask.delayed(inc)(1).compute(scheduler=queue.get) == 2
            with Queue("test", queue.url) as other:  # its user makes one for each call
                assert dask.delayed(inc)(1).compute(scheduler=other.get) == 2
    said = [r.getMessage() for r in caplog.records if "dask 2020.1" in r.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("worker other of queue test has dask 2020.1 there")


def test_workers_of_another_python_get_nothing_and_that_is_said(
    queue: Queue, link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    """Byte code of one Python breaks in another: such a worker never gets a task."""
    register(link, queue, python="3.99.1")
    with (
        caplog.at_level(logging.WARNING, "dask_redisq"),
        pytest.raises(NoWorkersError, match=r"workers of Python 3\.99\.1"),
    ):
        dask.delayed(inc)(1).compute(scheduler=queue.get, no_workers_timeout=0.1)
    assert any("it gets none of this client's tasks" in r.getMessage() for r in caplog.records)


def test_a_worker_is_told_once_of_clients_with_other_versions(
    queue: Queue,
    start_worker: Callable[..., WorkerProcess],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In its log; an error while a task is loaded has it as a note."""
    log = tmp_path / "log"
    start_worker("test", "--nworkers", "1", "--log-file", str(log))
    queue.wait_for_workers(1, timeout=90)
    monkeypatch.setattr("dask_redisq.encoder.versions", lambda: {"dask": "2020.1"})
    for _ in range(2):
        assert dask.delayed(inc)(1).compute(scheduler=queue.get) == 2
    wait_until(lambda: "a client with dask 2020.1" in log.read_text())
    assert log.read_text().count("a client with dask 2020.1") == 1
    with pytest.raises(ZeroDivisionError) as caught:
        dask.delayed(inc)(Broken()).compute(scheduler=queue.get)
    assert any("its client has dask 2020.1" in note for note in caught.value.__notes__)


class Broken:
    """Raises where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return divide, (1, 0)


def divide(x: float, y: float) -> float:
    """Return the quotient."""
    return x / y
