"""Frechet distance between two sets of feature vectors (FID when Inception makes the features).

    d^2 = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1^1/2 C_2 C_1^1/2)^1/2)

Dowson and Landau 1982; Heusel et al. 2017 (arXiv:1706.08500). The trace of the root is the sum of
the roots of the eigenvalues of a symmetric matrix, so no square root of a matrix that is not
symmetric is taken, whose result may be complex or wrong when a covariance is singular.

Shapes: D features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ditscope.evaluation.moments import GroupedMoments, Vector

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Half-width of a 95 % interval in standard errors, of 2, 3, ... 10 groups: Student's t with one
degree of freedom less."""


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and a factor L (D, D) of the covariance L L^T."""

    mean: Vector
    factor: Vector
    trace: float

    @classmethod
    def of(cls, mean: Vector, covariance: Vector) -> Gaussian:
        """From mean and covariance; eigenvalues that rounding made negative count as zero."""
        values, vectors = np.linalg.eigh(covariance)
        factor = vectors * np.sqrt(np.maximum(values, 0))
        return cls(mean, factor, float(np.trace(covariance)))


def frechet_distance(reference: Gaussian, mean: Vector, covariance: Vector) -> float:
    """The squared distance, which is what is quoted as FID, in float64."""
    product = reference.factor.T @ covariance @ reference.factor
    values = np.linalg.eigvalsh((product + product.T) / 2)
    overlap = float(np.sqrt(np.maximum(values, 0)).sum())
    apart = reference.mean - mean
    traces = reference.trace + float(np.trace(covariance))
    return max(0.0, float(apart @ apart) + traces - 2 * overlap)


@dataclass(frozen=True)
class FrechetEstimate:
    """The distance of a finite set, and what is known of its error.

    `distance` is the plain number, comparable with published ones of as many samples. It is biased
    upwards, by about c / N for N samples (Chong and Forsyth 2020, arXiv:1911.07023); `unbiased` is
    the jackknife's correction of that (Quenouille 1949), with Tukey's standard error (1958).
    """

    distance: float
    unbiased: float | None
    standard_error: float | None
    samples: int
    features: int
    groups: int  # of the jackknife

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the unbiased distance."""
        if self.unbiased is None or self.standard_error is None:
            return None
        half = T_95[self.groups - 2] * self.standard_error
        return self.unbiased - half, self.unbiased + half


def estimate(mean: Vector, covariance: Vector, samples: GroupedMoments) -> FrechetEstimate:
    """The distance of `samples` from data of this mean (D,) and covariance (D, D), with its error.

    With one group there is no error: None. Raises BadRequest for fewer than two samples.
    """
    total = samples.total()
    given = Gaussian.of(mean, covariance)
    distance = frechet_distance(given, total.mean, total.covariance)
    groups, width = len(samples.groups), len(total.mean)
    if groups == 1:
        return FrechetEstimate(distance, None, None, total.count, width, groups)
    without = np.array(
        [frechet_distance(given, part.mean, part.covariance) for part in samples.without_each()]
    )
    centre = float(without.mean())
    spread = (groups - 1) / groups * float(((without - centre) ** 2).sum())
    unbiased = groups * distance - (groups - 1) * centre
    return FrechetEstimate(distance, unbiased, math.sqrt(spread), total.count, width, groups)
