"""Which tasks of a block cannot be sent, and why, when the block cannot be. No I/O."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle

from dask_redisq.codec import PROTOCOL, dumps
from dask_redisq.errors import TaskNotSerializable, ValueTooLarge
from dask_redisq.pickler import dumps_by_value, dumps_plain
from dask_redisq.unshared import holds_open_file

__all__ = ["unsendable"]


def unsendable(
    tasks: Sequence[Any], why: Exception, name: Callable[[int], str], *, every: bool = False
) -> dict[int, Exception]:
    """Return the error of a task of a block that is to blame; empty if none is by itself.

    Parameters
    ----------
    tasks : sequence
        Those of the block.
    why : Exception
        What its encoding raised.
    name : callable
        What errors call the task at a place in the block.
    every : bool, default False
        Whether to look for all, and not for the first: who sends the rest would come again for
        each of them.
    """
    if isinstance(why, ValueTooLarge):
        sizes = [_size(task) for task in tasks]
        largest = sizes.index(max(sizes))
        error = ValueTooLarge(
            f"{name(largest)} cannot be sent to a worker: what it is given takes {why}: "
            "pass it in smaller parts"
        )
        return {largest: error}
    found: dict[int, Exception] = {}
    for i, task in enumerate(tasks):
        try:
            _try(task)
        except Exception as fault:
            found[i] = _unpicklable(task, fault, name(i))
            found[i].__cause__ = fault
            if not every:
                break
    return found


def _try(task: Any) -> None:
    """Pickle a task as the encoder does, but for its buffers, which never fail and may be large."""
    try:
        data = dumps_plain(task, PROTOCOL, buffer_callback=_drop)
    except Exception:
        data = b"__main__"
    if b"__main__" in data or cloudpickle.list_registry_pickle_by_value():
        dumps_by_value(task, PROTOCOL, buffer_callback=_drop)


def _drop(_: pickle.PickleBuffer) -> bool:
    return False


def _size(task: Any) -> int:
    try:
        return len(dumps(task))
    except Exception:  # it is told of when those are sent that are small enough
        return 0


def _unpicklable(task: Any, fault: Exception, name: str) -> TaskNotSerializable:
    hint = (
        ". xarray has the file open in this process, as for threads: call to_netcdf under "
        "`with redisq.enable():`, then tasks open it; or write zarr"
    )
    return TaskNotSerializable(
        f"{name} cannot be sent to a worker: its function or an argument does not pickle: "
        f"{fault}{hint if holds_open_file(task) else ''}"
    )
