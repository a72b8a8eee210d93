"""What attention maps look like, head by head: measured from the stored Q and K.

Each number is taken over the query patches of a map, after its rows are scaled to sum to 1 over the
patches (tokens that are no patches are left out). All lie between 0 and 1 except `gain`.

* `self`: share of all attention that patches give to themselves.
* `near`: share within `NEAR` patches, themselves included.
* `row`, `column`: of what goes to other patches, the share that stays in the same grid row, column.
* `offset`: share that goes to the one displacement that gets most: a diagonal of the map as a
  matrix. `offset_y`, `offset_x` are that displacement, in patches.
* `position`: share that position alone explains: overlap of each row with the mean of all rows,
  moved to that patch. A map that is the same whatever the picture shows has 1.
* `gain`: how much more attention stays within the object, or within what is around it, than
  `position` explains; mean of the two, -1 to 1. The object is `pictures.object_mask`'s.
* `texture`: share of the spectral power of a row, without its mean, beyond a quarter of a cycle per
  patch. One bright patch has all frequencies alike; a smooth map has next to none.
* `kept`: overlap with the map at the stored step before. `branch_overlap`: with the other branch.

Overlap of two rows is the share of attention they have in common, sum_j min(p_j, q_j): 1 less the
total variation distance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from weakref import WeakKeyDictionary

import numpy
import xarray
from numpy.typing import NDArray

from ditscope.analysis.pictures import finished_picture, object_mask
from ditscope.analysis.recorded import chosen_layers, map_steps
from ditscope.core.axes import BRANCHES, Branch
from ditscope.core.sites import TokenGrid
from ditscope.runs.reader import Run

MAX_QUERIES = 128
"""Query patches that are measured; more patches than that are drawn from, evenly and fixed."""
NEAR = 1.5
FINE = 0.25
"""Spatial frequency, cycles per patch, from which a map counts as texture: half the highest."""
LEAST_SEEN = 0.25
"""A displacement counts if it stays on the grid for this share of the measured patches."""

MEASURES = (
    "self",
    "near",
    "row",
    "column",
    "offset",
    "offset_y",
    "offset_x",
    "position",
    "gain",
    "texture",
    "kept",
    "branch_overlap",
)
AXES = ("step", "branch", "sample", "layer", "head")

Array = NDArray[numpy.floating]

_measured: WeakKeyDictionary[Run, dict[tuple[int, ...], xarray.Dataset]] = WeakKeyDictionary()
"""What was measured of each open run, by `MAX_QUERIES` and layers: kinds of heads, claims and who
else asks for measures share it. A few megabytes of a large model; gone with the run."""


def map_measures(run: Run, *, layers: Iterable[int] | None = None) -> xarray.Dataset:
    """The measures above for every stored map: (step, branch, sample, layer, head) float32.

    `step` holds the steps whose Q and K are stored. NaN where there is nothing to measure: a layer
    without a patch grid, no earlier stored step, one branch only, or no object.
    Maps are measured once for as long as `run` is open; the next call returns a copy.

    Raises:
        BadRequest: the run stored no Q and K, or has no such layer.
        BadRun: what is stored is damaged.
    """
    chosen = range(len(run.manifest.sites)) if layers is None else chosen_layers(run, layers)
    known = _measured.setdefault(run, {})
    place = (MAX_QUERIES, *chosen)
    if place not in known:
        known[place] = _measure(run, chosen)
    return known[place].copy(deep=True)


def _measure(run: Run, chosen: Sequence[int]) -> xarray.Dataset:
    """`map_measures` of these layers, from the stored maps."""
    steps = map_steps(run)
    heads = max(site.heads for site in run.manifest.sites)
    branches: list[Branch] = [
        name for name in BRANCHES if any(name in r.branches for r in run.steps)
    ]
    samples = range(len(run.manifest.labels))
    shape = (len(steps), len(branches), len(samples), len(chosen), heads)
    found = {name: numpy.full(shape, numpy.nan, "float32") for name in MEASURES}
    for place, layer in enumerate(chosen):
        grid = run.manifest.sites[layer].grid
        if grid is None:
            continue
        rows = slice(0, run.manifest.sites[layer].heads)
        for s in samples:
            mask = object_mask(finished_picture(run, s)[0], grid)
            for where, name, values in _of_layer(run, steps, branches, s, layer, mask):
                found[name][(*where, s, place, rows)] = values
    records = [run.steps[step] for step in steps]
    return xarray.Dataset(
        {name: (AXES, values) for name, values in found.items()},
        coords={
            "step": steps,
            "noise_level": ("step", [record.noise_level for record in records]),
            "branch": branches,
            "sample": list(samples),
            "layer": list(chosen),
            "head": list(range(heads)),
        },
        attrs={"max_queries": MAX_QUERIES},
    )


def _of_layer(
    run: Run, steps: list[int], branches: list[Branch], sample: int, layer: int, mask: NDArray
) -> Iterable[tuple[tuple[int, int], str, Array]]:
    """((step, branch) position, measure, value per head) of one layer of one sample."""
    grid = run.manifest.sites[layer].grid
    assert grid is not None
    queries = measured_patches(grid)
    before: dict[Branch, Array] = {}
    for i, step in enumerate(steps):
        now: dict[Branch, Array] = {}
        for b, branch in enumerate(branches):
            if branch not in run.steps[step].branches:
                continue
            maps = patch_maps(run, layer, step, queries, sample, branch)
            for name, values in measures(maps, queries, grid, mask).items():
                yield (i, b), name, values
            if branch in before:
                yield (i, b), "kept", overlap(maps, before[branch])
            now[branch] = maps
        if len(now) == 2:
            both = overlap(now["cond"], now["uncond"])
            for b in range(2):
                yield (i, b), "branch_overlap", both
        before = now


def measured_patches(grid: TokenGrid) -> NDArray[numpy.intp]:
    """Numbers (in reading order) of the query patches that are measured: all, or a fixed draw."""
    order = numpy.random.default_rng(0).permutation(grid.count)[:MAX_QUERIES]
    return numpy.sort(order)


def patch_maps(
    run: Run, layer: int, step: int, queries: NDArray[numpy.intp], sample: int, branch: Branch
) -> Array:
    """Maps of one layer over its patches alone, rows sum to 1: (head, query, patch)."""
    grid = run.manifest.sites[layer].grid
    assert grid is not None
    maps = run.maps(layer, step, queries + grid.start, sample, branch)
    maps = maps[:, :, grid.start : grid.start + grid.count]
    total = maps.sum(-1, keepdims=True)
    return numpy.divide(maps, total, out=numpy.full_like(maps, 1 / grid.count), where=total > 0)


def overlap(one: Array, other: Array) -> Array:
    """Share of attention that two maps (head, query, patch) have in common, mean over queries."""
    return numpy.minimum(one, other).sum(-1).mean(-1)


def measures(
    maps: Array, queries: NDArray[numpy.intp], grid: TokenGrid, mask: NDArray[numpy.bool_]
) -> dict[str, Array]:
    """All measures of single maps: name to a value per head.

    Args:
        maps: (head, query, patch), rows sum to 1.
        queries: number of each query patch, in reading order.
        grid: the patches.
        mask: (y, x), true on the object.
    """
    y, x = numpy.divmod(numpy.arange(grid.count), grid.width)
    down = y - y[queries, None] + grid.height - 1  # (query, patch), from 0
    right = x - x[queries, None] + grid.width - 1
    place = down * (2 * grid.width - 1) + right
    totals, seen = _by_displacement(maps, place, grid)
    offset, mean = _favourite(totals, seen, len(queries))
    expected = mean.reshape(len(maps), -1).take(place, axis=1)
    expected /= numpy.maximum(expected.sum(-1, keepdims=True), 1e-12)
    return {
        **_shares(totals, grid),
        **offset,
        "position": overlap(maps, expected),
        "gain": _gain(maps - expected, queries, mask.ravel()),
        "texture": _texture(maps, grid),
    }


def _by_displacement(
    maps: Array, place: NDArray[numpy.intp], grid: TokenGrid
) -> tuple[Array, NDArray[numpy.intp]]:
    """Attention that goes down and right by so much, (head, 2h - 1, 2w - 1), and how often seen."""
    shape = (2 * grid.height - 1, 2 * grid.width - 1)
    flat, count = place.ravel(), shape[0] * shape[1]
    totals = [numpy.bincount(flat, head.ravel(), minlength=count).reshape(shape) for head in maps]
    seen = numpy.bincount(flat, minlength=count).reshape(shape)
    return numpy.stack(totals).astype("float64"), seen


def _shares(totals: Array, grid: TokenGrid) -> dict[str, Array]:
    """Shares of all attention, from attention by displacement."""
    whole = totals.sum((1, 2))
    own = totals[:, grid.height - 1, grid.width - 1]
    down = numpy.arange(1 - grid.height, grid.height)[:, None]
    near = down**2 + numpy.arange(1 - grid.width, grid.width) ** 2 <= NEAR**2
    others = numpy.where(own < (1 - 1e-6) * whole, whole - own, numpy.inf)
    return {
        "self": own / whole,
        "near": totals[:, near].sum(-1) / whole,
        "row": (totals[:, grid.height - 1].sum(-1) - own) / others,
        "column": (totals[:, :, grid.width - 1].sum(-1) - own) / others,
    }


def _favourite(
    totals: Array, seen: NDArray[numpy.intp], queries: int
) -> tuple[dict[str, Array], Array]:
    """The displacement that gets most, and the mean attention of every displacement."""
    mean = totals / numpy.maximum(seen, 1)
    often = numpy.where(seen >= LEAST_SEEN * queries, mean, -1).reshape(len(mean), -1)
    down, right = numpy.divmod(often.argmax(-1), seen.shape[1])
    return {
        "offset": often.max(-1),
        "offset_y": down - (seen.shape[0] - 1) / 2,
        "offset_x": right - (seen.shape[1] - 1) / 2,
    }, mean


def _gain(surplus: Array, queries: NDArray[numpy.intp], inside: NDArray[numpy.bool_]) -> Array:
    """Surplus (head, query, patch) that stays on the query's side of the object's edge."""
    asks = inside[queries]
    if not asks.any() or asks.all():
        return numpy.full(len(surplus), numpy.nan)
    same = (surplus * (asks[:, None] == inside)).sum(-1)
    return (same[:, asks].mean(-1) + same[:, ~asks].mean(-1)) / 2


def _texture(maps: Array, grid: TokenGrid) -> Array:
    """Share of spectral power beyond `FINE`, mean over rows; 0 for a row without any."""
    pictures = maps.reshape(*maps.shape[:2], grid.height, grid.width)
    power = numpy.abs(numpy.fft.rfft2(pictures)) ** 2
    power[..., 0, 0] = 0
    across = numpy.fft.rfftfreq(grid.width)
    twice = numpy.where((across > 0) & (across < 0.5), 2, 1)  # the half that is left out
    fine = numpy.hypot(numpy.fft.fftfreq(grid.height)[:, None], across) > FINE
    total = (power * twice).sum((-2, -1))
    texture = (power * (twice * fine)).sum((-2, -1))
    share = numpy.divide(texture, total, out=numpy.zeros_like(total), where=total > 1e-12)
    return share.mean(-1)
