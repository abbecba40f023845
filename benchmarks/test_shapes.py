"""The graphs that are measured are those that their descriptions promise."""

import dask.threaded
import pytest
from dask.local import get_sync

from benchmarks.shapes import BARRED, SHAPES, Shape


@pytest.mark.parametrize(
    ("name", "tasks", "edges"),
    [
        ("bag", 10_000, 0),
        ("merge", 10_001, 10_000),
        ("tree", 2**14 - 1, 2**14 - 2),
        ("chain", 1_000, 999),
        ("tree-15", 32_767, 32_766),
        ("sequential", 100, 99),
        ("neighbour", 999 + 998, 2 * 998),
        ("full-square", 2_000, 100 * 100 * 19),
        ("full-wide", 1_000, 500 * 500),
        ("full-long", 10_000, 10 * 10 * 999),
        ("full-line", 50_000, 49_999),
        ("groups", 1_200, 2_000),
        ("earlier", 200, 195 * 5),
        ("plain", 380, 0),
        ("fork", 300, 200),
        ("bigmerge", 321, 320),
        ("splitters", 255, 254),
        ("conflux", 255, 254),
        ("maps", 1_100, 1_000),
        ("grid", 361, 2 * 19 * 18),
        ("fern", 401, 400),
        ("tb-trivial", 1_024, 0),
        ("tb-no_comm", 1_024, 16 * 63),
        ("tb-stencil_1d", 1_024, (16 * 3 - 2) * 63),
        ("tb-nearest", 1_024, (16 * 5 - 6) * 63),
        ("tb-all_to_all", 1_024, 16 * 16 * 63),
        ("tb-tree_out", 1 + 2 + 4 + 8 + 16 * 60, 2 + 4 + 8 + 16 * 60),
    ],
)
def test_shapes_have_their_published_size(name: str, tasks: int, edges: int) -> None:
    """Each graph has, after culling, the tasks and edges that its source gives."""
    assert SHAPES[name].graph(quick=False).size() == (tasks, edges)


def test_a_random_graph_loses_what_feeds_nobody() -> None:
    """Of a layer of the random graph about e^-4 is culled; each task has four inputs."""
    tasks, edges = SHAPES["random"].graph(quick=False).size()
    assert 9_700 < tasks < 10_000
    assert edges < 4 * 4 * 2_000


@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.name)
def test_a_shape_is_the_same_each_time(shape: Shape) -> None:
    """Two builds give one result, also where the tasks run in another order."""
    first, second = shape.graph(quick=True), shape.graph(quick=True)
    assert first.dsk is not second.dsk
    expected = get_sync(first.dsk, first.keys)
    assert list(dask.threaded.get(second.dsk, second.keys)) == list(expected)


def test_five_shapes_have_a_bar() -> None:
    """The shapes whose overhead is bounded are those that are known as such."""
    assert BARRED == ("bag", "merge", "tree", "chain", "random")
