"""Signatures of what is unpickled: made and checked by a secret that the server never sees. No I/O.

Who can write a pickle that a worker or a client reads runs code there. So every payload carries
a keyed digest, which is compared before anything in it is read. Its key is derived from secret,
kind, queue and job, and it covers task and attempt: a payload copied to another place fits no more.

A signed payload is ``payload, digest (16 bytes), id of the key (4), MARK (4)``. The signature
comes last because an array that is read in place must begin where its memory is aligned. A large
constant has none: it is named by its keyed digest, and the name stands in a signed block.

Keyed BLAKE2b, from `hashlib`: with the keyed state copied, a pickled number costs 1.1 us to sign
and 1.4 us to check, against 2.2 and 2.8 with HMAC-SHA256. From 3 kB on the latter is faster where
the machine has SHA instructions (1.6 GB/s against 0.8); most values are small.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, NoReturn

from dask_redisq.errors import BadSignature, SecretError

__all__ = ["BLOCK", "ERROR", "UNSIGNED", "VALUE", "Seal", "Signer"]

#: What a payload is. Each has keys of its own, so no value passes for a block.
BLOCK, VALUE, ERROR, _CONSTANT = "block", "value", "error", "constant"
#: End of every signed payload; the digit is the version of all this.
MARK = b"\0rq1"

_DIGEST = 16
_ID = 4
_SIZE = _DIGEST + _ID + len(MARK)
#: Characters of the shortest secret: what can be guessed is none. 16 random letters are 75 bits.
_LEAST = 16
#: Bytes from which a slice is worth a `memoryview`.
_LARGE = 4096


class Signer:
    """The keys of a secret; without any, it signs nothing and takes everything.

    Parameters
    ----------
    secrets : sequence of str
        The first one signs, all of them verify: that is how a secret is replaced.

    Raises
    ------
    SecretError
        If one is shorter than 16 characters.

    Examples
    --------
    >>> seal = Signer(["correct horse battery staple"]).seal("jobs", "j1")
    >>> signed = seal.sign(VALUE, b"", 7, b"payload")
    >>> bytes(seal.open(VALUE, b"", 7, signed))
    b'payload'
    >>> seal.open(VALUE, b"", 8, signed)
    Traceback (most recent call last):
    dask_redisq.errors.BadSignature: the value of task number 8 ...
    """

    __slots__ = ("_keys",)

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        if any(len(secret) < _LEAST for secret in secrets):
            raise SecretError(
                f"a secret has at least {_LEAST} characters, so that nobody guesses it; make one "
                "with: python -c 'import secrets; print(secrets.token_hex(32))'"
            )
        # Only states of the hash are kept, so that no secret lies around to be shown.
        self._keys = [blake2b(key=_digest64(secret), digest_size=64) for secret in secrets]

    @property
    def signs(self) -> bool:
        """Whether there is a secret."""
        return bool(self._keys)

    def __repr__(self) -> str:
        ids = [_derived(key, b"id")[:_ID].hex() for key in self._keys]
        return f"<Signer {', '.join(ids)}>" if ids else "<Signer without a secret>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Signer is not pickled: a secret stays where it was read")

    def seal(self, queue: str, job: str) -> Seal:
        """Return what signs and checks the payloads of one job."""
        return Seal(self._keys, queue, job)


class Seal:
    """Signs and checks the payloads of one job; made by `Signer.seal`.

    Attributes
    ----------
    signs : bool
        Whether there is a secret. Without one, `sign` and `open` give back what they get.
    job : str
        Whose payloads.
    name : str
        Of this object alone: so a count that is told twice counts once.
    refused, told : int
        Payloads that were refused, and how many of them its queue was told of: see `count_refused`.
    """

    def __init__(self, keys: Sequence[Any], queue: str, job: str) -> None:
        self.signs = bool(keys)
        self.job = job
        self.name = secrets.token_hex(8)
        self.refused = self.told = 0
        self._keys = keys
        self._queue = queue
        self._states: dict[str, list[tuple[bytes, Any]]] = {}

    def __repr__(self) -> str:
        state = "signed" if self.signs else "unsigned"
        return f"<Seal of job {self.job}, {state}, {self.refused} refused>"

    def sign(self, kind: str, attempt: bytes, number: int, payload: bytes) -> bytes:
        """Return `payload` with its signature.

        Parameters
        ----------
        kind : str
            BLOCK, VALUE, ERROR, or any other word that is used for one thing alone.
        attempt : bytes
            Who made it; empty where there is one maker.
        number : int
            Of the task or the block; 0 or more.
        payload : bytes
            What the other side will read.
        """
        if not self.signs:
            return payload
        tail, state = self._of(kind)[0]
        return payload + (_fingerprint(state, attempt, number, payload) + tail)

    def signer_of_values(self, attempt: bytes) -> Callable[[int, bytes], bytes] | None:
        """Return what signs the values of one attempt, called with task and pickle; or None."""
        return partial(self.sign, VALUE, attempt) if self.signs else None

    def open(self, kind: str, attempt: bytes, number: int, signed: bytes) -> bytes | memoryview:
        """Return the payload of what `sign` made for the same kind, attempt and number.

        Raises
        ------
        BadSignature
            If the signature is not that of a key of ours for exactly this.
        """
        if not self.signs:
            # A value may pass, at no cost: its block, which came first, did not.
            if kind != VALUE and bytes(signed[-len(MARK) :]) == MARK:
                raise self._refusal(kind, number, "it is signed, and this side has no secret")
            return signed
        payload = signed[:-_SIZE] if len(signed) < _LARGE else memoryview(signed)[:-_SIZE]
        tail = signed[_DIGEST - _SIZE :]
        found = signed[-_SIZE : _DIGEST - _SIZE]
        for our_tail, state in self._of(kind):
            if tail == our_tail and hmac.compare_digest(
                found, _fingerprint(state, attempt, number, payload)
            ):
                return payload
        raise self._refusal(kind, number, self._why(kind, tail))

    def name_constant(self, data: bytes | memoryview) -> str:
        """Return the name of a large constant: a digest of its content, keyed if there is a key."""
        if not self.signs:
            return blake2b(data, digest_size=_DIGEST).hexdigest()
        tail, state = self._of(_CONSTANT)[0]
        return (tail[:_ID] + _fingerprint(state, b"", 0, data)).hex()

    def check_constant(self, name: str, data: bytes) -> None:
        """Raise `BadSignature` if `data` is not what `name_constant` named; else do nothing.

        Without a secret nothing is looked at: whoever changes a constant could change its block.
        """
        if not self.signs:
            return
        for tail, state in self._of(_CONSTANT):
            key = tail[:_ID].hex()
            if name.startswith(key) and hmac.compare_digest(
                name, key + _fingerprint(state, b"", 0, data).hex()
            ):
                return
        raise self._refusal(_CONSTANT, 0, f"its content is not that of its name, {name}")

    def _of(self, kind: str) -> list[tuple[bytes, Any]]:
        """Return for each key the end of its signatures, and the hash to copy, for one kind."""
        states = self._states.get(kind)
        if states is None:
            words = [kind.encode(), self._queue.encode(), self.job.encode()]
            context = b"".join(b"%d:%b" % (len(word), word) for word in words)
            states = self._states[kind] = [
                (
                    _derived(key, b"id")[:_ID] + MARK,
                    blake2b(key=_derived(key, b"of:" + context), digest_size=_DIGEST),
                )
                for key in self._keys
            ]
        return states

    def _why(self, kind: str, tail: bytes) -> str:
        if tail[-len(MARK) :] != MARK:
            return "it is not signed"
        if tail not in [ours for ours, _ in self._of(kind)]:
            return f"it is signed by a key, {tail[:_ID].hex()}, that this side does not have"
        return "it was changed, or copied from elsewhere"

    def _refusal(self, kind: str, number: int, why: str) -> BadSignature:
        self.refused += 1
        what = {BLOCK: f"block {number}", _CONSTANT: "a constant"}.get(
            kind, f"the {kind} of task number {number}"
        )
        return BadSignature(
            f"{what} of job {self.job} in queue {self._queue} is refused, unread: {why}. Client "
            "and workers need the same secret (DASK_REDISQ__SECRET, or redisq.secret-file); if "
            "they have it, somebody else writes to the server"
        )


#: Of a server that only its user reaches, or whose users were told to be trusted.
UNSIGNED = Signer()


def _fingerprint(state: Any, attempt: bytes, number: int, payload: bytes | memoryview) -> bytes:
    digest = state.copy()
    # The length goes in too: else the end of one attempt could be the beginning of a payload.
    digest.update((number << 8 | len(attempt)).to_bytes(9, "big") + attempt)
    digest.update(payload)
    return digest.digest()  # type: ignore[no-any-return]  # hashlib's state has no public type


def _digest64(secret: str) -> bytes:
    return blake2b(secret.encode(), digest_size=64, person=b"dask-redisq 1").digest()


def _derived(key: Any, context: bytes) -> bytes:
    digest = key.copy()
    digest.update(context)
    return digest.digest()  # type: ignore[no-any-return]  # as above
