"""One held connection to a server, and the calls that go over it.

A connection is held, not borrowed from a pool for each command (17 us a call against 34), and
redis-py's own retries are off: it would send an EVALSHA again up to ten times. A call is
repeated here instead, knowingly: every script may be replayed.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections import deque
from collections.abc import Collection
from typing import Any

from hiredis import pack_command
from redis import ConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.retry import Retry

from dask_redisq import scripts
from dask_redisq.errors import ServerUnavailable
from dask_redisq.keys import Keys
from dask_redisq.passwords import redact
from dask_redisq.refusals import AWAY, REFUSED, is_busy, meaning, refusal
from dask_redisq.spinning import spin
from dask_redisq.tls import tls_hint, tls_options
from dask_redisq.url import check_url

__all__ = ["Link", "redis_options"]

logger = logging.getLogger("dask_redisq")

#: Seconds that a reply may take; longer than any blocking call here waits.
REPLY_TIMEOUT = 15.0
CONNECT_TIMEOUT = 5.0
#: Bytes of a command for which the server, or the network, has REPLY_TIMEOUT.
PIECE = 64 * 1024
#: Bytes of a call from which it is told that it is sent again.
BIG = 2**20
#: Seconds from which a wait for a reply is remembered.
LONG_WAIT = 0.1
#: Longest pause between two tries, in seconds.
MOST_BACKOFF = 1.0

#: What waits in the kernel is no progress: with megabytes there, the wait for the reply would begin
#: long before the server has the call. (redis-py passes any option of TCP by this name.)
_UNSENT = {socket.TCP_NOTSENT_LOWAT: 2 * PIECE} if hasattr(socket, "TCP_NOTSENT_LOWAT") else {}


def redis_options(url: str, longest: float = math.inf) -> dict[str, Any]:
    """Return how redis-py is to connect: no reply is waited for for ever, nothing is sent twice."""
    reply, connect = min(longest, REPLY_TIMEOUT), min(longest, CONNECT_TIMEOUT)
    options: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "socket_timeout": reply}
    if not url.startswith("unix:"):
        options |= {"socket_connect_timeout": connect, "socket_keepalive": True}
    return options | (tls_options(url) if url.startswith("rediss:") else {})


class Link:
    """A held connection to one server; not for two threads at a time.

    Parameters
    ----------
    url : str
        ``redis://``, ``rediss://`` or ``unix://PATH``.
    patience : float or None, default 30.0
        Seconds for which a call is repeated while the server is away; None: for ever.
    longest : float, optional
        Seconds that a connection and a reply may take, if that is less than usual.

    Raises
    ------
    ServerUnavailable
        From any call, when the server does not answer for `patience` seconds.
    ServerRefused
        At once, when it refuses us, or we its certificate.
    BadURL
        When it is made, if `url` is not one.
    """

    def __init__(self, url: str, patience: float | None = 30.0, longest: float = math.inf) -> None:
        self.url = url
        self.patience = patience
        self.pid = os.getpid()
        #: time.monotonic() since when the connection was never lost; None before the first.
        self.unbroken_since: float | None = None
        self._tls = url.startswith("rediss:")
        more = {} if url.startswith("unix:") else {"socket_keepalive_options": _UNSENT}
        pool = ConnectionPool.from_url(
            check_url(url), protocol=2, **redis_options(url, longest), **more
        )
        self._connection: Any = pool.make_connection()
        self._pending: deque[tuple[Any, ...]] = deque()
        #: When long waits for replies ended, and their seconds; each longer than those after it.
        self._waits: list[tuple[float, float]] = []
        self._watched: dict[str, Keys] = {}
        #: Bytes of the longest string that the server is known to take.
        self.takes = 0
        #: Whether a script that keeps the server busy for seconds may be a policy without end.
        self.ends_loops = False

    def __repr__(self) -> str:
        state = "lost" if self.unbroken_since is None else "connected"
        return f"<Link {redact(self.url)} {state}>"

    def watch(self, keys: Keys) -> None:
        """Tell this queue, at each new connection, which run of the server it is.

        First thing, before what has no reply yet is sent again. A slot lost its connection because
        the server died and came back older; were its step to arrive first, a result would be
        accepted whose inputs nobody knows any more.
        """
        if keys.queue not in self._watched:
            self._watched[keys.queue] = keys
            try:
                if self.unbroken_since is not None:
                    self._greet([keys])
            except AWAY:
                self._lose()  # the next connection tells it

    def served_since(self, longest: float) -> float | None:
        """Return since when it is connected, and no reply took more than `longest` seconds."""
        slow = [end for end, waited in self._waits if waited > longest]
        return max([self.unbroken_since, *slow]) if self.unbroken_since is not None else None

    def unwatch(self, keys: Keys) -> None:
        """Tell this queue no more: it is removed, and what it is told it would keep."""
        self._watched.pop(keys.queue, None)

    # -- calls ------------------------------------------------------------------

    def call_awake(self, script: str, keys: Keys, /, **args: object) -> Any:
        """Do as `call`; wait for the answer awake at first, see `spinning`."""
        self.send_call(script, keys, **args)
        if self.unbroken_since is not None and len(self._pending) == 1:
            try:
                spin(self.fileno())
            except BaseException:
                self.close()  # interrupted: the next reader would get this reply
                raise
        return self.receive_all()[-1]

    def call(self, script: str, keys: Keys, /, **args: object) -> Any:
        """Run a script on a queue, arguments by name; repeated until it was answered."""
        self.send_call(script, keys, **args)
        return self.receive_all()[-1]

    def call_once(self, script: str, keys: Keys, /, **args: object) -> Any:
        """Run a script, and never again: None if the connection is lost before its answer."""
        try:
            if self.unbroken_since is not None:
                self.send_call(script, keys, **args)
            return None if self.unbroken_since is None else self._receive_one()
        except (*REFUSED, *AWAY) as error:
            self._give_up_if_refused(error)
            self.close()
            return None
        except BaseException:
            self.close()  # interrupted: the next reader would get this reply
            raise
        finally:
            if self.unbroken_since is None:
                self._pending.clear()

    def command(self, *words: Any) -> Any:
        """Send one command and return its reply; repeated while the server is away."""
        self.send(*words)
        return self.receive_all()[-1]

    def send_call(self, script: str, keys: Keys, /, **args: object) -> None:
        """Send a script's call without waiting for its answer (see `receive_all`)."""
        loaded = scripts.load(script)
        self.send("EVALSHA", loaded.sha, 1, keys("queue"), *loaded.argv(args))

    def load(self, script: str) -> None:
        """Have the server compile a script before it is called."""
        self.command("SCRIPT", "LOAD", scripts.load(script).text)

    def send(self, *words: Any) -> None:
        """Send one command without waiting for its reply."""
        self._pending.append(words)
        if self.unbroken_since is None:
            return  # receive_all connects and sends
        try:
            self._write(words)
        except AWAY:
            self._lose()
        except BaseException:
            # Interrupted on the way: the server may have half of it, and the next command would
            # be read as the other half.
            self._lose()
            self._pending.clear()
            raise

    def receive_all(self, but: int = 0) -> list[Any]:
        """Return the replies to all that was sent since the last time, in order.

        The last `but` ones are left for the next time: what they answer is still under way. A
        lost connection is made again, and what has no reply yet is sent again as it was: whatever
        goes over a link may be replayed.
        """
        replies: list[Any] = []
        started, pause = time.monotonic(), 0.01
        idle = sum(float(words[-1]) for words in self._pending if words[0] == "BLPOP")
        try:
            while len(self._pending) > but:
                try:
                    if self.unbroken_since is None:
                        self._connect_and_resend()
                    replies.append(self._receive_one())
                except (*REFUSED, *AWAY) as error:
                    self._give_up_if_refused(error)
                    first_try = self.unbroken_since is None and not replies
                    if not first_try:
                        self._tell_if_big(error)
                    self._lose()
                    self._give_up_if_over(error, started, first_try=first_try)
                    time.sleep(pause)
                    pause = min(2 * pause, MOST_BACKOFF)
        except BaseException:
            # Interrupted between a command and its reply: the next reader would get that reply.
            self._lose()
            self._pending.clear()
            raise
        if (waited := time.monotonic() - started - idle) > LONG_WAIT:
            self._waits = [wait for wait in self._waits if wait[1] > waited]
            self._waits.append((time.monotonic(), waited))
        return replies

    # -- blocking reads on an event loop ------------------------------------------

    def fileno(self) -> int:
        """Return the socket's descriptor, so that a selector can wait for a reply."""
        return int(self._connection._sock.fileno())  # noqa: SLF001 - redis-py has no other way

    def reply_ready(self, seconds: float = 0) -> bool:
        """Tell whether a reply can be read, or can be within some seconds."""
        try:
            return bool(self._connection.can_read(seconds))
        except AWAY:
            return True  # reading will tell

    def read_now(self) -> Any:
        """Return the reply that is ready; None, with the connection closed, if it was lost."""
        try:
            return self._receive_one()
        except AWAY:
            self.close()
            return None

    def close(self) -> None:
        """Close the connection; a later call opens it again."""
        self._lose()
        self._pending.clear()

    # -- inside ---------------------------------------------------------------------

    def connect(self) -> None:
        """Connect now, once, without repeating.

        Raises
        ------
        ServerUnavailable
            If the server does not answer; `ServerRefused` if it refuses us, or we it.
        """
        try:
            self._connection.connect()
            self._greet(self._watched.values())
        except (RedisError, OSError) as error:
            self._lose()
            self._give_up_if_refused(error)
            raise ServerUnavailable(f"no answer from {self._described(error)}") from error
        self.unbroken_since = time.monotonic()

    def _connect_and_resend(self) -> None:
        self._connection.connect()
        self._greet(self._watched.values())
        self.unbroken_since = time.monotonic()
        for words in self._pending:
            self._write(words)

    def _greet(self, queues: Collection[Keys]) -> None:
        """Send the server's run id to each queue; without the right to do so nothing is told."""
        if not queues:
            return
        script = scripts.load("greet")
        try:
            about = self._ask("INFO", "server")
            run = next(x for x in about.split(b"\r\n") if x.startswith(b"run_id:"))[7:]
            for keys in queues:
                words = ("EVALSHA", script.sha, 1, keys("queue"), *script.argv({"run": run}))
                try:
                    self._ask(*words)
                except NoScriptError:
                    self._ask("SCRIPT", "LOAD", script.text)
                    self._ask(*words)
        except AWAY:
            raise
        except ResponseError as error:
            if is_busy(error):
                self._end_loop(error)
                raise meaning(error, self.url) from error
            logger.debug("the queues are not told of the server's run: %s", error)

    def _end_loop(self, error: ResponseError) -> None:
        """Have a script killed that keeps the server busy, if it may be a policy without end.

        Whoever called it does so; but that process may have been killed. The server reads this
        though the connection is given up at once.
        """
        if self.ends_loops and str(error).startswith("BUSY "):
            self._connection.send_command("SCRIPT", "KILL")

    def _write(self, words: tuple[Any, ...]) -> None:
        """Send a command in pieces: the socket's timeout holds for each, not for all of it."""
        packed = pack_command(words)  # redis-py looks at each word before, for 6 us
        if len(packed) <= PIECE:
            self._connection.send_packed_command([packed])
            return
        view = memoryview(packed)
        pieces = [view[i : i + PIECE] for i in range(0, len(packed), PIECE)]
        self._connection.send_packed_command(pieces)

    def _ask(self, *words: Any) -> Any:
        self._connection.send_command(*words)
        return self._connection.read_response()

    def _receive_one(self) -> Any:
        try:
            reply = self._connection.read_response()
        except NoScriptError:
            self._load_scripts()
            return self._receive_one()
        except ResponseError as error:
            meant = meaning(error, self.url)
            self._end_loop(error)
            if not isinstance(meant, REFUSED + AWAY):
                self._pending.popleft()  # that was the answer
            if meant is error:
                raise
            raise meant from error
        self._pending.popleft()
        return reply

    def _load_scripts(self) -> None:
        """Load what the pending calls need, then send them all again on a fresh connection."""
        self._connection.disconnect()
        self._connection.connect()
        for sha in dict.fromkeys(words[1] for words in self._pending if words[0] == "EVALSHA"):
            script = next(s for s in map(scripts.load, scripts.script_names()) if s.sha == sha)
            self._connection.send_command("SCRIPT", "LOAD", script.text)
            self._connection.read_response()
        for words in self._pending:
            self._write(words)

    def _give_up_if_refused(self, error: BaseException) -> None:
        found = refusal(error, self.url, tls=self._tls)
        if found is not None:
            raise found from error

    def _described(self, error: BaseException) -> str:
        return f"{redact(self.url)}: {error}{tls_hint(error) if self._tls else ''}"

    def _give_up_if_over(self, error: BaseException, started: float, *, first_try: bool) -> None:
        waited = time.monotonic() - started
        if self.patience is not None and waited >= self.patience:
            raise ServerUnavailable(
                f"no answer for {waited:.0f} s from {self._described(error)}"
            ) from error
        if first_try:
            logger.debug("no answer from %s, trying again: %s", redact(self.url), error)

    def _tell_if_big(self, error: BaseException) -> None:
        """Say that much is sent again: over a slow network it may never arrive."""
        size = sum(
            len(word) for words in self._pending for word in words if isinstance(word, bytes)
        )
        if size >= BIG:
            logger.warning("%s: sending %s bytes again", self._described(error), f"{size:,}")

    def _lose(self) -> None:
        self.unbroken_since = None
        self._connection.disconnect()
