"""Files of h5py and netCDF4 that are open for reading travel by name, and are opened there anew.

``da.from_array(h5py.File("x.h5")["t"])`` has the open file in its tasks. Neither library pickles
one, for it may be there for writing. One that is only read is the same wherever it is opened;
distributed sees it so, too.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from dask_redisq.errors import TaskNotSerializable

__all__ = ["add_open_files", "holds_files"]

_Reduced = tuple[Callable[..., Any], tuple[Any, ...]]


def add_open_files(table: dict[type, Callable[[Any], _Reduced]]) -> None:
    """Enter how to pickle those kinds that this process can have: it imported their library."""
    for module, kind, reduce in _KINDS:
        if module in sys.modules and (found := getattr(sys.modules[module], kind, None)):
            table[found] = reduce


def holds_files() -> bool:
    """Tell whether something is left of what was opened here as it was unpickled."""
    return bool(_opened)


#: By id.
_opened: dict[int, weakref.ref[Any]] = {}


def _remember(thing: Any) -> None:
    who = id(thing)
    _opened[who] = weakref.ref(thing, lambda _: _opened.pop(who, None))


# -- h5py ---------------------------------------------------------------------------------


def _reduce_h5py(thing: Any) -> _Reduced:
    if not thing:
        raise TaskNotSerializable("a file of h5py is closed: compute before you close it")
    file = thing.file
    name = file.filename
    if file.mode != "r":
        raise _for_writing(name)
    path = _path(name)
    return _open_h5py, (path, "" if type(thing).__name__ == "File" else thing.name, file.swmr_mode)


def _open_h5py(path: str, name: str, swmr: bool) -> Any:  # noqa: FBT001 - pickles have no keywords
    file = import_module("h5py").File(path, "r", swmr=swmr)
    found = file[name] if name else file
    _remember(found)  # it keeps the file open, without its object
    return found


# -- netCDF4 ------------------------------------------------------------------------------


def _reduce_netcdf4(group: Any) -> _Reduced:
    # What its variables make of the numbers in the file is set on each, and not in the file.
    made = {where: how for where, how in _conversions(group) if not all(how)}
    return _open_netcdf4, (_file_of(group), group.path, made)


def _open_netcdf4(path: str, where: str, made: dict[str, tuple[bool, ...]]) -> Any:
    file = import_module("netCDF4").Dataset(path, "r")
    _remember(file)
    for name, how in made.items():
        _convert(file[name], how)
    return file if where == "/" else file[where]


def _reduce_variable(variable: Any) -> _Reduced:
    group = variable.group()
    return _open_variable, (_file_of(group), group.path, variable.name, _conversion(variable))


def _open_variable(path: str, where: str, name: str, how: tuple[bool, ...]) -> Any:
    variable = _open_netcdf4(path, where, {}).variables[name]
    _convert(variable, how)
    return variable


def _file_of(group: Any) -> str:
    root = group
    while root.parent is not None:
        root = root.parent
    if not root.isopen():
        raise TaskNotSerializable("a file of netCDF4 is closed: compute before you close it")
    name = root.filepath()
    try:
        # No attribute tells how it was opened. This is the default, and an error if it is for
        # reading only.
        root.set_fill_on()
    except RuntimeError:
        return name if "://" in name else _path(name)  # OPeNDAP
    raise _for_writing(name)


def _conversions(group: Any) -> Iterator[tuple[str, tuple[bool, ...]]]:
    for name, variable in group.variables.items():
        yield f"{group.path.rstrip('/')}/{name}", _conversion(variable)
    for inner in group.groups.values():
        yield from _conversions(inner)


def _conversion(variable: Any) -> tuple[bool, ...]:
    return variable.scale, variable.mask, variable.always_mask, variable.chartostring


def _convert(variable: Any, how: tuple[bool, ...]) -> None:
    scale, mask, always_mask, chartostring = how
    variable.set_auto_scale(scale)
    variable.set_auto_mask(mask)
    variable.set_always_mask(always_mask)
    variable.set_auto_chartostring(chartostring)


# -- both ---------------------------------------------------------------------------------


def _path(name: str) -> str:
    """Return a name that is right from other working directories, too."""
    path = Path(name)
    if not path.is_file():
        raise TaskNotSerializable(
            f"{name!r} is open, but no file on a disk: a worker cannot open it. Write it to one "
            "that all workers see"
        )
    return str(path.absolute())


def _for_writing(name: str) -> TaskNotSerializable:
    return TaskNotSerializable(
        f"the file {name!r} is open for writing, and a worker, which opens it for itself, may not "
        'see what was written last. Close it, and open it with mode "r"; tasks that write open it '
        "themselves, or store into zarr"
    )


_KINDS = (
    ("h5py", "File", _reduce_h5py),
    ("h5py", "Group", _reduce_h5py),
    ("h5py", "Dataset", _reduce_h5py),
    ("netCDF4", "Dataset", _reduce_netcdf4),
    ("netCDF4", "Group", _reduce_netcdf4),
    ("netCDF4", "Variable", _reduce_variable),
)
