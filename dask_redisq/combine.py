"""How the results of a loop become its value: foreach's combine. No I/O.

Source: ``callCombine.R`` and the arguments ``.combine``, ``.multicombine``, ``.maxcombine``,
``.inorder``, ``.init`` and ``.final`` of R's foreach. Results are combined as they come, and then
let go.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any, SupportsFloat

__all__ = ["NOTHING", "Combiner"]

#: There is no such value: None may be one.
NOTHING: Any = type("Nothing", (), {"__repr__": lambda _: "NOTHING"})()
#: Builtins that take one iterable, and may be given what they returned before.
_FOLDING = (builtins.sum, builtins.min, builtins.max, builtins.any, builtins.all)
#: Those that take one iterable, and may not: they get all results at once.
_COLLECTING: tuple[Any, ...] = (builtins.list, builtins.tuple, builtins.set)


class Combiner:
    """Combines the results of a loop as they arrive.

    Parameters
    ----------
    combine : callable, optional
        Called as ``combine(a, b)``; with `multicombine` as ``combine(*up_to_maxcombine)``. The
        builtins sum, min, max, any and all are called with a list of these instead, and list, tuple
        and set once, with a list of all. Without it the results are a list.
    multicombine : bool, default False
        Whether it takes more than two.
    maxcombine : int, default 100
        How many at most, what was combined before being one of them.
    inorder : bool, default True
        Whether results wait until those before them are there.
    init : object, optional
        Comes before all results.
    final : callable, optional
        Called with the value, for another one; with [] if there was no result.

    Raises
    ------
    TypeError
        For a `combine` or `final` that cannot be called, or a `maxcombine` that is no number.
    ValueError
        For an `init` without `combine`, or a `maxcombine` below 2.

    Examples
    --------
    >>> combiner = Combiner(lambda a, b: a + b)
    >>> combiner.add(1, "b"); combiner.add(0, "a"); combiner.add(2, "c")
    >>> combiner.value()
    'abc'
    """

    def __init__(
        self,
        combine: Callable[..., Any] | None = None,
        *,
        multicombine: bool = False,
        maxcombine: int = 100,
        inorder: bool = True,
        init: Any = NOTHING,
        final: Callable[[Any], Any] | None = None,
    ) -> None:
        for what, given in (("combine", combine), ("final", final)):
            if given is not None and not callable(given):
                raise TypeError(f"{what} is a function, not {given!r}")
        if not isinstance(maxcombine, SupportsFloat):
            raise TypeError(f"maxcombine is a number, not {maxcombine!r}")
        if combine is None and init is not NOTHING:
            raise ValueError("init comes before what combine is given: there is no combine")
        if maxcombine < 2:
            raise ValueError(f"maxcombine is at least 2, not {maxcombine!r}")
        self._combine: Callable[..., Any] = list if combine is None else combine
        self._most = maxcombine if multicombine else 2
        self._inorder = inorder
        self._final = final
        self._lists = any(combine is one for one in _FOLDING)  # it may have no hash
        self._collects = combine is None or any(combine is one for one in _COLLECTING)
        self._parts: list[Any] = [] if init is NOTHING else [init]
        self._combined = False  # whether the first of the parts is what `combine` returned
        self._early: dict[int, Any] = {}
        self._next = 0

    def __repr__(self) -> str:
        return f"<Combiner {self._combine!r}, {self.waiting} results wait for earlier ones>"

    @property
    def waiting(self) -> int:
        """How many results wait for those before them."""
        return len(self._early)

    def add(self, i: int, value: Any) -> None:
        """Take the result of iteration `i`, from 0; `NOTHING` if it is left out.

        Raises
        ------
        BaseException
            Whatever `combine` raises.
        """
        if not self._inorder:
            if value is not NOTHING:
                self._take(value)
            return
        self._early[i] = value
        while self._next in self._early:
            value = self._early.pop(self._next)
            self._next += 1
            if value is not NOTHING:
                self._take(value)

    def _take(self, value: Any) -> None:
        self._parts.append(value)
        if len(self._parts) >= self._most and not self._collects:
            self._fold()

    def _fold(self) -> None:
        parts, self._parts = self._parts, []
        value = self._combine(parts) if self._lists else self._combine(*parts)
        self._parts.append(value)
        self._combined = True

    def value(self) -> Any:
        """Return the value, once all results were added: what `final` makes of it.

        It is [] if there was none at all; `final` is called in any case, as by R's foreach.
        """
        found = self._combine_rest() if self._parts else []
        return found if self._final is None else self._final(found)

    def _combine_rest(self) -> Any:
        if self._collects:
            return self._combine(self._parts)
        # One result alone is the value. But any([3]) is True, and sum of one array its rows'.
        if len(self._parts) > 1 or (self._lists and not self._combined):
            self._fold()
        (found,) = self._parts
        return found
