"""How much attention flows from one region of the picture to another, over the steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy
import xarray

from ditscope.analysis.regions import Region, region_masks
from ditscope.analysis.stored_maps import stored_maps
from ditscope.core.axes import Branch
from ditscope.runs.reader import Run

AXES = ("step", "sample", "layer", "head", "source", "target")


def mass_flow(
    run: Run,
    regions: Mapping[str, Region],
    *,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    samples: Iterable[int] | None = None,
    branch: Branch = "cond",
) -> xarray.Dataset:
    """Attention from each region to each other, for every stored map.

    Args:
        run: a run with stored Q and K.
        regions: name to box or mask, see `regions.Region`; they may overlap. What they leave
            uncovered is the region "rest".
        layers: these; None: all that have the first patch grid.
        steps: these; None: all whose Q and K are stored.
        samples: these; None: all.
        branch: "cond" or "uncond".

    Returns:
        (step, sample, layer, head, source, target): `mass`, the mean over the source's patches of
        their attention that lies in the target, 0 to 1; of regions that do not overlap a source's
        add up to 1. `lift`: `mass` over the target's share of the patches, 1 for even attention.

    Raises:
        BadRequest: no Q and K stored; a region, layer or step that is not there.
    """
    maps = stored_maps(run, layers=layers, steps=steps, samples=samples, branch=branch)
    masks = region_masks(regions, maps.grid)
    inside = numpy.stack([mask.ravel() for mask in masks.values()])  # (region, patch)
    sizes = inside.sum(1)
    names = list(masks)
    coords = {**maps.coords(), "source": names, "target": names}
    mass = numpy.full((*maps.shape, len(names), len(names)), numpy.nan)
    for where, sample, step, layer in maps.places():
        total = numpy.zeros((run.manifest.sites[layer].heads, len(names), len(names)))
        for queries, rows in maps.rows(sample, step, layer):
            received = rows @ inside.T.astype(rows.dtype)  # (head, query, target)
            total += numpy.einsum("hqt,sq->hst", received, inside[:, queries])
        mass[(*where, slice(len(total)))] = total / sizes[:, None]
    found = xarray.Dataset({"mass": (AXES, mass)}, coords)
    share = xarray.DataArray(sizes / maps.grid.count, dims="target")
    return found.assign(lift=found["mass"] / share).assign_attrs(branch=branch)
