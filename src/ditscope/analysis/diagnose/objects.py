"""Attention on the object and within it, from stored maps: what the rules about objects measure.

All are logarithms of ratios, mean over heads, of the conditional branch; 0 is even attention.

* `lift`: what a patch of the object receives, against a patch of the background.
* `bond`: what one half of the object gives to a patch of the other half and back, against an even
  share. The halves lie on the two sides of the object's middle, across its longer side.
* `tilt`: what a patch of the object's left half receives, against one of its right half.

The object is that of `pictures.object_mask`.
"""

from __future__ import annotations

import numpy
import xarray
from numpy.typing import NDArray

from ditscope.analysis.map_measures import measured_patches, patch_maps
from ditscope.analysis.pictures import finished_picture, object_mask
from ditscope.analysis.recorded import map_steps
from ditscope.runs.reader import Run

MEASURES = ("lift", "bond", "tilt")
AXES = ("step", "sample", "layer")
LEAST_PATCHES = 2
"""Of a half, of an object and of its background: one patch is no part."""
LEAST_SHARE = 1e-9

Array = NDArray[numpy.floating]


def object_measures(run: Run) -> xarray.Dataset:
    """`lift`, `bond` and `tilt` at every stored map: (step, sample, layer) float64.

    NaN where there is no patch grid, or no object in the picture. Coordinate `noise_level`.

    Raises:
        BadRequest: the run stored no Q and K.
        BadRun: what is stored is damaged.
    """
    steps, sites = map_steps(run), run.manifest.sites
    samples = range(len(run.manifest.labels))
    shape = (len(steps), len(samples), len(sites))
    found = {name: numpy.full(shape, numpy.nan) for name in MEASURES}
    for site in sites:
        if site.grid is None:
            continue
        queries = measured_patches(site.grid)
        for sample in samples:
            mask = object_mask(finished_picture(run, sample)[0], site.grid)
            for place, step in enumerate(steps):
                maps = patch_maps(run, site.index, step, queries, sample, "cond")
                for name, value in measures(maps, queries, mask).items():
                    found[name][place, sample, site.index] = value
    return xarray.Dataset(
        {name: (AXES, values) for name, values in found.items()},
        coords={
            "step": steps,
            "noise_level": ("step", [run.steps[step].noise_level for step in steps]),
            "sample": list(samples),
            "layer": [site.index for site in sites],
        },
    )


def measures(
    maps: Array, queries: NDArray[numpy.intp], mask: NDArray[numpy.bool_]
) -> dict[str, float]:
    """The measures of one layer.

    Args:
        maps: (head, query, patch), rows sum to 1.
        queries: number of each query patch, in reading order.
        mask: (y, x), true on the object.
    """
    inside = mask.ravel()
    if min(inside.sum(), (~inside).sum()) < LEAST_PATCHES:
        return {}
    received = maps.mean(1)  # (head, patch)
    left, right = halves(mask, across_width=True)
    one, other = halves(mask)
    found = {"lift": _log_ratio(received[:, inside], received[:, ~inside])}
    if min(left.sum(), right.sum()) >= LEAST_PATCHES:
        found["tilt"] = _log_ratio(received[:, left], received[:, right])
    asks, is_asked = one[queries], other[queries]
    if min(one.sum(), other.sum()) >= LEAST_PATCHES and asks.any() and is_asked.any():
        to_other = maps[:, asks][..., other].mean((1, 2))
        back = maps[:, is_asked][..., one].mean((1, 2))
        even = 1 / maps.shape[-1]
        found["bond"] = float(
            numpy.log(numpy.maximum((to_other + back) / 2, LEAST_SHARE) / even).mean()
        )
    return found


def halves(
    mask: NDArray[numpy.bool_], *, across_width: bool | None = None
) -> tuple[NDArray[numpy.bool_], NDArray[numpy.bool_]]:
    """The object's patches on the two sides of its middle, each (patch,); on it they are in none.

    `across_width`: the left and the right half; False: the upper and the lower one; None: cut
    across the longer side.
    """
    rows, columns = numpy.nonzero(mask)
    if across_width is None:
        across_width = bool(numpy.ptp(columns) >= numpy.ptp(rows))
    place = numpy.indices(mask.shape)[1 if across_width else 0]
    found = columns if across_width else rows
    middle = (found.min() + found.max()) / 2
    return (mask & (place < middle)).ravel(), (mask & (place > middle)).ravel()


def _log_ratio(one: Array, other: Array) -> float:
    """Log of mean over mean (head, patch), mean over heads."""
    least = numpy.maximum(one.mean(-1), LEAST_SHARE), numpy.maximum(other.mean(-1), LEAST_SHARE)
    return float(numpy.log(least[0] / least[1]).mean())
