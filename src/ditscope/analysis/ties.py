"""How strongly the patches of a picture are tied to one another by attention: a weighted graph.

The tie of two patches is (p_ij + p_ji) / 2, averaged over the heads of chosen layers and steps.

Its lift is that over the mean tie of all pairs that lie as far apart in the same direction: heads
that look at their neighbours tie neighbours whatever the picture shows, and that is taken out.
"""

from __future__ import annotations

import numpy
from numpy.typing import NDArray

from ditscope.analysis.stored_maps import StoredMaps
from ditscope.core.sites import TokenGrid

Array = NDArray[numpy.float64]


def ties(maps: StoredMaps, sample: int) -> Array:
    """Tie of every two patches of one sample, mean over steps, layers and heads: (patch, patch)."""
    count = maps.grid.count
    total = numpy.zeros((count, count))
    for step in maps.steps:
        for layer in maps.layers:
            for queries, rows in maps.rows(sample, step, layer):
                total[queries] += rows.mean(0)
    total /= len(maps.steps) * len(maps.layers)
    return (total + total.T) / 2


def expected_ties(found: Array, grid: TokenGrid) -> Array:
    """Mean tie of all pairs of patches at the same displacement, for every pair."""
    y, x = numpy.divmod(numpy.arange(grid.count), grid.width)
    down, right = y - y[:, None] + grid.height - 1, x - x[:, None] + grid.width - 1
    place = (down * (2 * grid.width - 1) + right).ravel()
    mean = numpy.bincount(place, found.ravel()) / numpy.maximum(numpy.bincount(place), 1)
    return mean[place].reshape(found.shape)


def lift(found: Array, grid: TokenGrid) -> Array:
    """Ties over what their displacement alone explains; 1 where nothing is expected."""
    expected = expected_ties(found, grid)
    return numpy.divide(found, expected, out=numpy.ones_like(found), where=expected > 0)
