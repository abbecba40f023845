"""Random numbers of tasks and iterations, without a server."""

from __future__ import annotations

import random

import numpy as np
import pytest

from dask_redisq.seeding import _seed_words, check_seed, seed_words, seeded


@pytest.mark.parametrize("seed", [0, 1, 99, 2**32 - 1, 2**32, 2**130 + 7, 2**300])
@pytest.mark.parametrize("number", [0, 1, 12345, 2**32 + 1])
def test_a_worker_without_numpy_draws_the_same(seed: int, number: int) -> None:
    """By hand it is the very sequence of NumPy."""
    sequence = np.random.SeedSequence(seed, spawn_key=(number,))
    assert _seed_words(seed, number) == [int(w) for w in sequence.generate_state(16)]
    assert seed_words(seed, number) == _seed_words(seed, number)


def test_both_generators_begin_anew_and_go_on_after() -> None:
    """What comes after a task does not depend on its seed."""

    def draw() -> tuple[float, float]:
        return random.random(), float(np.random.rand())  # noqa: NPY002

    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    expected = draw()
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    drawn = []
    for number in (0, 1, 0):
        with seeded(5, number):
            drawn.append(draw())
    assert drawn[0] == drawn[2]
    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]
    assert draw() == expected


def test_the_two_generators_draw_different_numbers() -> None:
    """And NumPy those of the stream that is promised."""
    with seeded(1, 0):
        ours, theirs = random.random(), float(np.random.rand())  # noqa: NPY002
    assert ours != theirs
    words = np.random.SeedSequence(1, spawn_key=(0,)).generate_state(8)
    assert theirs == np.random.RandomState(words).rand()


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True, None])
def test_a_seed_is_a_whole_number(seed: object) -> None:
    """Anything else is refused before anything is sent."""
    with pytest.raises(ValueError, match="whole number from 0 on"):
        check_seed(seed)
    assert check_seed(np.int64(3)) == 3
