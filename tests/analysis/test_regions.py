"""Regions: boxes and masks, and what is none."""

import numpy as np
import pytest
import xarray

from ditscope.analysis.regions import region_mask, region_masks
from ditscope.core.sites import TokenGrid
from ditscope.errors import BadRequest

GRID = TokenGrid(height=4, width=5)


def test_a_box_excludes_its_ends():
    mask = region_mask((1, 2, 3, 5), GRID)
    assert mask.sum() == 6 and mask[1:3, 2:5].all()


def test_masks_are_taken_as_they_are():
    mask = np.random.default_rng(0).random((4, 5)) > 0.5
    np.testing.assert_array_equal(region_mask(xarray.DataArray(mask, dims=("y", "x")), GRID), mask)


def test_the_rest_is_what_no_region_covers():
    masks = region_masks({"top": (0, 0, 2, 5), "left": (0, 0, 4, 2)}, GRID)
    assert list(masks) == ["top", "left", "rest"]
    np.testing.assert_array_equal(masks["rest"], ~(masks["top"] | masks["left"]))
    assert list(region_masks({"all": (0, 0, 4, 5)}, GRID)) == ["all"]


@pytest.mark.parametrize(
    "region",
    [
        (0, 0, 5, 5),
        (2, 2, 2, 4),
        (0, 0, 4),
        (0.5, 0, 4, 5),
        "box",
        np.zeros((4, 5), bool),
        np.ones((5, 4), bool),
        np.ones((4, 5)),
    ],
)
def test_what_is_no_region_is_refused_by_name(region):
    with pytest.raises(BadRequest, match="head"):
        region_masks({"head": region}, GRID)


@pytest.mark.parametrize("regions", [{}, {"rest": (0, 0, 1, 1)}])
def test_names_that_cannot_be(regions):
    with pytest.raises(BadRequest, match="regions"):
        region_masks(regions, GRID)
