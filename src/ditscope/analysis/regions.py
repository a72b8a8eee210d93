"""Named parts of the patch grid: boxes, masks, or parts that `parts.find_parts` found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy
import xarray
from numpy.typing import ArrayLike, NDArray

from ditscope.core.integers import as_index
from ditscope.core.sites import TokenGrid
from ditscope.errors import BadRequest, foreign

Region = Sequence[int] | ArrayLike | xarray.DataArray
"""A box (top, left, bottom, right) in patches, the last two exclusive; or a mask (y, x) of bool."""

REST = "rest"
"""The name of what no named region covers."""


def region_mask(region: Region, grid: TokenGrid, field: str = "region") -> NDArray[numpy.bool_]:
    """A region as booleans (grid height, grid width).

    Raises:
        BadRequest: neither a box within the grid nor a mask of its shape, or no patch at all.
    """
    values = numpy.asarray(region)
    shape = (grid.height, grid.width)
    if values.dtype == bool and values.shape == shape:
        mask = values
    else:
        mask = numpy.zeros(shape, bool)
        top, left, bottom, right = _box(values, grid, field)
        mask[top:bottom, left:right] = True
    if not mask.any():
        raise BadRequest("a region without a patch", field=field)
    return mask


def region_masks(
    regions: Mapping[str, Region], grid: TokenGrid, *, rest: bool = True
) -> dict[str, NDArray[numpy.bool_]]:
    """Every named region as booleans, and `REST`: what none of them covers, if anything.

    Raises:
        BadRequest: no region, one that is none (see `region_mask`), or one called "rest".
    """
    if not regions:
        raise BadRequest("no region is named", field="regions", expected='{"head": (2, 3, 6, 9)}')
    if rest and REST in regions:
        raise BadRequest(f"{REST!r} is what the other regions leave", field="regions")
    masks = {
        name: region_mask(region, grid, f"regions: {foreign(name)}")
        for name, region in regions.items()
    }
    left = ~numpy.logical_or.reduce(list(masks.values()))
    return masks | ({REST: left} if rest and left.any() else {})


def _box(values: NDArray, grid: TokenGrid, field: str) -> tuple[int, int, int, int]:
    height, width = grid.height, grid.width
    try:
        top, left, bottom, right = (as_index(value) for value in values.tolist())
    except (TypeError, ValueError):
        top = left = bottom = right = -1
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        found = f"an array of shape {values.shape}" if values.ndim > 1 else repr(values.tolist())
        raise BadRequest(
            f"found {foreign(found)}",
            field=field,
            expected=f"(top, left, bottom, right) within (0, 0, {height}, {width}), or a mask of "
            f"bool, {height} x {width}",
        )
    return top, left, bottom, right
