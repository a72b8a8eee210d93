"""Parts of a picture, found from self-attention alone: no pixel, mask or label is looked at.

Patches that attend to one another belong together. The maps of chosen layers and steps become a
graph (`ties`), spectral clustering cuts it into parts (`spectral`), and their number is where the
eigenvalues drop most. The object is what does not lie at the picture's edge: a part is background
if it holds a larger share of the patches at the edge than of those within.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy
import xarray
from numpy.typing import NDArray

from ditscope.analysis.place import checked_sample
from ditscope.analysis.spectral import clustered, count_by_gap, leading, normalised_cut
from ditscope.analysis.stored_maps import StoredMaps, stored_maps
from ditscope.analysis.ties import Array, ties
from ditscope.core.axes import Branch
from ditscope.core.sites import TokenGrid
from ditscope.errors import BadRequest, foreign
from ditscope.runs.reader import Run

MOST_PARTS = 8
CLEAR = 0.5
"""Noise level up to which a picture shows what is on it: such steps are looked at by default."""
LOOSE = 0.1
"""Second eigenvalue below which nothing holds together: 0 for even attention, 1 for two parts
that do not look at each other."""

Mask = NDArray[numpy.bool_]


def find_parts(
    run: Run,
    sample: int = 0,
    *,
    count: int | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    branch: Branch = "cond",
) -> xarray.Dataset:
    """The parts of one picture, and which of them are the object.

    Args:
        run: a run with stored Q and K.
        sample: index of the sample.
        count: number of parts, 1 to the number of patches; None: found by the eigengap, up to 8.
        layers: these; None: all that have the first patch grid.
        steps: these; None: the stored ones up to noise level 0.5, or the cleanest.
        branch: "cond" or "uncond".

    Returns:
        (y, x): `part`, numbers from 0, the largest part first; `object`, true on the object (false
        everywhere if there is one part only); `score`, the share of a patch's ties that lead to the
        object, 0 to 1. `eigenvalue` (number): of the normalised graph, falling from 1. In attrs:
        `cut`, the normalised cut of these parts; `layers` and `steps`.

    Raises:
        BadRequest: no Q and K stored, a coordinate that is not in the run, or a count out of range.
    """
    maps = stored_maps(run, layers=layers, steps=steps, branch=branch)
    if steps is None:
        maps = stored_maps(run, layers=layers, steps=clear_steps(maps), branch=branch)
    found = parts_of(ties(maps, checked_sample(run, sample)), maps.grid, count)
    return found.assign_attrs(
        layers=list(maps.layers), steps=list(maps.steps), sample=sample, branch=branch
    )


def parts_of(graph: Array, grid: TokenGrid, count: int | None = None) -> xarray.Dataset:
    """The parts of a graph of patches (see `ties`), and of which the object is made.

    Args:
        graph: (patch, patch), symmetric, none negative.
        grid: the patches.
        count: number of parts; None: found.

    Returns:
        As `find_parts`, without layers and steps.

    Raises:
        BadRequest: a count that is not 1 to the number of patches.
    """
    if count is not None and not 1 <= count <= grid.count:
        raise BadRequest(
            f"found {foreign(count)}", field="count", expected=f"1 to {grid.count} parts"
        )
    values, vectors = leading(graph, max(count or 0, MOST_PARTS) + 1)
    part = _numbered(_cut(values, vectors, count))
    inside = object_of(part, grid)
    score = graph[:, inside].sum(1) / graph.sum(1)
    shape = (grid.height, grid.width)
    return xarray.Dataset(
        {
            "part": (("y", "x"), part.reshape(shape)),
            "object": (("y", "x"), inside.reshape(shape)),
            "score": (("y", "x"), score.reshape(shape)),
            "eigenvalue": ("number", values),
        },
        attrs={"cut": normalised_cut(graph, part)},
    )


def clear_steps(maps: StoredMaps) -> list[int]:
    """Of the stored steps those at which the picture shows what is on it, at least the cleanest."""
    level = {step: maps.run.steps[step].noise_level for step in maps.steps}
    clear = [step for step in maps.steps if level[step] <= CLEAR]
    return clear or [min(maps.steps, key=lambda step: level[step])]


def object_of(part: NDArray[numpy.intp], grid: TokenGrid) -> Mask:
    """The patches of all parts that are not background, in reading order.

    If every part were background by the rule, the object is the one that is so least.
    """
    names = numpy.unique(part)
    inside = numpy.zeros(grid.count, bool)
    if len(names) < 2:
        return inside
    edge = numpy.ones((grid.height, grid.width), bool)
    edge[1:-1, 1:-1] = False
    edge = edge.ravel()
    if edge.all():  # no patch lies within: the largest part is the background
        return part != numpy.bincount(part).argmax()
    excess = {
        name: edge[part == name].sum() / edge.sum() - (~edge)[part == name].sum() / (~edge).sum()
        for name in names.tolist()
    }
    kept = [name for name, more in excess.items() if more < 0]
    return numpy.isin(part, kept or [min(excess, key=lambda name: excess[name])])


def _cut(values: Array, vectors: Array, count: int | None) -> NDArray[numpy.intp]:
    """A part for every patch."""
    if len(values) < 2 or (count is None and values[1] < LOOSE):
        return numpy.zeros(len(vectors), numpy.intp)
    return clustered(vectors, count or count_by_gap(values))


def _numbered(part: NDArray[numpy.intp]) -> NDArray[numpy.intp]:
    """The same parts, numbered by falling size, of equal ones the first in reading order first."""
    names, first, sizes = numpy.unique(part, return_index=True, return_counts=True)
    order = numpy.lexsort((first, -sizes))
    number = numpy.empty(len(names), numpy.intp)
    number[order] = numpy.arange(len(names))
    return number[numpy.searchsorted(names, part)]
