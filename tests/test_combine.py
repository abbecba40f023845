"""How results become the value of a loop, without a server: section 2b of doRedis's features."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from dask_redisq.combine import NOTHING, Combiner


def combined(values: dict[int, Any], combine: Callable[..., Any] | None = None, **kw: Any) -> Any:
    """Return the value of results that arrive in the order of `values`."""
    combiner = Combiner(combine, **kw)
    for i, value in values.items():
        combiner.add(i, value)
    return combiner.value()


LATE = {2: "c", 0: "a", 3: "d", 1: "b"}


def test_results_are_a_list_in_order_whatever_comes_first() -> None:
    """R's default."""
    assert combined(LATE) == ["a", "b", "c", "d"]


def test_without_order_results_are_taken_as_they_come() -> None:
    """As `.inorder=FALSE`."""
    assert combined(LATE, inorder=False) == ["c", "a", "d", "b"]
    assert combined(LATE, operator.add, inorder=False) == "cadb"


def test_a_function_of_two_is_called_with_what_was_combined_first() -> None:
    """From the left, whatever arrives when."""
    assert combined(LATE, lambda a, b: f"({a}{b})") == "(((ab)c)d)"


def test_a_function_of_many_gets_no_more_than_maxcombine() -> None:
    """What was combined before is one of them; init comes first."""
    seen: list[int] = []

    def joined(*parts: str) -> str:
        seen.append(len(parts))
        return "".join(parts)

    values = {i: str(i) for i in range(10)}
    assert combined(values, joined, multicombine=True, maxcombine=4, init="x") == "x0123456789"
    assert max(seen) == 4
    assert sum(seen) == 11 + len(seen) - 1


def test_what_combines_need_not_have_a_hash() -> None:
    """A dataclass that can be called has none."""

    @dataclass
    class Add:
        more: int

        def __call__(self, a: int, b: int) -> int:
            return a + b + self.more

    assert combined({0: 1, 1: 2, 2: 3}, Add(10)) == 26


@pytest.mark.parametrize("multicombine", [False, True])
@pytest.mark.parametrize(
    ("function", "value"),
    [(sum, 10), (max, 4), (min, 1), (all, True), (any, True), (tuple, (1, 2, 3, 4))],
)
def test_builtins_that_take_an_iterable_are_given_a_list(
    function: Callable[..., Any], value: Any, multicombine: bool
) -> None:
    """In both modes."""
    results = {i: i + 1 for i in range(4)}
    found = combined(results, function, multicombine=multicombine)
    assert found == value
    assert type(found) is type(value)


def test_containers_are_made_of_all_results_at_once() -> None:
    """A set of sets there is not."""
    assert combined({0: 1, 1: 2, 2: 1}, set) == {1, 2}
    assert combined({0: [1], 1: [2]}, list) == [[1], [2]]


def test_one_result_alone_is_the_value_unless_the_function_makes_another_of_it() -> None:
    """As in R; but any([3]) is True."""
    assert combined({0: 3}, operator.add) == 3
    assert combined({0: 3}, any) is True
    assert combined({0: 3}, operator.add, init=4) == 7


def test_none_and_false_are_results() -> None:
    """Only NOTHING is left out."""
    assert combined({0: None, 1: NOTHING, 2: 0, 3: False}) == [None, 0, False]
    assert combined({0: 0, 1: 0}, operator.add, init=0) == 0


def test_no_result_is_an_empty_list_or_what_was_given_first() -> None:
    """R's foreach over nothing."""
    assert combined({}, sum) == []
    assert combined({}) == []
    assert combined({0: NOTHING}, sum, init=3) == 3


def test_final_is_called_once_with_the_value() -> None:
    """As `.final`."""
    assert combined(LATE, operator.add, final=str.upper) == "ABCD"
    assert combined(LATE, final=len) == 4
    assert combined({}, sum, final=len) == 0  # R's foreach calls it, too
    assert combined({}, final=len) == 0


def test_a_failing_combine_raises() -> None:
    """DoRedis prints it, and returns NULL."""
    with pytest.raises(ZeroDivisionError):
        combined({0: 1, 1: 0}, operator.truediv)


def test_wrong_arguments_are_told() -> None:
    """Before anything is sent."""
    with pytest.raises(ValueError, match="there is no combine"):
        Combiner(init=1)
    with pytest.raises(ValueError, match="at least 2"):
        Combiner(sum, maxcombine=1)
    with pytest.raises(TypeError, match="maxcombine is a number"):
        Combiner(sum, maxcombine="9")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="combine is a function"):
        Combiner("sum")  # type: ignore[arg-type]
