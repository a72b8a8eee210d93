"""Spectral clustering of a weighted graph: normalised cut, and the number of parts by eigengap.

Shi and Malik 2000 (doi:10.1109/34.868688) for the cut, Ng, Jordan and Weiss 2001 for the clustering
of eigenvectors scaled to unit rows, von Luxburg 2007 (doi:10.1007/s11222-007-9033-z) for the gap.
"""

from __future__ import annotations

import numpy
from numpy.typing import NDArray
from scipy.cluster.vq import ClusterError, kmeans2
from scipy.linalg import eigh

STARTS, ROUNDS = 8, 60

Array = NDArray[numpy.float64]


def leading(ties: Array, count: int) -> tuple[Array, Array]:
    """The `count` largest eigenvalues of D^-1/2 W D^-1/2, falling, and their vectors as columns.

    A vector's sign is fixed: its entry of largest size is positive.
    """
    degree = ties.sum(1)
    root = numpy.divide(1, numpy.sqrt(degree), out=numpy.zeros_like(degree), where=degree > 0)
    size = len(ties)
    count = min(count, size)
    values, vectors = eigh(
        root[:, None] * ties * root, subset_by_index=(size - count, size - 1), driver="evr"
    )
    values, vectors = values[::-1], vectors[:, ::-1]
    heads = vectors[numpy.abs(vectors).argmax(0), numpy.arange(count)]
    return values, vectors * numpy.where(heads < 0, -1, 1)


def count_by_gap(values: Array, least: int = 2) -> int:
    """The number of parts after which the falling eigenvalues drop most, at least `least`."""
    gaps = values[:-1] - values[1:]
    return int(gaps[least - 1 :].argmax()) + least if len(gaps) >= least else len(values)


def clustered(vectors: Array, count: int) -> NDArray[numpy.intp]:
    """A part, 0 to below `count`, for every row of the first `count` vectors.

    k-means from several fixed starts, the one with the least squared error; a start that leaves a
    part empty does not count. Never more parts than there are different rows.
    """
    rows = vectors[:, :count]
    length = numpy.linalg.norm(rows, axis=1, keepdims=True)
    rows = numpy.divide(rows, length, out=numpy.zeros_like(rows), where=length > 0)
    count = min(count, len(numpy.unique(rows.round(9), axis=0)))
    best, least = numpy.zeros(len(rows), numpy.intp), numpy.inf
    for seed in range(STARTS if count > 1 else 0):
        try:
            centres, part = kmeans2(rows, count, iter=ROUNDS, minit="++", rng=seed, missing="raise")
        except ClusterError:
            continue
        error = float(((rows - centres[part]) ** 2).sum())
        if error < least:
            best, least = part, error
    return numpy.asarray(best, numpy.intp)


def normalised_cut(ties: Array, part: NDArray) -> float:
    """Sum over parts of what leads out of a part over all that it has, 0 to the number of parts."""
    total = 0.0
    for name in numpy.unique(part):
        inside = part == name
        whole = ties[inside].sum()
        total += ties[numpy.ix_(inside, ~inside)].sum() / whole if whole > 0 else 0.0
    return float(total)
