"""What every patch receives: where the attention of the whole picture goes.

In even shares: 1 is what a patch gets when all get the same, so maps of any grid compare.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy
import xarray
from numpy.typing import NDArray

from ditscope.analysis.place import checked_index
from ditscope.analysis.stored_maps import stored_maps
from ditscope.core.axes import Branch
from ditscope.runs.reader import Run

Array = NDArray[numpy.float64]


def received_maps(
    run: Run,
    *,
    layers: Iterable[int] | None = None,
    head: int | None = None,
    steps: Iterable[int] | None = None,
    samples: Iterable[int] | None = None,
    branch: Branch = "cond",
) -> xarray.DataArray:
    """Attention that each patch receives from all patches, mean over heads and steps.

    Args:
        run: a run with stored Q and K.
        layers: these; None: all that have the first patch grid.
        head: of one head; None: the mean over the heads of each layer.
        steps: these; None: all whose Q and K are stored.
        samples: these; None: all.
        branch: "cond" or "uncond".

    Returns:
        (sample, layer, y, x) in even shares: N sum_i p_ij / N, which is 1 on average.

    Raises:
        BadRequest: no Q and K stored; a coordinate that is not in the run.
    """
    maps = stored_maps(run, layers=layers, steps=steps, samples=samples, branch=branch)
    total = numpy.zeros((len(maps.samples), len(maps.layers), maps.grid.count))
    for l, layer in enumerate(maps.layers):
        heads = run.manifest.sites[layer].heads
        which = slice(None) if head is None else [checked_index("head", head, heads)]
        for step in maps.steps:
            for i, sample in enumerate(maps.samples):
                for _, rows in maps.rows(sample, step, layer):
                    total[i, l] += rows[which].mean(0).sum(0, dtype=float)
    total /= len(maps.steps)
    return xarray.DataArray(
        total.reshape(*total.shape[:2], maps.grid.height, maps.grid.width),
        {"sample": list(maps.samples), "layer": list(maps.layers)},
        ("sample", "layer", "y", "x"),
        attrs={"steps": list(maps.steps), "branch": branch, "unit": "even shares"},
    )


def on_grid(values: Array, height: int, width: int) -> Array:
    """Maps (..., y, x) of a density on another grid over the same picture: means by area."""
    rows, columns = _overlaps(values.shape[-2], height), _overlaps(values.shape[-1], width)
    return rows @ values @ columns.T


def _overlaps(before: int, after: int) -> Array:
    """Share of each new cell that each old cell covers: (after, before), rows sum to 1."""
    old, new = numpy.arange(before + 1) / before, numpy.arange(after + 1) / after
    low = numpy.maximum(new[:-1, None], old[:-1])
    high = numpy.minimum(new[1:, None], old[1:])
    return numpy.maximum(high - low, 0) * after
