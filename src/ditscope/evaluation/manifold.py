"""Improved precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991).

A set of feature vectors stands for the union of balls around its members, each reaching to the
member's k-th nearest other one. Precision is the share of samples that lie inside the data's
balls: are the pictures like data? Recall is the share of data inside the samples' balls: is all
of the data drawn?

Shapes: N and M rows, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ditscope.errors import BadRequest

NEIGHBOURS = 3
"""k of the paper."""

ROWS_AT_A_TIME = 1024
"""Rows whose distances are in memory together."""


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares from 0 to 1, of `count` vectors on either side."""

    precision: float
    recall: float
    count: int
    neighbours: int


def precision_recall(
    data: NDArray[np.floating], samples: NDArray[np.floating], neighbours: int = NEIGHBOURS
) -> PrecisionRecall:
    """Of data (N, D) and samples (M, D), of each the first min(N, M): sets of one size compare.

    Raises BadRequest unless there are more vectors than neighbours.
    """
    count = min(len(data), len(samples))
    if neighbours < 1 or count <= neighbours:
        raise BadRequest(
            f"{count} pictures on one side",
            field="neighbours",
            expected=f"more than {max(neighbours, 1)}",
        )
    data, samples = data[:count].astype(np.float64), samples[:count].astype(np.float64)
    return PrecisionRecall(
        precision=_inside(samples, data, _radii(data, neighbours)),
        recall=_inside(data, samples, _radii(samples, neighbours)),
        count=count,
        neighbours=neighbours,
    )


def _radii(points: NDArray[np.float64], neighbours: int) -> NDArray[np.float64]:
    """Squared distance of every point to its k-th nearest other one: (N,)."""
    found = []
    for first, squares in _squared_distances(points, points):
        rows = np.arange(len(squares))
        squares[rows, first + rows] = np.inf  # itself
        found.append(np.partition(squares, neighbours - 1, axis=1)[:, neighbours - 1])
    return np.concatenate(found)


def _inside(
    points: NDArray[np.float64], centres: NDArray[np.float64], radii: NDArray[np.float64]
) -> float:
    """Share of points that lie in a ball around any centre."""
    hits = sum(
        int((squares <= radii).any(axis=1).sum())
        for _, squares in _squared_distances(points, centres)
    )
    return hits / len(points)


def _squared_distances(
    points: NDArray[np.float64], others: NDArray[np.float64]
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Index of the first row, and (rows, M) squared distances, for some rows after the other."""
    middle = others.mean(axis=0)  # distances do not depend on it, and less is cancelled
    others = others - middle
    lengths = (others**2).sum(axis=1)
    for first in range(0, len(points), ROWS_AT_A_TIME):
        rows = points[first : first + ROWS_AT_A_TIME] - middle
        squares = (rows**2).sum(axis=1)[:, None] + lengths - 2 * rows @ others.T
        yield first, np.maximum(squares, 0)
