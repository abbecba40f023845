"""The policy of a job (`get_task`): checked by its client, asked by slots, ended if it never ends.

It runs on the server, in scripts that may not write (lua/wish.lua, lua/check_policy.lua). One that
does not end holds the server up for all: nobody can prevent that, and Redis lets nobody stop a
script before it ran for ``busy-reply-threshold``, 5 s. So whoever calls one has it killed from then
on, over a connection that was made before; if the caller itself is killed, other slots and the
client of such a job do, as soon as the server tells them that it is busy (`Link.ends_loops`).
"""

from __future__ import annotations

import logging
from contextlib import closing
from typing import Any

from redis.exceptions import ResponseError

from dask_redisq.codec import pack, unpack
from dask_redisq.errors import RedisqError, ServerUnavailable
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.task_warnings import packed_warning

__all__ = ["Asker", "check_policy"]

logger = logging.getLogger("dask_redisq")

#: Seconds after which a script is to be killed; the server does so later.
PATIENCE = 1.0
#: What the server says of a script that was killed.
_KILLED = "SCRIPT KILL"
#: Texts that were found right, and where.
_checked: set[tuple[str, str]] = set()


class _Endless(Exception):
    """The script did not end, and was killed."""


class Asker:
    """Asks policies over the connection of a slot, or of a client.

    Parameters
    ----------
    link : Link
        The connection.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self._killer = Link(link.url, patience=0.0)
        self._loaded: set[str] = set()

    def __repr__(self) -> str:
        return f"<Asker over {self.link!r}>"

    def wishes(self, keys: Keys, job: str, **args: object) -> list[int] | None:
        """Return the tasks that a job's policy wishes for a slot; none if the default is to choose.

        Parameters
        ----------
        keys : Keys
            The queue.
        job : str
            The job.
        **args
            Further arguments of wish.lua.

        Returns
        -------
        list of int, or None
            None: it did not end, and must be asked no more. The job's client is told what is wrong.
        """
        self.link.ends_loops = True
        try:
            answer = self._call("wish", keys, job=job, **args)
        except _Endless:
            self._warn(keys, job, "did not end, and is not asked again for this job")
            return None
        what, *more = unpack(answer) if answer else (b"nothing",)
        if what == b"error":
            self._warn(keys, job, f"failed: {more[0].decode(errors='replace')}")
        elif what == b"tasks" and not more[0]:
            self._warn(keys, job, "chose none of the tasks that it was shown")
        return more[0] if what == b"tasks" else []

    def _warn(self, keys: Keys, job: str, what: str) -> None:
        entry = packed_warning(f"the get_task of this job {what}: the default chooses instead")
        self.link.send_call("warn", keys, job=job, entries=pack([entry]))

    def check(self, keys: Keys, text: str) -> str:
        """Return what is wrong with a text; empty if nothing is.

        Raises
        ------
        RedisqError
            If the server cannot have policies.
        """
        try:
            wrong = self._call("check_policy", keys, text=text)
        except _Endless:
            return "it does not end"
        if wrong is None:
            raise ServerUnavailable("the connection was lost while a get_task was checked")
        return str(wrong.decode(errors="replace"))

    def _call(self, script: str, keys: Keys, **args: object) -> Any:
        """Call a script that may not end; None if the connection is lost, which is no answer.

        It is not sent again then: one that does not end would hold the server up once more.
        """
        link = self.link
        try:
            if script not in self._loaded:  # else the watched call may be that of another script
                link.load(script)
                self._loaded.add(script)
            if self._killer.unbroken_since is None:
                self._killer.connect()
            link.send_call(script, keys, **args)
            if link.unbroken_since is None:
                link.close()
                return None
            if not link.reply_ready(PATIENCE):
                self._kill()
            return link.read_now()
        except ResponseError as error:
            if _KILLED in str(error):
                raise _Endless from None
            if script not in self._loaded:
                raise RedisqError(
                    f"a get_task of your own needs Redis 7.0 or newer, or a Valkey: {error}"
                ) from error
            raise
        except BaseException:
            link.close()  # the next reader would get this reply
            raise

    def _kill(self) -> None:
        """Have the script that runs ended, once the server lets that happen."""
        try:
            self._killer.command("SCRIPT", "KILL")
        except ResponseError as error:  # it has just ended
            logger.debug("no script was killed: %s", error)
        except RedisqError as error:
            logger.warning("a get_task does not end, and cannot be killed: %s", error)

    def close(self) -> None:
        """Close the connection of its own."""
        self._killer.close()


def check_policy(link: Link, keys: Keys, text: str) -> None:
    """Check a policy, once in this process for each server, before anything is submitted.

    Raises
    ------
    ValueError
        If the server does not compile it, or it does not end.
    RedisqError
        If the server cannot have policies.
    """
    if (link.url, text) in _checked:
        return
    with closing(Asker(link)) as asker:
        wrong = asker.check(keys, text)
    if wrong:
        raise ValueError(f"get_task is the body of a function in Lua, and this is none: {wrong}")
    _checked.add((link.url, text))
