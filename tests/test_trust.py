"""What is unpickled was signed for just that place; where the secret comes from."""

from __future__ import annotations

import os
import pickle
import random
import stat
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import dask
import pytest
from conftest import SECRET

from dask_redisq.codec import Block, PackedBlock, loads, pack
from dask_redisq.encoder import BlockEncoder
from dask_redisq.errors import BadSignature, BadURL, SecretError
from dask_redisq.remote_error import pack_error
from dask_redisq.secret import find_secret, is_private
from dask_redisq.trust import BLOCK, ERROR, UNSIGNED, VALUE, Seal, Signer
from dask_redisq.url import check_url
from dask_redisq.verdict import as_exception

ATTEMPT = b"0123456789abcdef00000007"
SERVER = "redis://:hushhush@somewhere:6379/0"


class Bomb:
    """Its pickle makes a directory when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.makedirs, (str(self.mark), 0o700, True)


def seal_of(secret: str = SECRET, queue: str = "test", job: str = "j1") -> Seal:
    """Return the seal of a job."""
    return Signer([secret]).seal(queue, job)


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No secret in the environment."""
    monkeypatch.delenv("DASK_REDISQ__SECRET", raising=False)


# ------------------------------------------------------------------------------- signatures


@pytest.mark.parametrize("size", [0, 1, 10, 4095, 4096, 100_000])
def test_what_was_signed_comes_back(size: int) -> None:
    """Of any size; and the signature costs 24 bytes."""
    payload = os.urandom(size)
    signed = seal_of().sign(VALUE, ATTEMPT, 7, payload)
    assert bytes(seal_of().open(VALUE, ATTEMPT, 7, signed)) == payload
    assert len(signed) == size + 24


@pytest.mark.parametrize(
    ("seal", "kind", "attempt", "number"),
    [
        (seal_of(job="j2"), VALUE, ATTEMPT, 7),
        (seal_of(queue="test2"), VALUE, ATTEMPT, 7),
        (seal_of(queue="testj", job="1"), VALUE, ATTEMPT, 7),
        (seal_of(), ERROR, ATTEMPT, 7),
        (seal_of(), BLOCK, ATTEMPT, 7),
        (seal_of(), VALUE, ATTEMPT[:-1] + b"8", 7),
        (seal_of(), VALUE, ATTEMPT[:-1], 7),
        (seal_of(), VALUE, ATTEMPT, 8),
        (seal_of("another secret of the tests"), VALUE, ATTEMPT, 7),
    ],
)
def test_a_payload_fits_one_place(seal: Seal, kind: str, attempt: bytes, number: int) -> None:
    """Another job, queue, kind, attempt, task or secret: refused, and counted."""
    signed = seal_of().sign(VALUE, ATTEMPT, 7, b"payload")
    before = seal.refused
    with pytest.raises(BadSignature, match="is refused, unread"):
        seal.open(kind, attempt, number, signed)
    assert seal.refused == before + 1


def forgeries(rng: random.Random, bomb: bytes, n: int) -> list[tuple[str, bytes, int, bytes]]:
    """Return kind, attempt, number and bytes of payloads that nobody may read."""
    others = [seal_of(job="j2"), seal_of(queue="other"), seal_of("another secret of the tests")]
    kinds = [BLOCK, VALUE, ERROR]
    made = []
    for i in range(n):
        kind, number = kinds[i // 6 % 3], rng.randrange(1000)
        signed = seal_of().sign(kind, ATTEMPT, number, bomb)
        at = rng.randrange(len(signed))
        bit = signed[at] ^ 1 << rng.randrange(8)
        forged = (
            signed[:at] + bytes([bit]) + signed[at + 1 :],
            signed[:at] if at % 2 else signed[at + 1 :],
            seal_of().sign(kind, ATTEMPT, number + 1, bomb),
            seal_of().sign(kinds[(kinds.index(kind) + 1) % 3], ATTEMPT, number, bomb),
            rng.choice(others).sign(kind, ATTEMPT, number, bomb),
            bomb + rng.randbytes(rng.randrange(60)),
        )[i % 6]
        made.append((kind, ATTEMPT, number, forged))
    return made


def test_of_12000_forged_payloads_none_is_unpickled_and_each_is_counted(tmp_path: Path) -> None:
    """Bits flipped, cut, replayed to another task, kind, job or queue, foreign key, unsigned."""
    mark = tmp_path / "mark"
    bomb = pickle.dumps(Bomb(mark))
    seal = seal_of()
    for kind, attempt, number, forged in forgeries(random.Random(7), bomb, 12_000):
        with pytest.raises(BadSignature):
            loads(seal.open(kind, attempt, number, forged))
    assert seal.refused == 12_000
    assert not mark.exists()
    loads(seal.open(VALUE, ATTEMPT, 1, seal.sign(VALUE, ATTEMPT, 1, bomb)))
    assert mark.exists()  # the bomb is one


def test_each_bit_of_a_payload_counts() -> None:
    """Of the payload, of the digest, of the key's id and of the mark."""
    seal = seal_of()
    signed = seal.sign(VALUE, ATTEMPT, 1, b"payload")
    for bit in range(8 * len(signed)):
        changed = bytearray(signed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadSignature):
            seal.open(VALUE, ATTEMPT, 1, bytes(changed))


@pytest.mark.parametrize(
    ("forged", "why"),
    [
        (b"payload", "it is not signed"),
        (b"", "it is not signed"),
        (seal_of("another secret of the tests").sign(VALUE, ATTEMPT, 1, b"x"), "by a key, "),
        (seal_of().sign(VALUE, ATTEMPT, 2, b"x"), "was changed, or copied from elsewhere"),
    ],
)
def test_a_refusal_tells_what_and_why_and_what_to_do(forged: bytes, why: str) -> None:
    """Task, job, queue, the kind of fault, and the setting that mends it."""
    with pytest.raises(BadSignature, match=why) as caught:
        seal_of().open(VALUE, ATTEMPT, 1, forged)
    assert "the value of task number 1 of job j1 in queue test" in str(caught.value)
    assert "need the same secret (DASK_REDISQ__SECRET, or redisq.secret-file)" in str(caught.value)


def test_without_a_secret_nothing_is_changed() -> None:
    """The same object comes back, and values need no call at all."""
    seal, payload = UNSIGNED.seal("test", "j1"), b"payload"
    assert seal.sign(BLOCK, b"", 1, payload) is payload
    assert seal.open(BLOCK, b"", 1, payload) is payload
    assert seal.signer_of_values(ATTEMPT) is None


@pytest.mark.parametrize("kind", [BLOCK, ERROR])
def test_who_has_no_secret_says_so_of_what_is_signed(kind: str) -> None:
    """Rather than fail over its signature, which would look like damage."""
    with pytest.raises(BadSignature, match="it is signed, and this side has no secret"):
        UNSIGNED.seal("test", "j1").open(kind, b"", 1, seal_of().sign(kind, b"", 1, b"payload"))


def test_keys_are_replaced_one_by_one() -> None:
    """The first one signs, all verify, and who lost a key refuses what it signed."""
    old, new = "the old secret of the tests", "the new secret of the tests"
    both = Signer([new, old]).seal("test", "j1")
    by_old = Signer([old]).seal("test", "j1").sign(VALUE, ATTEMPT, 1, b"a")
    by_both = both.sign(VALUE, ATTEMPT, 1, b"b")
    assert bytes(both.open(VALUE, ATTEMPT, 1, by_old)) == b"a"
    assert bytes(Signer([new]).seal("test", "j1").open(VALUE, ATTEMPT, 1, by_both)) == b"b"
    with pytest.raises(BadSignature, match="by a key"):
        Signer([new]).seal("test", "j1").open(VALUE, ATTEMPT, 1, by_old)


@pytest.mark.parametrize("what", ["array", "text"])
def test_a_constant_is_named_by_its_keyed_content(what: str) -> None:
    """A block that is signed names its constants, so none of them can be another."""
    thing = pickle.PickleBuffer(bytearray(100_000)) if what == "array" else "x" * 100_000
    stored: dict[str, bytes] = {}
    seal = seal_of()
    block = Block([(len, (thing,))], [()], [()], frozenset(), {}, {}, {}, {}, kept=False)
    payload, digests = BlockEncoder(stored.__setitem__, seal.name_constant).encode(block)
    assert list(stored) == digests
    assert PackedBlock.read(payload).buffers == (digests if what == "array" else [])
    (name,) = digests
    Signer(["the new secret of the tests", SECRET]).seal("test", "j1").check_constant(
        name, stored[name]
    )
    for other in (seal_of(job="j2"), seal_of("another secret of the tests"), seal):
        with pytest.raises(BadSignature, match="a constant of job"):
            other.check_constant(name, stored[name][:-1] + b"!" if other is seal else stored[name])


def test_a_reason_that_was_forged_is_refused_whatever_is_in_it() -> None:
    """The client reads the error of a job only if it is signed for its task."""
    seal = seal_of()
    good = seal.sign(ERROR, b"", 0, pack_error(KeyError("k"), "w"))
    assert isinstance(as_exception(pack(["raised", 0, good, "s"]), "j1", ["a"], seal), KeyError)
    for task, payload in ((1, good), (0, 10**9), (0, None), (-1, b""), (0, good[:-24])):
        with pytest.raises(BadSignature):
            as_exception(pack(["raised", task, payload, "s"]), "j1", ["a", "b"], seal)


# ------------------------------------------------------------------------------- the secret


def secret_file(folder: Path, text: str, mode: int = 0o600) -> str:
    """Return the name of a file with `text`."""
    path = folder / "secret"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def id_of(*secrets: str) -> str:
    """Return how a signer shows itself: by the names of its keys."""
    return repr(Signer(secrets))


@pytest.mark.usefixtures("no_settings")
def test_a_secret_comes_from_the_environment_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is named to us, then the variable, then the file of the settings; as text."""
    one, two, digits = "the first secret, of 28 bytes", "the second secret", "0123456789012345678"
    path = secret_file(tmp_path, f"{one}\n\n{two}\n")
    with dask.config.set({"redisq.secret-file": path}):
        assert repr(find_secret(SERVER)) == id_of(one, two)
        secret_file(tmp_path, f"\ufeff{one}\n")  # as editors of Windows begin a file
        assert repr(find_secret(SERVER)) == id_of(one)
        secret_file(tmp_path, f"{one}\n\n{two}\n")
        monkeypatch.setenv("DASK_REDISQ__SECRET", digits)  # a number, were it read as one
        assert repr(find_secret(SERVER)) == id_of(digits)
        assert repr(find_secret(SERVER, path)) == id_of(one, two)


@pytest.mark.usefixtures("no_settings")
@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        (SECRET, 0o644, "is open to others (mode 0644).*chmod 600"),
        (SECRET, 0o640, "is open to others"),
        ("\n \n", 0o600, "is empty"),
        ("short", 0o600, "at least 16 characters"),
        (None, 0o600, "no secret in .*: No such file"),
    ],
)
def test_a_file_that_holds_no_secret_is_refused(
    tmp_path: Path, text: str | None, mode: int, message: str
) -> None:
    """The message says what is wrong with it, and never what is in it."""
    path = str(tmp_path / "none") if text is None else secret_file(tmp_path, text, mode)
    message = message.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(SecretError, match=message) as caught:
        find_secret(SERVER, path)
    assert SECRET not in str(caught.value)


@pytest.mark.usefixtures("no_settings")
def test_a_server_that_others_reach_needs_a_secret() -> None:
    """The message holds the three ways out, and no password."""
    with pytest.raises(SecretError) as caught:
        find_secret(SERVER)
    for words in ("DASK_REDISQ__SECRET", "--secret-file", "mode 0700", "--allow-unsigned"):
        assert words in str(caught.value)
    assert "hushhush" not in str(caught.value)
    assert not find_secret(SERVER, allow_unsigned=True).signs
    with dask.config.set({"redisq.allow-unsigned": True}):
        assert not find_secret(SERVER).signs


@pytest.mark.usefixtures("no_settings")
@pytest.mark.parametrize(("mode", "private"), [(0o700, True), (0o750, False), (0o701, False)])
def test_a_socket_in_a_directory_of_ours_is_private(
    tmp_socket: Path, mode: int, *, private: bool
) -> None:
    """Nobody else can reach it; a secret is not needed, but used if there is one.

    Whether or not it is there: a server that is stopped takes it away, and brings it back.
    """
    tmp_socket.parent.chmod(mode)
    assert stat.S_IMODE(tmp_socket.parent.stat().st_mode) == mode
    assert is_private(f"unix://{tmp_socket}") is private
    tmp_socket.touch()
    assert is_private(f"unix://{tmp_socket}") is private
    assert not is_private(f"unix://{tmp_socket.parent}/a-directory-that-is-not-there/s")


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("links", [1, 2])
def test_a_link_to_a_socket_is_as_private_as_the_socket(
    tmp_path: Path, tmp_socket: Path, links: int, *, there: bool
) -> None:
    """The directory that counts is that of the socket itself, also where a link leads nowhere."""
    if there:
        tmp_socket.touch()
    tmp_path.chmod(0o700)
    for i in range(links):
        (tmp_path / f"s{i}").symlink_to(tmp_path / f"s{i + 1}" if i + 1 < links else tmp_socket)
    for mode, private in ((0o755, False), (0o700, True)):
        tmp_socket.parent.chmod(mode)
        assert is_private(f"unix://{tmp_path / 's0'}") is private


@pytest.mark.usefixtures("no_settings")
@pytest.mark.parametrize("option", ["path={}", "password=x&path={}", "p%61th={}", "host=h&port=1"])
def test_an_option_of_a_url_is_not_where_the_server_is(option: str, tmp_socket: Path) -> None:
    """A file in a directory of ours made a server of others private."""
    tmp_socket.touch()
    url = f"redis://somewhere:1/0?{option.format(tmp_socket)}"
    for use in (is_private, find_secret, check_url):
        with pytest.raises(BadURL, match="that is not the URL of a server"):
            use(url)


def test_a_secret_is_used_on_a_private_server_too(secret: str, link: object) -> None:
    """Whoever sets one expects it to be used."""
    url = link.url  # type: ignore[attr-defined]
    assert is_private(url)
    assert repr(find_secret(url)) == id_of(secret)


@pytest.mark.usefixtures("no_settings")
def test_a_secret_in_the_configuration_is_refused() -> None:
    """It would be printed by whoever prints that."""
    with (
        dask.config.set({"redisq.secret": SECRET}),
        pytest.raises(SecretError, match=r"redisq\.secret is not read from"),
    ):
        find_secret(SERVER)


@pytest.mark.usefixtures("secret")
def test_dask_reads_the_variable_and_forgets_it_again() -> None:
    """On import, also by Dask's own command, and after a refresh at the next use."""
    shown = subprocess.run(
        [sys.executable, "-m", "dask", "config", "list"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "secret-file" in shown
    assert SECRET not in shown
    dask.config.refresh()
    assert dask.config.get("redisq.secret") == SECRET
    find_secret(SERVER)
    assert dask.config.get("redisq.secret", None) is None


WITHOUT = "redis://me@somewhere:6379/0"
#: In a process that has `WHOLE` from its environment or its files.
USES = f"""
import dask, dask_redisq
whole = {{0!r}}
def shown():
    assert dask_redisq.Queue().url == whole, "the queue has no password"
    assert "hushhush" not in repr(dask.config.config)
    return dask.config.get("redisq.url") == {WITHOUT!r}
assert shown(), "on import"
dask.config.refresh()
assert shown(), "after a refresh"
other = "redis://:another@somewhere:6379/0"
with dask.config.set({{{{"redisq.url": other}}}}):
    assert dask_redisq.Queue().url == dask.config.get("redisq.url") == other
assert shown(), "after another one"
"""


@pytest.mark.parametrize("by_file", [False, True])
def test_a_password_is_not_in_the_configuration(tmp_path: Path, *, by_file: bool) -> None:
    """It is taken out on import, also by Dask's own command; what we call has it all the same."""
    whole = WITHOUT.replace("me@", "me:hushhush@")
    env = {**os.environ, "DASK_CONFIG": str(tmp_path), "DASK_REDISQ__URL": whole}
    if by_file:
        del env["DASK_REDISQ__URL"]
        (tmp_path / "redisq.yaml").write_text(f"redisq:\n  url: {whole}\n")
    run = partial(subprocess.run, env=env, text=True, capture_output=True, check=False)
    listed = run([sys.executable, "-m", "dask", "config", "list"]).stdout
    assert f"url: {WITHOUT}" in listed
    assert "hushhush" not in listed
    used = run([sys.executable, "-c", USES.format(whole)])
    assert used.returncode == 0, used.stderr


def test_a_signer_shows_no_secret_and_does_not_travel() -> None:
    """Neither its repr, nor what it holds, nor a pickle of it."""
    signer = Signer([SECRET])
    assert SECRET not in repr(signer) + repr(signer.seal("q", "j"))
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(signer)
