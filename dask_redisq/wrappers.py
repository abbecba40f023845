"""What an executor sends in place of functions: an initializer, and calls in chunks. No I/O."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Chunk", "Initializer", "chunks_of"]


class Initializer:
    """Calls a function with its arguments."""

    def __init__(self, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.fn = fn
        self.args = args

    def __call__(self) -> object:
        """Do so."""
        return self.fn(*self.args)


class Chunk:
    """Calls a function for each of some items, whose arguments come one after another."""

    def __init__(self, fn: Callable[..., Any], width: int) -> None:
        self.func = fn  # as a partial has it: see Setup.show
        self.width = width

    def __call__(self, *args: Any) -> list[Any]:
        """Do so, for the arguments of all of them."""
        return [self.func(*args[i : i + self.width]) for i in range(0, len(args), self.width)]


def chunks_of(items: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[Any]]:
    """Yield the arguments of up to `size` calls at a time, one after another."""
    while chunk := list(itertools.chain.from_iterable(itertools.islice(items, size))):
        yield chunk
