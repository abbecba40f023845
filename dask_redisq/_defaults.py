"""Enter the defaults of `redisq.yaml` into dask's configuration, before anything reads them.

And take the secret out of it, which ``dask config list`` would show.
"""

from __future__ import annotations

import logging
import os
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files

import dask
import yaml

from dask_redisq.frames import OURS

__all__ = ["__version__", "hide_secret"]

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


def hide_secret() -> bool:
    """Take ``redisq.secret`` out of dask's configuration; tell whether it was there.

    Dask reads every variable ``DASK_...`` on import, and again on each `dask.config.refresh`.
    """
    settings: dict[str, object] = dask.config.config.get("redisq") or {}
    return settings.pop("secret", None) not in (None, "")


if hide_secret() and not os.environ.get("DASK_REDISQ__SECRET"):
    logging.getLogger("dask_redisq").warning(
        "redisq.secret in a configuration file of dask is not read: put the secret into the "
        "variable DASK_REDISQ__SECRET, or a file that redisq.secret-file names"
    )
