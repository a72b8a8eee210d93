"""Continuity: ties by definition, breaks where they were built, the way that leads around them."""

import numpy as np
import pytest

from ditscope.analysis.continuity import continuity_along, continuity_between
from ditscope.analysis.stored_maps import stored_maps
from ditscope.analysis.ties import lift, ties
from ditscope.errors import BadRequest
from tests.analysis import heads
from tests.analysis.constructed import with_maps

GRID = (7, 9)


def broken(column=4, rows=slice(0, 5)):
    """Neighbours look at each other, but never across an upright wall after `column`."""
    wall = np.zeros(GRID, bool)
    wall[rows] = True
    left = np.arange(GRID[0] * GRID[1]) % GRID[1] <= column
    crosses = (left[:, None] != left) & (wall.ravel()[:, None] | wall.ravel())
    return heads.normal(np.where(crosses, 1e-5, heads.local(GRID, 0.8)) + 1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("continuity") / "run"
    return with_maps(folder, lambda *place: broken()[None], grid=GRID, layers=2)


def test_ties_and_their_lift_are_their_definitions(run):
    maps = stored_maps(run)
    found, p = ties(maps, 0), broken()
    np.testing.assert_allclose(found, (p + p.T) / 2, atol=1e-6)
    lifted = lift(found, maps.grid)
    cells = [(y, x) for y in range(7) for x in range(9)]
    for i, j in ((0, 1), (12, 13), (4, 40), (62, 0)):
        apart = tuple(np.subtract(cells[j], cells[i]))
        same = [
            found[a, b]
            for a in range(63)
            for b in range(63)
            if tuple(np.subtract(cells[b], cells[a])) == apart
        ]
        assert lifted[i, j] == pytest.approx(found[i, j] / np.mean(same), rel=1e-6)


def test_a_break_along_a_curve_is_the_weakest_link(run):
    found = continuity_along(run, [(2, 1), (2, 7)])
    assert found.sizes["link"] == 6
    weakest = found.isel(link=found.attrs["weakest"])
    assert [int(weakest[name]) for name in ("y0", "x0", "y1", "x1")] == [2, 4, 2, 5]
    assert float(weakest["strength"]) < 0.01 and float(weakest["rank"]) < 0.1
    whole = continuity_along(run, [(6, 1), (6, 7)])
    assert float(whole["strength"].min()) > 0.9


def test_a_curve_turns_at_its_corners(run):
    found = continuity_along(run, [(0, 0), (2, 2), (2, 4)])
    places = [(int(y), int(x)) for y, x in zip(found["y1"], found["x1"], strict=True)]
    assert places == [(1, 1), (2, 2), (2, 3), (2, 4)]


def test_the_best_way_leads_around_the_wall(run):
    found = continuity_between(run, (0, 0, 2, 2), (0, 7, 2, 9))
    crossing = [
        int(y)
        for y, x0, x1 in zip(found["y0"], found["x0"], found["x1"], strict=True)
        if {int(x0), int(x1)} == {4, 5}
    ]
    assert crossing and min(crossing) >= 5
    assert found.attrs["detour"] > 1.3 and float(found["strength"].min()) > 0.5
    free = continuity_between(run, (5, 0, 7, 2), (5, 7, 7, 9))
    assert free.attrs["detour"] < 1.1 and free.sizes["link"] == 6


def test_resistance_adds_up_over_the_links(run):
    found = continuity_between(run, (0, 0, 1, 1), (0, 8, 1, 9))
    length = np.hypot(found["y1"] - found["y0"], found["x1"] - found["x0"])
    assert found.attrs["resistance"] == pytest.approx(float((length / found["strength"]).sum()))


@pytest.mark.parametrize("curve", [[(0, 0)], [(0, 0), (0, 9)], [(0, 0), 3], [], [(1, 1), (1, 1)]])
def test_what_is_no_curve(run, curve):
    with pytest.raises(BadRequest, match="at least two"):
        continuity_along(run, curve)


def test_regions_that_touch(run):
    with pytest.raises(BadRequest, match="both regions hold the same patch"):
        continuity_between(run, (0, 0, 2, 2), (1, 1, 3, 3))
