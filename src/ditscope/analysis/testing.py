"""Whether two groups of numbers differ: effect size, interval, exact test, many tests at once."""

from __future__ import annotations

from itertools import combinations, product
from math import comb

import numpy
from numpy.typing import NDArray

from ditscope.analysis.confidence import ends, resampled_weights, student, widened

MAX_ARRANGEMENTS = 4000
"""Rearrangements of samples that are all tried; of more, this many are drawn."""
ROUNDING = 1e-9

Array = NDArray[numpy.float64]


def hedges_g(a: Array, b: Array) -> Array:
    """Mean of `b` less that of `a` in standard deviations, for every column of (sample, column).

    Hedges' g (1981, doi:10.3102/10769986006002107): the pooled standard deviation, and the
    correction 1 - 3 / (4 df - 1) for few samples. NaN if either group has one sample, or if nothing
    varies within the groups.
    """
    freedom = len(a) + len(b) - 2
    if min(len(a), len(b)) < 2:
        return numpy.full(a.shape[1], numpy.nan)
    squares = ((a - a.mean(0)) ** 2).sum(0) + ((b - b.mean(0)) ** 2).sum(0)
    return _standardised(b.mean(0) - a.mean(0), squares / freedom, freedom)


def paired_g(differences: Array) -> Array:
    """Mean of differences (sample, column) in standard deviations, corrected as in `hedges_g`."""
    freedom = len(differences) - 1
    if freedom < 1:
        return numpy.full(differences.shape[1], numpy.nan)
    return _standardised(differences.mean(0), differences.var(0, ddof=1), freedom)


def difference_bounds(a: Array, b: Array) -> tuple[Array, Array]:
    """95 % bootstrap interval of mean(b) - mean(a); the groups are resampled apart.

    As `confidence.interval`, with the degrees of freedom of Welch (1947,
    doi:10.1093/biomet/34.1-2.28) for Student's t. NaN if either group has one sample.
    """
    if min(len(a), len(b)) < 2:
        nothing = numpy.full(a.shape[1], numpy.nan)
        return nothing, nothing.copy()
    first = widened(resampled_weights(len(a), seed=0) @ a, a.mean(0), len(a))
    second = widened(resampled_weights(len(b), seed=1) @ b, b.mean(0), len(b))
    parts = [side.var(0, ddof=1) / len(side) for side in (a, b)]
    most = (parts[0] + parts[1]) ** 2
    least = parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1)
    even = numpy.full(a.shape[1], len(a) + len(b) - 2.0)  # where nothing varies
    freedom = numpy.divide(most, least, out=even, where=least > 0)
    low, high = ends(second - first, b.mean(0) - a.mean(0), student(freedom))
    return low, high


def permutation_p(a: Array, b: Array) -> Array:
    """Two-sided p of the difference in means under exchange of samples between the groups.

    All rearrangements are tried if there are at most 4000, else that many are drawn and the
    observed one is counted among them (Phipson and Smyth 2010). The least p there can be is about
    2 / C(n, len(a)): groups of three can never reach 0.05. NaN if either group has one sample.
    """
    if min(len(a), len(b)) < 2:
        return numpy.full(a.shape[1], numpy.nan)
    both = numpy.concatenate([a, b])
    both = both - both.mean(0)
    count, size = len(both), len(b)
    if comb(count, size) <= MAX_ARRANGEMENTS:
        chosen = numpy.array(list(combinations(range(count), size)))
        observed_too = 0
    else:
        random = numpy.random.default_rng(0)
        chosen = random.permuted(numpy.tile(numpy.arange(count), (MAX_ARRANGEMENTS, 1)), axis=1)
        chosen, observed_too = chosen[:, :size], 1
    membership = numpy.zeros((len(chosen), count))
    numpy.put_along_axis(membership, chosen, 1, axis=1)
    # With the grand mean removed, the sum over b alone orders the rearrangements.
    return _share_as_large(membership @ both, both[len(a) :].sum(0), observed_too)


def sign_flip_p(differences: Array) -> Array:
    """Two-sided p of the mean of paired differences (sample, column) under exchange within pairs.

    As `permutation_p`; the least p there can be is 2 / 2^n. NaN for one pair.
    """
    count = len(differences)
    if count < 2:
        return numpy.full(differences.shape[1], numpy.nan)
    if 2**count <= MAX_ARRANGEMENTS:
        signs, observed_too = numpy.array(list(product((1.0, -1.0), repeat=count))), 0
    else:
        random = numpy.random.default_rng(0)
        signs, observed_too = random.choice([1.0, -1.0], (MAX_ARRANGEMENTS, count)), 1
    return _share_as_large(signs @ differences, differences.sum(0), observed_too)


def adjusted(p: Array) -> Array:
    """p-values adjusted for the number of tests: false discovery rate, any shape, NaN left out.

    Benjamini and Hochberg 1995, doi:10.1111/j.2517-6161.1995.tb02031.x.
    """
    found = numpy.full(p.shape, numpy.nan)
    known = numpy.isfinite(p)
    values = p[known]
    order = numpy.argsort(values)[::-1]  # largest first
    ranks = numpy.arange(len(values), 0, -1)
    steps = numpy.minimum.accumulate(values[order] * len(values) / ranks)
    result = numpy.empty_like(values)
    result[order] = numpy.minimum(steps, 1)
    found[known] = result
    return found


def _standardised(difference: Array, variance: Array, freedom: int) -> Array:
    if freedom < 2:  # the correction for few samples would be zero: nothing can be said
        return numpy.full(difference.shape, numpy.nan)
    correction = 1 - 3 / (4 * freedom - 1)
    out = numpy.full(difference.shape, numpy.nan)
    scale = numpy.sqrt(variance)
    return correction * numpy.divide(difference, scale, out=out, where=scale > 0)


def _share_as_large(rearranged: Array, observed: Array, observed_too: int) -> Array:
    """Share of rearrangements at least as far from zero as what was observed."""
    far = numpy.abs(rearranged) >= numpy.abs(observed) * (1 - ROUNDING) - 1e-300
    p = (far.sum(0) + observed_too) / (len(rearranged) + observed_too)
    return numpy.where(numpy.isfinite(observed), p, numpy.nan)
