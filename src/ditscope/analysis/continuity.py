"""Whether attention holds a thing together: along a curve, or on the best way between two boxes.

A link joins two neighbouring patches (of eight). Its strength is the lift of their tie
(`ties.lift`): 1 is what neighbours in that direction have on average over the picture, and less
means that attention breaks there. `rank` is the share of all links of the picture in the same
direction that are weaker: a break is a low rank, not a low number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy
import xarray
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from ditscope.analysis.place import checked_sample
from ditscope.analysis.regions import Region, region_mask
from ditscope.analysis.stored_maps import stored_maps
from ditscope.analysis.ties import Array, lift, ties
from ditscope.core.axes import Branch
from ditscope.core.integers import as_index
from ditscope.core.sites import TokenGrid
from ditscope.errors import BadRequest, foreign
from ditscope.runs.reader import Run

NEIGHBOURS = ((0, 1), (1, -1), (1, 0), (1, 1))
"""Steps (down, right) from a patch to four of its neighbours; the others are the way back."""
LEAST = 1e-6
"""Strength below which a link counts as this: a way over it is very long, but not endless."""


def continuity_along(
    run: Run,
    curve: Sequence[tuple[int, int]],
    *,
    sample: int = 0,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    branch: Branch = "cond",
) -> xarray.Dataset:
    """The links along a curve of patches.

    Args:
        run: a run with stored Q and K.
        curve: corners (row, column) of the curve, at least two; straight lines between them.
        sample: index of the sample.
        layers: these; None: all that have the first patch grid.
        steps: these; None: all whose Q and K are stored.
        branch: "cond" or "uncond".

    Returns:
        Along `link`: `y0`, `x0`, `y1`, `x1`, the patches it joins; `strength` and `rank` as above.
        In attrs: `weakest`, the number of the weakest link, `mean_strength`, and the `grid`.

    Raises:
        BadRequest: no Q and K stored; a curve of fewer than two patches, or off the grid.
    """
    maps = stored_maps(run, layers=layers, steps=steps, branch=branch)
    path = _curve(curve, maps.grid)
    sample = checked_sample(run, sample)
    found = _links(lift(ties(maps, sample), maps.grid), path, maps.grid)
    return found.assign_attrs(sample=sample, branch=branch)


def continuity_between(
    run: Run,
    start: Region,
    end: Region,
    *,
    sample: int = 0,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    branch: Branch = "cond",
) -> xarray.Dataset:
    """The links on the best way from one region to another.

    The way is the one with the least resistance: a link resists by its length over its strength,
    and resistances add up (Dijkstra 1959).

    Args:
        run: a run with stored Q and K.
        start: a box or mask, see `regions.Region`.
        end: another that does not touch it.
        sample: index of the sample.
        layers: these; None: all that have the first patch grid.
        steps: these; None: all whose Q and K are stored.
        branch: "cond" or "uncond".

    Returns:
        As `continuity_along`, from `start` to `end`. Its `resistance` (attrs) over that of the
        straight way if all links had strength 1 is `detour`: below 1, attention joins them.

    Raises:
        BadRequest: no Q and K stored; regions that are not on the grid, or that share a patch.
    """
    maps = stored_maps(run, layers=layers, steps=steps, branch=branch)
    grid = maps.grid
    here, there = (
        numpy.flatnonzero(region_mask(region, grid, field))
        for region, field in ((start, "start"), (end, "end"))
    )
    if numpy.isin(here, there).any():
        raise BadRequest("both regions hold the same patch", field="end")
    sample = checked_sample(run, sample)
    strength = lift(ties(maps, sample), grid)
    distance, path = _best_way(_resistances(strength, grid), here, there)
    plain, _ = _best_way(_resistances(numpy.ones_like(strength), grid), here, there)
    found = _links(strength, path, grid)
    return found.assign_attrs(
        resistance=distance, detour=distance / plain, sample=sample, branch=branch
    )


def _links(strength: Array, path: list[int], grid: TokenGrid) -> xarray.Dataset:
    one, other = numpy.array(path[:-1]), numpy.array(path[1:])
    (y0, x0), (y1, x1) = (numpy.divmod(side, grid.width) for side in (one, other))
    values = strength[one, other]
    ranks = [
        _rank(strength, grid, (b - a, d - c), v)
        for a, c, b, d, v in zip(y0, x0, y1, x1, values, strict=True)
    ]
    return xarray.Dataset(
        {
            name: ("link", numpy.asarray(part))
            for name, part in {
                "y0": y0,
                "x0": x0,
                "y1": y1,
                "x1": x1,
                "strength": values,
                "rank": ranks,
            }.items()
        },
        attrs={
            "weakest": int(values.argmin()),
            "mean_strength": float(values.mean()),
            "grid": (grid.height, grid.width),
        },
    )


def _rank(strength: Array, grid: TokenGrid, apart: tuple[int, int], value: float) -> float:
    """Share of links in this direction that are weaker; of equal ones half count."""
    one, other = _pairs(grid, *apart)
    all_links = strength[one, other]
    return float(((all_links < value).sum() + (all_links == value).sum() / 2) / len(all_links))


def _pairs(grid: TokenGrid, down: int, right: int) -> tuple[NDArray[numpy.intp], ...]:
    """Every patch with the one that lies so much down and right of it."""
    y, x = numpy.divmod(numpy.arange(grid.count), grid.width)
    there = (0 <= y + down) & (y + down < grid.height) & (0 <= x + right) & (x + right < grid.width)
    one = numpy.flatnonzero(there)
    return one, one + down * grid.width + right


def _resistances(strength: Array, grid: TokenGrid) -> csr_array:
    ones, others, costs = [], [], []
    for down, right in NEIGHBOURS:
        one, other = _pairs(grid, down, right)
        ones.append(one)
        others.append(other)
        costs.append(numpy.hypot(down, right) / numpy.maximum(strength[one, other], LEAST))
    places = numpy.concatenate(ones), numpy.concatenate(others)
    return csr_array((numpy.concatenate(costs), places), shape=strength.shape)


def _best_way(
    costs: csr_array, here: NDArray[numpy.intp], there: NDArray[numpy.intp]
) -> tuple[float, list[int]]:
    """Its length, and the patches on it."""
    length, before, _ = dijkstra(
        costs, directed=False, indices=here, min_only=True, return_predecessors=True
    )
    patch = int(there[length[there].argmin()])
    distance, path = float(length[patch]), [patch]
    while before[path[-1]] >= 0:
        path.append(int(before[path[-1]]))
    return distance, path[::-1]


def _curve(curve: Sequence[tuple[int, int]], grid: TokenGrid) -> list[int]:
    """Patches along straight lines between corners, each a neighbour of the one before."""
    path: list[int] = []
    try:
        corners = [(as_index(y), as_index(x)) for y, x in curve]
        for (y0, x0), (y1, x1) in pairwise(corners):
            count = max(abs(y1 - y0), abs(x1 - x0))
            for y, x in zip(
                numpy.linspace(y0, y1, count + 1).round(),
                numpy.linspace(x0, x1, count + 1).round(),
                strict=True,
            ):
                token = grid.token(int(y), int(x)) - grid.start
                if not path or path[-1] != token:
                    path.append(token)
    except (TypeError, ValueError, IndexError):
        path = []
    if len(path) < 2:
        raise BadRequest(
            f"found {foreign(curve)}",
            field="curve",
            expected=f"patches (row, column) from (0, 0) to {(grid.height - 1, grid.width - 1)}, "
            "at least two",
        )
    return path
