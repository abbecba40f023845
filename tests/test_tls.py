"""A server that speaks TLS: work, a certificate that is not trusted, and secrets."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import dask.array as da
import psutil
import pytest
from conftest import WorkerProcess, wait_until

import dask_redisq as redisq
from dask_redisq import link as link_module
from dask_redisq.link import Link
from dask_redisq.queue import Queue
from dask_redisq.server import find_server

# Servers here are on ports, which others reach, so that there must be a secret.
pytestmark = pytest.mark.usefixtures("secret")

PASSWORD = "open/sesame"  # noqa: S105
IN_URL = "open%2Fsesame"


class Certificates:
    """A directory with two authorities, and what the first one signed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("ca", "other"):
            self._openssl("req", "-x509", *self._new(name), "-out", f"{name}.crt")
        for name, hosts in (("server", "IP:127.0.0.1"), ("client", "DNS:client")):
            (folder / "hosts").write_text(f"subjectAltName={hosts}\n")
            self._openssl("req", *self._new(name), "-out", f"{name}.csr")
            words = ["-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"]
            self._openssl("x509", "-req", *words, "-extfile", "hosts", "-out", f"{name}.crt")

    def _new(self, name: str) -> list[str]:
        """Return the words that ask for a new key."""
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        return [*kind, "-keyout", f"{name}.key", "-subj", f"/CN={name}"]

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates of the module's own."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    return Certificates(tmp_path_factory.mktemp("tls"))


class TlsServer:
    """A server on two ports of this host: one that speaks TLS, and one that does not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.plain_port = free_ports(2)
        # A file, as the password does not belong on a command line.
        (folder / "conf").write_text(
            f"bind 127.0.0.1\nport {self.plain_port}\ntls-port {self.port}\n"
            "tls-cert-file server.crt\ntls-key-file server.key\ntls-ca-cert-file ca.crt\n"
            f'tls-auth-clients no\nrequirepass {PASSWORD}\nsave ""\ndir {folder}\n'
        )
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [find_server(), str(folder / "conf")], stdout=log, stderr=log, cwd=folder
            )

    def url(self, host: str = "127.0.0.1", **options: str) -> str:
        """Return the URL as a user writes it; options name files of the folder."""
        named = {"ssl_ca_certs": "ca.crt", **options}
        query = "&".join(f"{option}={self.folder / name}" for option, name in named.items())
        return f"rediss://:{IN_URL}@{host}:{self.port}/0?ssl_cert_reqs=required&{query}"

    def wait(self) -> None:
        """Wait until it answers; skip where it cannot."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                log = (self.folder / "log").read_text()
                if "Bad directive" in log or "Failed finding TLS support" in log:
                    pytest.skip(f"{find_server()} was built without TLS")
                raise AssertionError(log)
            try:
                with closing(socket.create_connection(("127.0.0.1", self.port))):
                    return
            except ConnectionRefusedError:
                time.sleep(0.01)
        raise AssertionError("the server does not listen")

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(60)


def free_ports(n: int) -> list[int]:
    """Return ports of this host that nobody has."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


@pytest.fixture(scope="module")
def tls(certificates: Certificates) -> Iterator[TlsServer]:
    """One server for the module."""
    with closing(TlsServer(certificates.folder)) as running:
        running.wait()
        yield running


@pytest.fixture
def tls_queue(tls: TlsServer) -> Iterator[Queue]:
    """The test's queue on the empty server."""
    with closing(Link(tls.url())) as link:
        link.command("FLUSHALL")
    with Queue("test", tls.url()) as queue:
        yield queue


def command_lines(*processes: psutil.Process) -> str:
    """Return what `ps` shows of processes and all that they started."""
    return "\n".join(
        " ".join(one.cmdline()) for top in processes for one in (top, *top.children(recursive=True))
    )


@contextmanager
def at_once(seconds: float = 3.0) -> Iterator[None]:
    """Fail if what happens here takes its time."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


def test_tasks_run_and_values_come_back_over_tls(
    tls: TlsServer, tls_queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """Small and large values, and the word of removal, which a worker waits for by its socket."""
    worker = start_worker("test", "--nworkers", "2", url=tls.url())
    tls_queue.wait_for_workers(2, timeout=90)
    x = da.arange(1_000_000, chunks=100_000)
    assert int((x * 2).sum().compute(scheduler=tls_queue.get)) == 999_999_000_000
    assert (x + 1).compute(scheduler=tls_queue.get)[-1] == 1_000_000
    with at_once():
        tls_queue.remove()
        assert worker.wait(2.0) == 0


def count(_: int) -> object:
    """Count with the server that this task's queue is on."""
    return redisq.get_redis().incr("count")


def test_task_code_reaches_the_server_as_its_slot_does(
    tls: TlsServer, tls_queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """By TLS, with the password."""
    start_worker("test", "--nworkers", "1", url=tls.url())
    assert tls_queue.foreach(count, 5, inorder=False, combine=max) == 5


def test_a_worker_shows_neither_url_nor_password(
    tls: TlsServer, tls_queue: Queue, start_worker: Callable[..., WorkerProcess]
) -> None:
    """Worker, slots, and the keeper of a local worker: no command line has either."""
    worker = start_worker("test", "--nworkers", "1", url=tls.url())
    with closing(redisq.start_local_workers(1, "test", tls.url())):
        tls_queue.wait_for_workers(2, timeout=90)
        wait_until(worker.slots)
        shown = command_lines(psutil.Process())
    assert shown.count("dask_redisq.slot") == 2
    assert "sesame" not in shown
    assert "rediss:" not in shown
    assert "ssl_" not in shown
    worker.process.terminate()
    assert worker.wait() == 0
    assert "sesame" not in worker.output()


@pytest.mark.parametrize(
    ("host", "options", "advice"),
    [
        ("127.0.0.1", {"ssl_ca_certs": "other.crt"}, "ssl_ca_certs=/PATH"),
        ("127.0.0.1", {"ssl_ca_certs": "not-there.crt"}, "a file that the URL names"),
        ("127.0.0.1", {"ssl_ca_certs": "ca.key"}, "a file that the URL names"),
        ("localhost", {}, "the host of the URL"),
    ],
)
def test_a_certificate_that_is_not_trusted_is_an_error_at_once(
    tls: TlsServer, host: str, options: dict[str, str], advice: str
) -> None:
    """Another authority, a file that is no authority, another host: what to mend is said."""
    url = tls.url(host, **options)
    with at_once(), pytest.raises(redisq.ServerRefused, match=advice) as info:
        Queue("test", url).stats()
    assert "sesame" not in str(info.value)
    # And a connection that is lost and made again: who waits for the server would wait for ever.
    with closing(Link(url)) as link, at_once(), pytest.raises(redisq.ServerRefused, match=advice):
        link.command("PING")


def test_a_certificate_is_not_looked_at_if_the_url_says_so(tls: TlsServer) -> None:
    """Neither who signed it, nor the host; who asks for that gets it."""
    url = tls.url("localhost", ssl_ca_certs="other.crt").replace("=required", "=none")
    with closing(Link(url)) as link:
        assert link.command("PING") == b"PONG"


def test_a_worker_that_trusts_another_authority_ends_at_once(
    tls: TlsServer, start_worker: Callable[..., WorkerProcess]
) -> None:
    """It does not try for a minute, as for a server that is still to come; exit code 1."""
    with at_once(10):
        worker = start_worker("test", "--nworkers", "1", url=tls.url(ssl_ca_certs="other.crt"))
        assert worker.wait() == 1
    log = worker.output()
    assert "ssl_ca_certs=/PATH" in log
    assert "sesame" not in log
    assert log.count("\n") == 1


def test_a_server_that_wants_a_certificate_gets_it_from_the_url(tls: TlsServer) -> None:
    """Without one the error says which options there are."""
    with closing(Link(tls.url())) as held:
        held.command("CONFIG", "SET", "tls-auth-clients", "yes")
        try:
            bare = tls.url()
            # Not always refused: the end of the connection may overtake the server's reason.
            advice = r"ssl_certfile=.*ssl_keyfile="
            with at_once(), pytest.raises(redisq.ServerUnavailable, match=advice):
                Queue("test", bare).stats()
            url = tls.url(ssl_certfile="client.crt", ssl_keyfile="client.key")
            with Queue("test", url) as queue:
                assert queue.stats()["workers"] == 0
        finally:
            held.command("CONFIG", "SET", "tls-auth-clients", "no")


def test_a_port_without_tls_is_spoken_of(tls: TlsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the rest of a line, and so does TLS, each for the other."""
    monkeypatch.setattr(link_module, "REPLY_TIMEOUT", 0.5)
    url = tls.url().replace(str(tls.port), str(tls.plain_port))
    with at_once(), pytest.raises(redisq.ServerUnavailable, match="does that port speak TLS"):
        Queue("test", url).stats()
