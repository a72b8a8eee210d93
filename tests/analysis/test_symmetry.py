"""Symmetry of attention: built maps, and the definition written out patch by patch."""

import numpy as np
import pytest

from ditscope.analysis import stored_maps as stored
from ditscope.analysis.symmetry import mirror_image, symmetry
from ditscope.core.sites import TokenGrid
from ditscope.errors import BadRequest
from tests.analysis import heads
from tests.analysis.constructed import with_maps

GRID = (4, 6)


def run_of(folder, *maps, **options):
    return with_maps(folder, lambda *place: np.stack(maps), grid=GRID, steps=1, **options)


def lopsided():
    """Everyone looks at one patch in the left half."""
    return heads.normal(np.full((24, 24), 0.01) + np.eye(24)[8])


def test_maps_that_follow_position_are_symmetric(tmp_path):
    found = symmetry(run_of(tmp_path / "run", heads.local(GRID), heads.even(GRID), lopsided()))
    found = found.sel(step=0, sample=0, layer=0)
    np.testing.assert_allclose(found["mirrored"][:2], 1, atol=1e-5)
    np.testing.assert_allclose(found["balance"][:2], 0, atol=1e-5)
    assert found["mirrored"][2] < 0.3 and found["balance"][2] < -0.8
    np.testing.assert_allclose(found["received_mirror"][1], 1, atol=1e-5)


@pytest.mark.parametrize("block", [2**23, 5 * 24])
@pytest.mark.parametrize(
    ("axis", "at", "region"),
    [
        ("vertical", None, None),
        ("vertical", 3, (1, 1, 3, 3)),
        ("horizontal", 1, None),
        ("horizontal", 1.5, (0, 0, 2, 2)),
    ],
)
def test_it_is_its_definition(tmp_path, monkeypatch, block, axis, at, region):
    monkeypatch.setattr(stored, "MAX_NUMBERS", block)
    maps = heads.far(GRID, seed=3)
    found = symmetry(run_of(tmp_path / "run", maps), region, axis=axis, at=at)
    centre = 2.5 if at is None else at

    def image(y, x):
        y, x = (y, 2 * centre - x) if axis == "vertical" else (2 * centre - y, x)
        return (int(y), int(x)) if 0 <= y < 4 and 0 <= x < 6 else None

    cells = [(y, x) for y in range(4) for x in range(6)]
    paired = {cell: image(*cell) for cell in cells if image(*cell)}
    if region is None:
        side = [c for c in paired if (c[1] if axis == "vertical" else c[0]) < centre]
    else:
        top, left, bottom, right = region
        side = [c for c in cells if top <= c[0] < bottom and left <= c[1] < right]
    p = maps.reshape(*GRID, *GRID)
    common = []
    for q in side:
        here = np.array([p[q][k] for k in paired])
        there = np.array([p[paired[q]][paired[k]] for k in paired])
        common.append(np.minimum(here / here.sum(), there / there.sum()).sum())
    received = p.sum((0, 1))
    near = np.mean([received[c] for c in side])
    far = np.mean([received[paired[c]] for c in side])
    one = found.isel(step=0, sample=0, layer=0, head=0)
    assert float(one["mirrored"]) == pytest.approx(np.mean(common), abs=1e-5)
    assert float(one["balance"]) == pytest.approx((far - near) / (far + near), abs=1e-5)
    assert float(one["received_region"]) == pytest.approx(near, abs=1e-4)
    assert {tuple(c) for c in np.argwhere(found["mask_mirror"].values)} == {paired[c] for c in side}


def test_mirroring_twice_is_nothing():
    grid = TokenGrid(height=5, width=4)
    _, image = mirror_image(grid, "horizontal", None)
    np.testing.assert_array_equal(image[image], np.arange(20))
    at, image = mirror_image(grid, "vertical", 0.5)
    assert at == 0.5 and (image >= 0).sum() == 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"axis": "diagonal"}, 'expected "vertical" or "horizontal"'),
        ({"at": 2.25}, "a multiple of a half from 0 to 5"),
        ({"at": 6}, "a multiple of a half from 0 to 5"),
        ({"at": 0}, "no patch lies on one side"),
        ({"at": 1, "region": (0, 3, 2, 6)}, "its mirror image about the vertical axis at 1"),
    ],
)
def test_axes_that_cannot_be(tmp_path, options, words):
    with pytest.raises(BadRequest) as caught:
        symmetry(run_of(tmp_path / "run", heads.local(GRID)), **options)
    assert words in str(caught.value)
