"""Where the secret comes from, and when one is needed.

It is read as text: from the environment variable ``DASK_REDISQ__SECRET``, or from the file of
``redisq.secret-file``. It never is in dask's configuration, which people print.
"""

from __future__ import annotations

import os
import stat
from functools import cache
from pathlib import Path

from redis.connection import parse_url

from dask_redisq._defaults import hide_secret
from dask_redisq.errors import SecretError
from dask_redisq.passwords import redact
from dask_redisq.settings import setting
from dask_redisq.trust import Signer
from dask_redisq.url import check_url

__all__ = ["environment_for", "find_secret", "is_private"]

VARIABLE = "DASK_REDISQ__SECRET"

_NEEDED = """\
{server} is not private to you, and there is no secret: whoever else writes to it could run code \
here. Ways out:
    a secret, the same for client and workers, in {variable}, or in a file of mode 0600 that \
redisq.secret-file (a worker's --secret-file) names; make one with
        python -c 'import secrets; print(secrets.token_hex(32))'
    a server on a unix socket in a directory of mode 0700 that is yours
    if all who reach the server may run code here: redisq.allow-unsigned: true (a worker's \
--allow-unsigned)"""


def find_secret(
    url: str | None = None, file: str | None = None, *, allow_unsigned: bool = False
) -> Signer:
    """Return what signs and checks payloads, as the environment and the settings say.

    Parameters
    ----------
    url : str, optional
        The server that it is for. Without one no secret is needed: somebody else has looked.
    file : str, optional
        Where the secret is, whatever environment and settings say.
    allow_unsigned : bool, default False
        Go without a secret on any server, as with ``redisq.allow-unsigned``.

    Raises
    ------
    SecretError
        If there is no secret and one is needed, or its file is not fit for one.

    Examples
    --------
    >>> find_secret("redis://somewhere:6379/0", allow_unsigned=True)
    <Signer without a secret>
    """
    secrets = _secrets(file)
    if secrets:
        return Signer(secrets)
    if url is None or allow_unsigned or is_private(url) or setting("allow-unsigned"):
        return Signer()
    raise SecretError(_NEEDED.format(server=redact(url), variable=VARIABLE))


def environment_for(file: str | None = None) -> dict[str, str]:
    """Return what a child process needs in its environment, besides ours, to find our secret.

    Parameters
    ----------
    file : str, optional
        As for `find_secret`.
    """
    path = _file(file)
    # By its whole name, as it is now: settings may name another file when the child starts.
    return {} if path is None else {VARIABLE: "", f"{VARIABLE}_FILE": str(path)}


def _file(given: str | None) -> Path | None:
    """Return the file that the secret is in, None if it is in the environment, or nowhere."""
    if given is None and os.environ.get(VARIABLE):
        return None
    name = setting("secret-file", given)
    return None if name is None else Path(str(name)).expanduser().absolute()


def is_private(url: str) -> bool:
    """Tell whether only this user reaches a server: by a socket in a 0700 directory of theirs.

    The socket need not be there: a server that stops removes it, and makes it again.

    Raises
    ------
    BadURL
        If `url` is none.
    """
    path = _socket_of(url)
    if not path or not hasattr(os, "getuid"):
        return False
    try:
        # Of the directory that the name leads to, as a link of that name may be anybody's, there
        # or not. By `os`, which is faster than `Path`, since this is asked for each `get`.
        folder = os.stat(os.path.dirname(os.path.realpath(path)))  # noqa: PTH116, PTH120
    except OSError:
        return False
    return folder.st_uid == os.getuid() and not stat.S_IMODE(folder.st_mode) & 0o077


@cache
def _socket_of(url: str) -> str | None:
    path: str | None = parse_url(check_url(url)).get("path")
    return path


def _secrets(given: str | None) -> list[str]:
    """Return the secrets, the one that signs first."""
    text = os.environ.get(VARIABLE, "")
    if hide_secret() and not text:
        raise SecretError(
            "redisq.secret is not read from dask's configuration, where everybody sees it who "
            f"prints that: put the secret into {VARIABLE}, or a file that redisq.secret-file names"
        )
    file = _file(given)
    if file is not None:
        text = _read_file(file)
        if not text.strip():
            raise SecretError(f"{file} is empty: a secret is the first line of its file")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _read_file(file: Path) -> str:
    try:
        with file.open(encoding="utf-8-sig") as opened:
            # Of the open file: the name may be another's a moment later.
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            if os.name == "posix" and mode & 0o077:
                raise SecretError(
                    f"{file} is open to others (mode {mode:04o}), so what is in it is no secret: "
                    f"make a new one, and chmod 600 {file}"
                )
            return opened.read()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise SecretError(f"no secret in {file}: {why}") from None
