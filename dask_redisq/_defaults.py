"""Enter the defaults of `redisq.yaml` into dask's configuration, before anything reads them.

And take out of it what ``dask config list`` would show: the secret, and the server's password.
"""

from __future__ import annotations

import logging
import os
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any

import dask
import yaml

from dask_redisq.frames import OURS
from dask_redisq.passwords import without_password

__all__ = ["__version__", "hide_secret", "url_setting"]

try:
    __version__ = version("dask-redisq")
except PackageNotFoundError:  # run from a source tree
    __version__ = "0"

dask.config.update_defaults(
    yaml.safe_load(files("dask_redisq").joinpath("redisq.yaml").read_text())
)
# Frames of ours in a traceback tell a user nothing.
_shorten = [*(dask.config.get("admin.traceback.shorten", None) or []), OURS]
dask.config.update_defaults({"admin": {"traceback": {"shorten": _shorten}}})
# A refresh takes the first default that there is of each setting, which would be Dask's own.
dask.config.defaults.insert(0, dask.config.defaults[-1])


def hide_secret() -> bool:
    """Take ``redisq.secret`` out of dask's configuration; tell whether it was there.

    Dask reads every variable ``DASK_...`` on import, and again on each `dask.config.refresh`.
    """
    settings: dict[str, object] = dask.config.config.get("redisq") or {}
    return settings.pop("secret", None) not in (None, "")


#: URLs with a password, by what is in the configuration in their place.
_whole: dict[str, str] = {}


def _hide_password() -> None:
    settings: dict[str, object] = dask.config.config.get("redisq") or {}
    url = settings.get("url")
    if isinstance(url, str) and (shown := without_password(url)) != url:
        _whole[shown] = url
        settings["url"] = shown


def url_setting() -> Any:
    """Return ``redisq.url`` with the password that it had where it came from."""
    url = dask.config.get("redisq.url")
    # A refresh brings it back. One that the user set since is theirs, and stays as they wrote it.
    if url is not None and (url in _whole.values() or url == os.environ.get("DASK_REDISQ__URL")):
        _hide_password()
    return _whole.get(url, url)


_hide_password()
if hide_secret() and not os.environ.get("DASK_REDISQ__SECRET"):
    logging.getLogger("dask_redisq").warning(
        "redisq.secret in a configuration file of dask is not read: put the secret into the "
        "variable DASK_REDISQ__SECRET, or a file that redisq.secret-file names"
    )
