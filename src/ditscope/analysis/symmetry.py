"""Whether attention is the same on both sides of an axis: are both towers of a bridge seen alike?

For every map two questions:

* `mirrored`: does a patch look where the mirror image of it looks in the mirror? Share of attention
  that the map has in common with its mirror image, 0 to 1.
* `balance`: do both sides receive alike? (far - near) / (far + near) of what patches of the region
  and of its mirror image receive on average, -1 to 1; 0 if alike.

A map that only follows position is symmetric whatever the picture shows, so `mirrored` is worth as
much as its distance from that of another picture or head.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy
import xarray
from numpy.typing import NDArray

from ditscope.analysis.regions import Region, region_mask
from ditscope.analysis.stored_maps import StoredMaps, stored_maps
from ditscope.core.axes import Branch
from ditscope.core.sites import TokenGrid
from ditscope.errors import BadRequest, foreign
from ditscope.runs.reader import Run

Axis = Literal["vertical", "horizontal"]
AXES = ("step", "sample", "layer", "head")


def symmetry(
    run: Run,
    region: Region | None = None,
    *,
    axis: Axis = "vertical",
    at: float | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    samples: Iterable[int] | None = None,
    branch: Branch = "cond",
) -> xarray.Dataset:
    """Symmetry of every stored map about an axis through the picture.

    Args:
        run: a run with stored Q and K.
        region: one of the two things that are alike, a box or mask; the other is its mirror image.
            None: all patches left of a vertical axis, above a horizontal one.
        axis: "vertical" (left and right are compared) or "horizontal".
        at: column (or row) of the axis, in halves of a patch: 7.5 lies between columns 7 and 8.
            None: the middle. Patches whose mirror image is off the grid are left out.
        layers: these; None: all that have the first patch grid.
        steps: these; None: all whose Q and K are stored.
        samples: these; None: all.
        branch: "cond" or "uncond".

    Returns:
        (step, sample, layer, head): `mirrored` and `balance` as above; `received_region` and
        `received_mirror`, what a patch of either side receives in even shares; NaN where there is
        nothing to compare. `mask_region` and `mask_mirror` (y, x): the two sides.

    Raises:
        BadRequest: no Q and K stored; an axis off the grid; a region whose mirror image is.
    """
    maps = stored_maps(run, layers=layers, steps=steps, samples=samples, branch=branch)
    at, mirror = mirror_image(maps.grid, axis, at)
    inside = _side(region, maps.grid, mirror, axis, at)
    found = {
        name: numpy.full(maps.shape, numpy.nan)
        for name in ("mirrored", "balance", "received_region", "received_mirror")
    }
    for where, sample, step, layer in maps.places():
        for name, values in _of_layer(maps, sample, step, layer, mirror, inside).items():
            found[name][(*where, slice(len(values)))] = values
    sides = {"region": inside, "mirror": mirror[inside]}
    return xarray.Dataset(
        {name: (AXES, values) for name, values in found.items()}
        | {f"mask_{name}": (("y", "x"), _mask(side, maps.grid)) for name, side in sides.items()},
        coords=maps.coords(),
        attrs={"branch": branch, "axis": axis, "at": at},
    )


def mirror_image(
    grid: TokenGrid, axis: Axis, at: float | None
) -> tuple[float, NDArray[numpy.intp]]:
    """Where the axis is, and for each patch (in reading order) its mirror image; -1 off the grid.

    Raises:
        BadRequest: another word than "vertical" and "horizontal", or an axis that is not on a
            half patch within the grid.
    """
    if axis not in ("vertical", "horizontal"):
        raise BadRequest(
            f"{foreign(repr(axis))}", field="axis", expected='"vertical" or "horizontal"'
        )
    size = grid.width if axis == "vertical" else grid.height
    middle = (size - 1) / 2 if at is None else at
    if not (-0.5 < middle < size - 0.5 and float(2 * middle).is_integer()):
        raise BadRequest(
            f"{foreign(repr(at))}",
            field="at",
            expected=f"a multiple of a half from 0 to {size - 1}",
        )
    y, x = numpy.divmod(numpy.arange(grid.count), grid.width)
    along = x if axis == "vertical" else y
    other = (2 * middle - along).astype(int)
    image = y * grid.width + other if axis == "vertical" else other * grid.width + x
    return middle, numpy.where((other >= 0) & (other < size), image, -1)


def _side(
    region: Region | None, grid: TokenGrid, mirror: NDArray[numpy.intp], axis: Axis, at: float
) -> NDArray[numpy.intp]:
    """Numbers of the patches of one of the sides that are compared."""
    y, x = numpy.divmod(numpy.arange(grid.count), grid.width)
    if region is None:
        side = (mirror >= 0) & ((x if axis == "vertical" else y) < at)
    else:
        side = region_mask(region, grid).ravel()
        if (mirror[side] < 0).any():
            raise BadRequest(
                f"its mirror image about the {axis} axis at {at:g} is not on the grid",
                field="region",
                expected="a region that lies as far from the axis as the picture reaches",
            )
    if not side.any():
        raise BadRequest("no patch lies on one side of the axis", field="at")
    return numpy.flatnonzero(side)


def _of_layer(
    maps: StoredMaps,
    sample: int,
    step: int,
    layer: int,
    mirror: NDArray[numpy.intp],
    inside: NDArray[numpy.intp],
) -> dict[str, NDArray[numpy.float64]]:
    """All numbers of one layer, a value per head."""
    received = numpy.zeros((maps.run.manifest.sites[layer].heads, maps.grid.count))
    for _, rows in maps.rows(sample, step, layer):
        received += rows.sum(1)
    near, far = (received[:, side].mean(1) for side in (inside, mirror[inside]))
    keys = numpy.flatnonzero(mirror >= 0)
    common, count = numpy.zeros(len(near)), numpy.zeros(len(near))
    pairs = zip(
        maps.rows(sample, step, layer, inside),
        maps.rows(sample, step, layer, mirror[inside]),
        strict=True,
    )
    for (_, here), (_, there) in pairs:
        here, there = here[:, :, keys], there[:, :, mirror[keys]]
        one, other = here.sum(-1), there.sum(-1)  # what lies on patches that have an image
        seen = (one > 0) & (other > 0)
        scale = numpy.where(seen, one, 1)[..., None], numpy.where(seen, other, 1)[..., None]
        common += (numpy.minimum(here / scale[0], there / scale[1]).sum(-1) * seen).sum(1)
        count += seen.sum(1)
    return {
        "mirrored": _ratio(common, count),
        "balance": _ratio(far - near, near + far),
        "received_region": near,
        "received_mirror": far,
    }


def _ratio(above: NDArray, below: NDArray) -> NDArray[numpy.float64]:
    return numpy.divide(above, below, out=numpy.full(above.shape, numpy.nan), where=below > 0)


def _mask(side: NDArray[numpy.intp], grid: TokenGrid) -> NDArray[numpy.bool_]:
    mask = numpy.zeros(grid.count, bool)
    mask[side] = True
    return mask.reshape(grid.height, grid.width)
