"""What users do wrong, and what they are told."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import dask
import pytest
import yaml
from conftest import WorkerProcess, wait_until
from dask.utils_test import inc

import dask_redisq as redisq
from dask_redisq import lookout
from dask_redisq.codec import pack
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.passwords import redact, with_password, without_password
from dask_redisq.queue import Queue
from dask_redisq.server import PrivateServer
from dask_redisq.server_check import server_warnings
from dask_redisq.settings import setting
from dask_redisq.versions import python_tag

#: What `redisq.yaml` says.
DEFAULTS = yaml.safe_load(files("dask_redisq").joinpath("redisq.yaml").read_text())


@pytest.fixture(scope="module")
def cluster() -> Iterator[redisq.LocalCluster]:
    """A server and two slots for the module."""
    with redisq.LocalCluster(n_workers=2, queue="test") as running:
        yield running


@pytest.fixture
def served(cluster: redisq.LocalCluster) -> Queue:
    """A queue with workers."""
    return Queue("test", cluster.url)


# The graph


@pytest.mark.parametrize(
    ("dsk", "keys", "error", "words"),
    [
        ({"x": "x"}, "x", KeyError, "x"),
        ({"x": (inc, 1)}, "y", KeyError, "y"),
        ({"x": (inc, 1)}, [["x"], ["y"]], KeyError, "y"),
        (
            {"x": dask._task_spec.Task("x", inc, dask._task_spec.TaskRef("nope"))},
            "x",
            ValueError,
            "Missing",
        ),
        ({"x": (inc, "y"), "y": (inc, "x")}, "x", RuntimeError, "Cycle"),
        ({"x": "y", "y": "x"}, "x", RuntimeError, "Cycle"),
        ({"x": (inc, "y"), "y": (inc, "x"), "z": (inc, 1)}, "z", RuntimeError, "Cycle"),
    ],
)
def test_a_wrong_graph_is_refused_as_dask_does_and_before_anything_is_sent(
    queue: Queue, link: Link, dsk: Any, keys: Any, error: type[Exception], words: str
) -> None:
    """The types are those of `dask.get`; the server saw nothing."""
    with pytest.raises(error, match=words):
        queue.get(dsk, keys)
    assert link.command("DBSIZE") == 0


class Unreadable:
    """Pickles, and cannot be read back."""

    def __reduce__(self) -> Any:
        return (refuse, ())


def refuse() -> None:
    """What reading `Unreadable` runs into."""
    raise ValueError("cannot be read")


@pytest.mark.parametrize("size", [1, 300])
def test_an_argument_that_does_not_pickle_is_named(served: Queue, size: int) -> None:
    """An error that names the task, and no hang; the next job runs."""
    dsk: dict[Any, Any] = {("ok", i): (inc, i) for i in range(size)}
    dsk["bad"] = (id, threading.Lock())
    with pytest.raises(redisq.TaskNotSerializable, match=r"'bad'.*lock"):
        served.get(dsk, list(dsk))
    assert served.get({"x": (inc, 1)}, "x") == 2


def test_an_argument_that_cannot_be_read_is_an_error_of_its_task(served: Queue) -> None:
    """As from `dask.multiprocessing`: the type that reading raised."""
    with pytest.raises(ValueError, match="cannot be read") as info:
        served.get({"x": (bool, Unreadable())}, "x")
    assert any("'x'" in note for note in info.value.__notes__)


def make_lock() -> Any:
    """Return what does not pickle."""
    return threading.Lock()


def test_a_result_that_does_not_pickle_is_named(served: Queue) -> None:
    """The worker lives, and the error names task, worker and type."""
    names = "|".join(re.escape(worker["name"]) for worker in served.workers())
    with pytest.raises(redisq.TaskNotSerializable, match=rf"'x' .* worker ({names}): .*lock"):
        served.get({"x": (make_lock,)}, "x")
    assert (
        served.get({"x": (make_lock,), "y": (lambda lock: lock.locked(), "x")}, "y", chunk_size=8)
        is False
    )


class Picky(Exception):
    """An exception that cannot be read back, in whatever way: nobody can make it anew."""

    def __new__(cls, a: int, b: int) -> Self:  # noqa: D102
        return super().__new__(cls)

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def raise_picky() -> None:
    """Raise it."""
    raise Picky(1, 2)


def test_an_exception_that_does_not_pickle_is_told(served: Queue) -> None:
    """Task, type, text, and the remote traceback in a note."""
    with pytest.raises(redisq.TaskNotSerializable, match=r"'x' raised .*Picky: 1 and 2") as info:
        served.get({"x": (raise_picky,)}, "x")
    assert "in raise_picky" in "".join(info.value.__notes__)


def test_a_worker_that_lacks_a_module_says_so(
    queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """`ModuleNotFoundError`, with the worker's name; the worker lives."""
    worker = start_worker("test", "--nworkers", "1", "--name", "bare", env={"PYTHONPATH": ""})
    with pytest.raises(ModuleNotFoundError, match="test_bad_input") as info:
        queue.get({"x": (refuse,)}, "x")
    assert any("bare" in note for note in info.value.__notes__)
    assert queue.get({"x": (inc, 1)}, "x") == 2
    assert worker.process.poll() is None


@pytest.mark.parametrize("low", [{"ft_interval": 0.5}, {"chunk_size": 0}, {"chunk_size": -2}])
def test_a_setting_below_its_least_value_is_refused(queue: Queue, low: Any) -> None:
    """An interval below a second would make monitors a load; a chunk holds at least one task."""
    with pytest.raises(ValueError, match=r"at least|chunk_size"):
        queue.get({"x": (inc, 1)}, "x", **low)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"no_workers_timeout": "5"}, r"redisq\.no-workers-timeout .* seconds.* not '5'"),
        ({"no_workers_timeout": -1}, r"redisq\.no-workers-timeout .* at least 0"),
        (
            {"no_workers_timeout": 1e300},
            r"redisq\.no-workers-timeout .* at most .* or null, not 1e",
        ),
        ({"retry_delay": 1e300}, r"redisq\.retry-delay .* at most 1,000,000,000, not 1e"),
        ({"locality_wait": 1e300}, r"redisq\.locality-wait .* at most 1,000,000,000, not 1e"),
        ({"locality_wait": True}, r"redisq\.locality-wait .* not True"),
        ({"alive_expiry": 1e300}, r"redisq\.alive-expiry .* at most 1,000,000,000, not 1e"),
        ({"retries": 10**30}, "retries.* at most 1,000,000,000, not 1000"),
        ({"retries": True}, "retries.* not True"),
        ({"chunk_size": 10**30}, "chunk_size.* at most 1,000,000,000, not 1000"),
        ({"alive_expiry": "abc"}, r"redisq\.alive-expiry .* seconds.* not 'abc'"),
        ({"ft_interval": float("inf")}, r"redisq\.ft-interval .* not inf"),
        ({"chunk_size": "a"}, "chunk_size.* not 'a'"),
        ({"chunk_size": float("nan")}, "chunk_size.* not nan"),
        ({"chunk_size": float("inf")}, "chunk_size.* not inf"),
        ({"chunk_size": 1.5}, "chunk_size.* not 1.5"),
        ({"order": "bogus"}, r"redisq\.order .* not 'bogus'"),
        ({"allowed_failures": 0}, r"redisq\.allowed-failures .* at least 1, not 0"),
        ({"allow_disk_shuffle": "maybe"}, r"redisq\.allow-disk-shuffle .* not 'maybe'"),
        ({"allowed_failures": 10**30}, r"redisq\.allowed-failures .* at most"),
        ({"priority": "high"}, "priority.* not 'high'"),
        ({"priority": 10**400}, "priority is a number, not 1000"),
        ({"priority": float("inf")}, "priority is a number, not inf"),
    ],
)
def test_a_setting_of_a_wrong_kind_is_named(queue: Queue, wrong: Any, words: str) -> None:
    """With what is allowed; by keyword, and where it is a setting, as a setting."""
    with pytest.raises(ValueError, match=words):
        queue.get({"x": (inc, 1)}, "x", **wrong)
    (name, value), *_ = wrong.items()
    if name != "priority":
        named = f"redisq.{name.replace('_', '-')}"
        with dask.config.set({named: value}), pytest.raises(ValueError, match=words):
            queue.get({"x": (inc, 1)}, "x")


@pytest.mark.parametrize("wrong", [5, b"gpu", ["left", 5], "", ["left", ""]])
def test_workers_that_are_no_text_are_named(queue: Queue, wrong: Any) -> None:
    """By keyword; `dask.annotate` refuses them itself."""
    words = f"workers of task 'x' are names, hosts or tags, not {re.escape(repr(wrong))}"
    with pytest.raises(ValueError, match=words):
        queue.get({"x": (inc, 1)}, "x", workers=wrong)


def test_an_empty_name_of_a_worker_is_none_in_an_annotation_either(queue: Queue) -> None:
    """No worker has it, and its tasks waited for ever."""
    with dask.annotate(workers=""):
        x = dask.delayed(inc)(1)
    with pytest.raises(ValueError, match="are names, hosts or tags, not"):
        x.compute(scheduler=queue.get)


@pytest.mark.parametrize(
    "words", [{"rerun_exceptions_locally": True}, {"cache": {}}, {"callbacks": [object()]}]
)
def test_a_keyword_of_who_waits_is_none_of_who_does_not(
    queue: Queue, words: dict[str, Any]
) -> None:
    """It had no effect; what is not to be done may be said."""
    x = dask.delayed(inc)(1)
    (word,) = words
    for submit in (queue.compute, queue.persist):
        with pytest.raises(TypeError, match=f"{word} has no effect where nobody waits"):
            submit(x, **words)
    assert queue.jobs() == []
    queue.compute(x, rerun_exceptions_locally=False, cache=None, callbacks=())


@pytest.mark.parametrize(
    "name",
    [n for n, v in DEFAULTS["redisq"].items() if isinstance(v, bool)],
)
def test_a_setting_that_is_true_or_false_is_nothing_else(name: str) -> None:
    """As people write it in a variable, which Dask reads as text where it says no or off."""
    words = {"true": True, "Yes": True, "on": True, "1": True}
    words |= {"FALSE": False, "no": False, "off": False, "0": False}
    for word, expected in words.items():
        with dask.config.set({f"redisq.{name}": dask.config.interpret_value(word)}):
            assert setting(name) is expected
    for wrong in ("nope", "", "2", 0.5, None, [True]):
        with (
            dask.config.set({f"redisq.{name}": wrong}),
            pytest.raises(ValueError, match=rf"redisq\.{name} is true or false .*, not"),
        ):
            setting(name)


@pytest.mark.parametrize("wrong", [0, -1, 1e300, float("inf"), float("nan"), "60", True])
def test_a_client_lease_of_a_wrong_kind_is_named(queue: Queue, link: Link, wrong: Any) -> None:
    """It is a setting only."""
    words = r"redisq\.client-lease .* at least 1 and at most 1,000,000,000, not "
    with dask.config.set({"redisq.client-lease": wrong}), pytest.raises(ValueError, match=words):
        queue.get({"x": (inc, 1)}, "x")
    assert link.command("DBSIZE") == 0


@pytest.mark.usefixtures("workers")
def test_settings_at_their_most_are_taken(queue: Queue) -> None:
    """What is allowed works: no part of the engine counts with fewer bits."""
    most = 10**9
    names = (
        "timeout retries retry_delay locality_wait ft_interval alive_expiry no_workers_timeout "
        "allowed_failures chunk_size num_workers priority"
    )
    words: dict[str, Any] = dict.fromkeys(names.split(), most)
    with dask.config.set({"redisq.client-lease": most}):
        assert queue.get({"x": (inc, 1), "y": (inc, "x")}, "y", **words) == 3
        future = queue.compute(dask.delayed(inc)(1), detach=True, result_ttl=most, **words)
        assert future.result(60) == 2
        future.forget()
    with redisq.Lock(queue=queue, expiry=most) as lock:
        assert lock.locked()


def test_a_queue_name_that_is_no_text_is_refused() -> None:
    """Dask reads DASK_REDISQ__QUEUE=7 as a number."""
    with pytest.raises(TypeError, match="queue name is text"):
        Queue(1)  # type: ignore[arg-type]
    with dask.config.set({"redisq.queue": 7}), pytest.raises(ValueError, match=r"redisq\.queue"):
        Queue()


def test_a_database_that_the_server_lacks_is_an_error_at_once(
    link: Link, start_worker: Callable[..., WorkerProcess]
) -> None:
    """To wait for it would be in vain: a worker ends, too."""
    url = f"{link.url}?db=99"
    with pytest.raises(redisq.ServerRefused, match="no such database"):
        Queue("test", url).stats()
    worker = start_worker("test", "--death-timeout", "60", url=url)
    assert worker.wait(60) == 1
    assert "no such database" in worker.output()


@pytest.mark.parametrize("name", ["", "a{b", "a}b"])
def test_a_queue_name_with_braces_is_refused(name: str) -> None:
    """They mark the hash tag of its keys."""
    with pytest.raises(ValueError, match="braces"):
        Queue(name)


# Nobody there


@pytest.mark.usefixtures("secret")
def test_a_url_that_does_not_answer_is_an_error_at_once() -> None:
    """With the URL in the message, and without its password."""
    started = time.monotonic()
    queue = Queue("test", "redis://:hushhush@127.0.0.1:1/0")
    with pytest.raises(redisq.ServerUnavailable, match=r"127\.0\.0\.1:1") as info:
        queue.get({"x": (inc, 1)}, "x")
    assert time.monotonic() - started < 2
    assert "hushhush" not in str(info.value) + repr(queue)


def test_a_wrong_password_is_an_error_at_once(link: Link) -> None:
    """As the server says it, and without the password."""
    link.command("CONFIG", "SET", "requirepass", "right")
    try:
        queue = Queue("test", f"{link.url}?password=wrongwrong")
        with pytest.raises(redisq.ServerRefused, match=r"(?i)password") as info:
            queue.get({"x": (inc, 1)}, "x")
        assert "wrongwrong" not in str(info.value) + repr(queue)
    finally:
        link.command("CONFIG", "SET", "requirepass", "")


def test_a_password_is_never_shown() -> None:
    """In no form of URL."""
    assert redact("redis://:pw@host:1/0") == "redis://:***@host:1/0"
    assert redact("rediss://me:pw@host/0") == "rediss://me:***@host/0"
    assert redact("rediss://host?ssl_password=pw") == "rediss://host?ssl_password=***"
    assert redact("unix:///tmp/s?db=1&password=pw") == "unix:///tmp/s?db=1&password=***"
    assert redact("redis://host?p%61ssword=pw") == "redis://host?password=***"
    assert redact("redis:/:pw@host") == "redis:***@host"
    assert with_password("redis://host:1/0", "p/w") == "redis://:p%2Fw@host:1/0"
    assert redact(with_password("unix:///tmp/s", "pw")) == "unix:///tmp/s?password=***"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://:pw@host:1/0", "redis://host:1/0"),
        ("rediss://me:p@w@host/0?ssl_password=pw&db=1", "rediss://me@host/0?db=1"),
        ("unix:///tmp/s?p%61ssword=pw", "unix:///tmp/s"),
        ("unix://:pw@/tmp/s?db=1&password=pw", "unix:///tmp/s?db=1"),
        ("redis://:p/w#@host", "redis://host"),
    ],
)
def test_a_password_is_taken_out_of_a_url(url: str, expected: str) -> None:
    """And nothing else: what has none stays as it is written."""
    assert without_password(url) == expected
    assert without_password(expected) == expected


@pytest.mark.parametrize("base", ["redis://h/0", "redis://h:1", "redis:///0", "redis://s/0"])
@pytest.mark.parametrize("piece", ["pa#ss", "pa?ss", "pa/ss", "pa@ss", "12/ss", "a?b=ss", "a#b:ss"])
def test_a_password_that_is_no_part_of_a_url_is_not_shown(base: str, piece: str) -> None:
    """The error names what is wrong; neither it nor the queue shows a piece of the password."""
    queue = Queue("test", base.replace("://", f"://:{piece}@"))
    assert "ss" not in repr(queue)
    if piece != "pa@ss":  # which is one, in the eyes of redis-py
        with pytest.raises(redisq.BadURL, match="not the URL of a server") as info:
            queue.stats()
        assert "ss" not in str(info.value).partition("that is not")[0]


@pytest.mark.parametrize(
    "url", ["bogus", "http://localhost:80", "redis://localhost:port/0", "redis://h/abc", "unix://"]
)
def test_what_is_not_a_url_is_named(url: str) -> None:
    """At the first use, as an error of ours that is a `ValueError` too."""
    with pytest.raises(redisq.BadURL, match="not the URL of a server") as info:
        Queue("test", url).stats()
    assert isinstance(info.value, ValueError)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://redis/0", "redis://:pw@redis/0"),
        ("rediss://s/0", "rediss://:pw@s/0"),
        ("redis://r", "redis://:pw@r"),
        ("redis:///0", "redis://:pw@/0"),
        ("redis://user:old@redis/1", "redis://user:pw@redis/1"),
    ],
)
def test_a_password_goes_where_the_host_is(url: str, expected: str) -> None:
    """Though the same text may be in the scheme, or there may be no host."""
    assert with_password(url, "pw") == expected


def test_a_queue_without_workers_is_spoken_of_and_given_up(
    queue: Queue, link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    """After 5 s a warning, once; with ``no_workers_timeout`` an error, and no key of the job."""
    with (
        caplog.at_level(logging.WARNING, "dask_redisq"),
        pytest.raises(redisq.NoWorkersError, match="dask-redisq-worker test"),
    ):
        queue.get({"x": (inc, 1)}, "x", no_workers_timeout=6)
    assert len([r for r in caplog.records if "has no workers" in r.message]) == 1
    assert not [name for name in link.command("KEYS", "*") if b":job:" in name]


def test_a_tag_that_nobody_carries_is_spoken_of(served: Queue) -> None:
    """Workers there, none of them able."""
    with pytest.raises(redisq.NoWorkersError, match=r"tags.*gpu"):
        served.get({"x": (inc, 1)}, "x", workers="gpu", no_workers_timeout=1)


def test_who_waits_for_a_future_in_vain_is_told_that_nobody_is_able(served: Queue) -> None:
    """By what the server has: who attached has no graph. Nor is it told for nothing."""
    x = dask.delayed(inc)(1)
    told = r"no answer yet(: 0 tasks are done)?; no worker of queue 'test' .*\['nobody'\]"
    plain = served.compute(x, workers=["nobody"])
    detached = served.compute(x, workers=["nobody"], detach=True)
    kept = served.persist(x, workers=["nobody"])
    for future in (plain, served.attach(detached.id), redisq.futures_of(kept)[0]):
        with pytest.raises(TimeoutError, match=told):
            future.result(timeout=0.5)
    detached.forget()
    with pytest.raises(redisq.NoWorkersError, match=r"after 1 s: .*\['nobody'\]"):
        served.compute(x, workers=["nobody"], no_workers_timeout=1).result(timeout=60)
    slow = served.compute(dask.delayed(time.sleep)(3))
    with pytest.raises(TimeoutError, match=r"no answer yet: 0 tasks are done$"):
        slow.result(timeout=0.5)


def nap(i: int, *_: Any) -> int:
    """Make some progress, in a twentieth of a second."""
    time.sleep(0.05)
    return i


@pytest.mark.parametrize("ready", [True, False], ids=["ready", "not yet ready"])
def test_a_tag_that_nobody_carries_is_spoken_of_though_others_make_progress(
    served: Queue, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, ready: bool
) -> None:
    """The rest may take hours, and the answer never comes: a warning, and the time limit holds."""
    monkeypatch.setattr(lookout, "QUIET", 0.5)
    naps = [dask.delayed(nap)(i) for i in range(300)]  # 8 s, and a quiet second never comes
    with dask.annotate(workers="gpu"):
        x = dask.delayed(nap)(-1, *([] if ready else naps))
    began = time.monotonic()
    with (
        caplog.at_level(logging.WARNING, "dask_redisq"),
        pytest.raises(redisq.NoWorkersError, match=r"after 1\.5 s: .*tags.*gpu"),
    ):
        dask.compute(x, *naps, scheduler=served.get, no_workers_timeout=1.5, optimize_graph=False)
    assert 1.5 <= time.monotonic() - began < 5
    assert len([r for r in caplog.records if "gpu" in r.message]) == 1


def test_a_tag_that_no_task_needs_any_more_is_not_missed(
    queue: Queue,
    start_worker: Callable[..., WorkerProcess],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who carried it ran its task and left, and the rest goes on."""
    monkeypatch.setattr(lookout, "QUIET", 0.2)
    start_worker("test", "--nworkers", "1")
    start_worker("test", "--nworkers", "1", "--tag", "gpu", "--max-tasks", "1")
    queue.wait_for_workers(2, timeout=60)
    with dask.annotate(workers="gpu"):
        x = dask.delayed(nap)(-1)
    naps = [dask.delayed(nap)(i, x) for i in range(60)]
    found = dask.compute(*naps, scheduler=queue.get, no_workers_timeout=0.5, optimize_graph=False)
    assert found == tuple(range(60))
    assert queue.stats()["slots"] == 1
    assert "gpu" not in caplog.text


def test_no_time_for_workers_to_come_is_one_look(queue: Queue, served: Queue) -> None:
    """Not the default of 5 s: 0 is to give up at once, if nobody is there."""
    began = time.monotonic()
    with pytest.raises(redisq.NoWorkersError, match=r"after 0 s: .* has no workers"):
        queue.get({"x": (inc, 1)}, "x", no_workers_timeout=0)
    with pytest.raises(redisq.NoWorkersError, match=r"after 0 s: .* has no workers"):
        queue.compute(dask.delayed(inc)(1), no_workers_timeout=0).result(timeout=60)
    assert time.monotonic() - began < 2
    assert served.get({"x": (nap, 1)}, "x", no_workers_timeout=0) == 1


def test_workers_of_another_python_are_spoken_of(queue: Queue, link: Link, keys: Keys) -> None:
    """Pickled functions need the same minor version, so such a worker gets nothing of the job."""
    info = {"name": "old", "host": "h", "pid": 1, "python": "3.9.1", "tags": ["python3.9"]}
    link.call(
        "register", keys, worker="w", info=pack(info), expiry=60_000, slot="", seq=0, tags=b""
    )
    with pytest.raises(redisq.NoWorkersError, match=r"Python 3\.9\.1"):
        queue.get({"x": (inc, 1)}, "x", no_workers_timeout=1)


def _register_slot(link: Link, keys: Keys, calls: int = 0) -> None:
    """Register a worker and a slot whose process has called so often."""
    tags = [python_tag()]
    info = {"name": "shadowed", "host": "h", "pid": 1, "python": "3", "tags": tags}
    args = {"worker": "w", "info": pack(info), "slot": "s" * 16, "seq": calls, "tags": pack(tags)}
    link.call("register", keys, expiry=60_000, **args)


def test_a_worker_whose_slots_do_not_start_is_spoken_of(
    queue: Queue, link: Link, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """It is alive, and nobody can run anything: a warning after 5 s, and the time limit holds."""
    _register_slot(link, keys)
    with (
        caplog.at_level(logging.WARNING, "dask_redisq"),
        pytest.raises(redisq.NoWorkersError, match=r"shadowed.* none of their slots has started"),
    ):
        queue.get({"x": (inc, 1)}, "x", no_workers_timeout=6)
    assert len([r for r in caplog.records if "none of their slots" in r.message]) == 1


def test_a_slot_is_waited_for_until_it_is_up(queue: Queue, link: Link, keys: Keys) -> None:
    """It is registered before its process is there, which takes a second to call."""
    _register_slot(link, keys)
    with pytest.raises(redisq.NoWorkersError, match="has 0 slots after"):
        queue.wait_for_workers(1, timeout=0.05)
    link.command("HSET", keys("slot", "s" * 16), "seq", 1)
    queue.wait_for_workers(1, timeout=0.05)


def test_slots_of_a_worker_that_vanished_are_not_waited_for(
    queue: Queue, link: Link, keys: Keys
) -> None:
    """They are registered until somebody looks; its alive key is gone."""
    _register_slot(link, keys, calls=1)
    queue.wait_for_workers(1, timeout=1)
    link.command("DEL", keys("alive", "w"))
    with pytest.raises(redisq.NoWorkersError, match="has 0 slots"):
        queue.wait_for_workers(1, timeout=0.1)


@pytest.mark.usefixtures("secret")
def test_a_starting_worker_without_a_server_says_so_once_and_gives_up(
    start_worker: Callable[..., WorkerProcess],
) -> None:
    """It tries for ``--death-timeout`` seconds, then exits with 1."""
    worker = start_worker("test", "--death-timeout", "1.5", url="redis://127.0.0.1:1/0")
    assert worker.wait(60) == 1
    said = worker.output()
    assert said.count("trying for") == 1
    assert "127.0.0.1:1" in said


@pytest.mark.usefixtures("secret")
def test_a_starting_worker_waits_no_longer_for_a_port_that_is_silent(
    start_worker: Callable[..., WorkerProcess],
) -> None:
    """Something else listens there, takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        worker = start_worker("test", "--death-timeout", "2", url=url)
        silent.settimeout(60)
        with silent.accept()[0]:
            began = time.monotonic()
            assert worker.wait(60) == 1
    assert time.monotonic() - began < 10  # an answer has 15 s otherwise
    assert worker.output().count("trying for") == 1


def test_a_running_worker_outlives_its_server(
    start_worker: Callable[..., WorkerProcess],
) -> None:
    """It retries for ever, and leaves on SIGTERM all the same."""
    with PrivateServer() as server:
        worker = start_worker("test", "--nworkers", "1", "--death-timeout", "1", url=server.url)
        Queue("test", server.url).wait_for_workers(1, timeout=90)
    time.sleep(2)
    assert worker.process.poll() is None
    worker.process.terminate()
    worker.wait(60)


def test_dangerous_settings_of_a_server_are_warned_about(
    link: Link, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    """An eviction policy drops keys of running jobs; a client timeout cuts those who wait."""
    assert server_warnings("noeviction", "0") == server_warnings(None, None) == []
    link.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    link.command("CONFIG", "SET", "timeout", "300")
    try:
        with caplog.at_level(logging.WARNING, "dask_redisq"):
            queue.stats()
    finally:
        link.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        link.command("CONFIG", "SET", "timeout", "0")
    told = [r.message for r in caplog.records]
    assert any("noeviction" in m for m in told)
    assert any("timeout 0" in m for m in told)


def test_a_client_that_was_not_heard_of_submits_its_job_again(link: Link, queue: Queue) -> None:
    """The job is cancelled when its client's lease is over; the client goes on with another."""
    caught: list[BaseException] = []

    def compute() -> None:
        try:
            queue.get({"x": (inc, 1)}, "x")
        except redisq.RedisqError as error:
            caught.append(error)

    # So that EXEC finds the script.
    link.call("recover", queue.keys, who="test", interval=1, deadline=10**15)
    thread = threading.Thread(target=compute)
    thread.start()
    wait_until(lambda: link.command("KEYS", "*:client"))
    job = link.command("ZRANGE", queue.keys("jobs"), 0, -1)[0].decode()
    wait_until(lambda: _end_client_lease(link, queue.keys, job))
    wait_until(lambda: [row["id"] for row in queue.jobs()] not in ([], [job]))
    with pytest.raises(redisq.JobCancelled, match="client-lease"):
        queue.attach(job)
    queue.cancel(queue.jobs()[0]["id"])
    thread.join(60)
    assert isinstance(caught[0], redisq.JobCancelled)


def _end_client_lease(link: Link, keys: Keys, job: str) -> bool:
    """End the lease and have a monitor look, at once, before the client's next call."""
    link.send("MULTI")
    link.send("DEL", keys("client", job), keys("monitor"))
    link.send_call("recover", keys, who="test", interval=1, deadline=10**15)
    link.send("EXEC")
    link.receive_all()
    # None: the client has heard of it already, and swept the job.
    return link.command("HGET", keys("job", job), "state") in (b"cancelled", None)


LOOK_AT_SETTINGS = """
import json, sys
import dask_redisq
from dask_redisq.settings import setting
print(json.dumps([setting(name) for name in sys.argv[1:]]))
"""


def test_settings_come_from_a_file_and_from_the_environment(tmp_path: Path) -> None:
    """In a new process: ``DASK_REDISQ__...``, else ``redisq.yaml`` of the user, else ours."""
    (tmp_path / "redisq.yaml").write_text(
        "redisq:\n  queue: of the file\n  alive-expiry: 4\n  allowed-failures: 5\n"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("DASK_")}
    env |= {"DASK_CONFIG": str(tmp_path)}
    env |= {"DASK_REDISQ__QUEUE": "of the environment", "DASK_REDISQ__LOCALITY_WAIT": "0.5"}
    names = ["queue", "alive-expiry", "allowed-failures", "locality-wait", "client-lease"]
    done = subprocess.run(
        [sys.executable, "-c", LOOK_AT_SETTINGS, *names],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == ["of the environment", 4, 5, 0.5, 60.0]
    assert done.stderr == ""
