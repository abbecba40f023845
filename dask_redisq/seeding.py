"""Random numbers that do not depend on where a task runs, nor on what ran there before. No I/O.

Task or iteration i of a job with a seed draws from the stream that NumPy calls
``SeedSequence(seed, spawn_key=(i,))``: equal for any number of workers and any chunk size, and
independent of those of its neighbours. doRedis has ``set.seed(i)``, which ignores the user's seed.

Python and NumPy have the same generator, and begin it alike: one state for both would give the same
numbers twice to a task that draws from both. So NumPy gets the first words of that stream, and
Python those behind.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["check_seed", "restored", "seed_words", "seeded"]

#: 32-bit words for each generator's state: as many as a SeedSequence has entropy to give.
WORDS = 8
_POOL, _MASK = 4, 0xFFFFFFFF


def check_seed(seed: Any, whose: str = "") -> int:
    """Return a seed; anything but a whole number from 0 on is a ValueError."""
    try:
        number = -1 if isinstance(seed, bool) else seed.__index__()
    except AttributeError:
        number = -1
    if number < 0:
        raise ValueError(f"the seed{whose} is a whole number from 0 on, not {seed!r}")
    return int(number)


@contextmanager
def seeded(seed: int, number: int) -> Iterator[None]:
    """Have random numbers begin anew, Python's own, and NumPy's if it is installed; then go on.

    Did they not go on, the tasks that follow in this slot would draw the same in each run.
    """
    with restored():
        words = seed_words(seed, number)
        random.seed(sum(word << 32 * i for i, word in enumerate(words[WORDS:])))
        numpy = _numpy()
        if numpy is not None:
            numpy.random.seed(words[:WORDS])
        yield


@contextmanager
def restored() -> Iterator[None]:
    """Have random numbers go on, after the block, as if nobody had drawn or seeded in it."""
    numpy = _numpy()
    before = random.getstate(), numpy.random.get_state() if numpy is not None else None
    try:
        yield
    finally:
        random.setstate(before[0])
        if numpy is not None:
            numpy.random.set_state(before[1])


@cache
def _numpy() -> Any:
    """Return NumPy if it is installed; also where nothing imported it: the task may."""
    try:
        import numpy as np
    except ImportError:
        return None
    return np


def seed_words(seed: int, number: int) -> list[int]:
    """Return ``SeedSequence(seed, spawn_key=(number,)).generate_state(16)``, also without NumPy.

    Workers with and without it are to draw the same.

    Parameters
    ----------
    seed, number : int
        From 0 on.

    Examples
    --------
    >>> seed_words(1, 0)[:2]
    [1641411168, 1963192212]
    """
    numpy = _numpy()
    if numpy is not None:
        sequence = numpy.random.SeedSequence(seed, spawn_key=(number,))
        return [int(word) for word in sequence.generate_state(2 * WORDS)]
    return _seed_words(seed, number)


def _seed_words(seed: int, number: int) -> list[int]:
    """Do it by hand: O'Neill's seed_seq_fe, as ``numpy.random.SeedSequence`` documents it."""
    entropy = _as_words(seed)
    # A spawn key stands behind a full pool, so that it is not taken for entropy.
    entropy += [0] * (_POOL - len(entropy)) + _as_words(number)
    factor = 0x43B0D7E5

    def hashed(word: int) -> int:
        nonlocal factor
        word ^= factor
        factor = factor * 0x931E8875 & _MASK
        word = word * factor & _MASK
        return word ^ word >> 16

    def mixed(one: int, other: int) -> int:
        word = (one * 0xCA01F9DD - other * 0x4973F715) & _MASK
        return word ^ word >> 16

    pool = [hashed(word) for word in entropy[:_POOL]]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                pool[target] = mixed(pool[target], hashed(pool[source]))
    for word in entropy[_POOL:]:
        for target in range(_POOL):
            pool[target] = mixed(pool[target], hashed(word))
    factor, words = 0x8B51F9DD, []
    for i in range(2 * WORDS):
        word = pool[i % _POOL] ^ factor
        factor = factor * 0x58F38DED & _MASK
        word = word * factor & _MASK
        words.append(word ^ word >> 16)
    return words


def _as_words(number: int) -> list[int]:
    words = [number & _MASK]
    while number := number >> 32:
        words.append(number & _MASK)
    return words
