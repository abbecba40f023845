"""Enter the defaults of `redisq.yaml` into dask's configuration, before anything reads them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files

import dask
import yaml

__all__ = ["__version__"]

try:
    __version__ = version("dask-redisq")
except PackageNotFoundError:  # run from a source tree
    __version__ = "0"

dask.config.update_defaults(
    yaml.safe_load(files("dask_redisq").joinpath("redisq.yaml").read_text())
)
