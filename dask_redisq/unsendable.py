"""Which tasks of a block cannot be sent, and why, when the block cannot be. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dask_redisq.codec import dumps
from dask_redisq.errors import TaskNotSerializable, ValueTooLarge
from dask_redisq.unshared import holds_open_file

__all__ = ["unsendable"]


def unsendable(
    tasks: Sequence[Any], why: Exception, name: Callable[[int], str]
) -> dict[int, Exception]:
    """Return the error of each task of a block that is to blame; empty if none is by itself.

    All of them, and not the first one: a caller who sends the rest would come here again for each.

    Parameters
    ----------
    tasks : sequence
        Those of the block.
    why : Exception
        What its encoding raised.
    name : callable
        What errors call the task at a place in the block.
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
            dumps(task)
        except Exception as fault:
            found[i] = _unpicklable(task, fault, name(i))
            found[i].__cause__ = fault
    return found


def _size(task: Any) -> int:
    try:
        return len(dumps(task))
    except Exception:  # it is told of when those are sent that are small enough
        return 0


def _unpicklable(task: Any, fault: Exception, name: str) -> TaskNotSerializable:
    hint = (
        ". xarray has the file open in this process, as for threads: write it under "
        "`with redisq.enable():`, then tasks open it; or write zarr"
    )
    return TaskNotSerializable(
        f"{name} cannot be sent to a worker: its function or an argument does not pickle: "
        f"{fault}{hint if holds_open_file(task) else ''}"
    )
