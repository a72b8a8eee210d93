"""Parts from attention: built pictures come apart as they were built, whatever the pixels show."""

import numpy as np
import pytest

from ditscope.analysis.parts import find_parts, object_of
from ditscope.core.sites import TokenGrid
from ditscope.errors import BadRequest
from tests.analysis import heads
from tests.analysis.constructed import with_maps

GRID = (8, 9)


def drawn(*boxes):
    """Numbers of parts (y, x): 0 where no box is, then the boxes in order."""
    part = np.zeros(GRID, int)
    for i, (top, left, bottom, right) in enumerate(boxes, 1):
        part[top:bottom, left:right] = i
    return part


def tied(part, near=5.0):
    """Attention within parts, more of it nearby, and a quarter everywhere."""
    inside = part.ravel()
    alike = (inside[:, None] == inside) * heads.local(GRID, near)
    return 0.75 * heads.normal(alike) + 0.25 * heads.even(GRID)


def run_of(folder, maps, **options):
    """A run whose head 0 shows the parts of each sample, and head 1 nothing."""

    def weights(step, branch, sample, layer):
        return np.stack([maps[sample], heads.nearly_even(GRID, seed=sample)])

    options = {"samples": len(maps), **options}
    return with_maps(folder, weights, grid=GRID, **options)


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


def test_the_object_is_found_in_each_picture(tmp_path):
    boxes = [(2, 2, 6, 6), (3, 4, 7, 8)]
    run = run_of(tmp_path / "run", [tied(drawn(box)) for box in boxes])
    for sample, box in enumerate(boxes):
        found = find_parts(run, sample)
        truth = drawn(box) == 1
        assert overlap(found["object"].values, truth) == 1
        score = found["score"].values
        assert score[truth].min() > score[~truth].max()
        assert found["eigenvalue"][0] == pytest.approx(1)
        assert found.attrs["steps"] == [1]  # noise 0.5; step 0 is noise alone


def test_parts_are_counted_and_numbered_by_size(tmp_path):
    part = drawn((0, 0, 3, 9), (4, 1, 7, 4), (4, 5, 7, 8))  # sky, two objects; the rest is ground
    run = run_of(tmp_path / "run", [tied(part)])
    found = find_parts(run)
    names, sizes = np.unique(found["part"], return_counts=True)
    assert names.tolist() == [0, 1, 2, 3] and sizes.tolist() == sorted(sizes, reverse=True)
    pairs = set(zip(found["part"].values.ravel().tolist(), part.ravel().tolist(), strict=True))
    assert len(pairs) == 4
    np.testing.assert_array_equal(found["object"], part >= 2)
    two = find_parts(run, count=2)
    assert set(np.unique(two["part"])) == {0, 1}
    assert two.attrs["cut"] < found.attrs["cut"]


def test_even_attention_has_one_part_and_no_object(tmp_path):
    even = np.stack([heads.even(GRID)])
    run = with_maps(tmp_path / "run", lambda *place: even, grid=GRID)
    found = find_parts(run)
    assert not found["part"].any() and not found["object"].any() and not found["score"].any()


@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (2, 5)])
def test_grids_without_an_inside(tmp_path, grid):
    run = with_maps(tmp_path / "run", lambda *p: heads.local(grid, 0.6)[None], grid=grid, steps=1)
    found = find_parts(run)
    assert found["part"].shape == grid
    assert found["object"].values.any() == (grid != (1, 1))


def test_chosen_layers_and_steps_are_looked_at(tmp_path):
    shown, other = tied(drawn((2, 2, 6, 6))), tied(drawn((1, 5, 5, 8)))

    def weights(step, branch, sample, layer):
        return (shown if (step, layer) == (0, 1) else other)[None]

    run = with_maps(tmp_path / "run", weights, grid=GRID, layers=2)
    found = find_parts(run, layers=[1], steps=[0])
    assert overlap(found["object"].values, drawn((2, 2, 6, 6)) == 1) == 1
    assert (found.attrs["layers"], found.attrs["steps"]) == ([1], [0])
    assert overlap(find_parts(run)["object"].values, drawn((1, 5, 5, 8)) == 1) == 1


def test_background_holds_more_of_the_edge():
    grid = TokenGrid(height=4, width=4)
    part = np.array([[0, 0, 0, 0], [0, 1, 1, 2], [0, 1, 1, 2], [0, 0, 2, 2]]).ravel()
    np.testing.assert_array_equal(object_of(part, grid), part == 1)
    halves = np.repeat([0, 1], 8)
    assert object_of(halves, grid).sum() == 8  # none is: the one that is so least


@pytest.mark.parametrize("count", [0, 73, -1])
def test_a_count_out_of_range_is_refused(tmp_path, count):
    run = run_of(tmp_path / "run", [tied(drawn((2, 2, 6, 6)))])
    with pytest.raises(BadRequest, match="1 to 72 parts"):
        find_parts(run, count=count)
