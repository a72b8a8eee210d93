"""Mean and covariance of any number of feature vectors, in memory that does not grow with it.

Shapes: B rows, D features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ditscope.errors import BadRequest

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Count, mean (D,) and scatter (D, D): the sum of products of deviations from the mean."""

    count: int
    mean: Vector
    scatter: Vector

    @classmethod
    def none(cls, width: int) -> Moments:
        """Those of no vectors."""
        return cls(0, np.zeros(width), np.zeros((width, width)))

    @classmethod
    def of(cls, rows: NDArray[np.floating]) -> Moments:
        """Those of rows (B, D), in float64."""
        exact = rows.astype(np.float64)
        mean = exact.mean(axis=0)
        centred = exact - mean
        return cls(len(rows), mean, centred.T @ centred)

    def __add__(self, other: Moments) -> Moments:
        """Those of both sets together (Chan, Golub and LeVeque 1979): nothing is cancelled."""
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        weight = self.count * other.count / count
        return Moments(
            count,
            self.mean + shift * (other.count / count),
            self.scatter + other.scatter + weight * np.outer(shift, shift),
        )

    @property
    def covariance(self) -> Vector:
        """(D, D), divided by count - 1. Raises BadRequest for fewer than two vectors."""
        if self.count < 2:
            raise BadRequest(
                f"{self.count} pictures have no covariance", field="samples", expected="2 or more"
            )
        return self.scatter / (self.count - 1)


class GroupedMoments:
    """Moments of several groups, for a jackknife over groups."""

    def __init__(self, width: int, groups: int) -> None:
        self.groups = [Moments.none(width) for _ in range(groups)]

    def add(self, rows: NDArray[np.floating], groups: NDArray[np.integer]) -> None:
        """Add rows (B, D) to the groups (B,) that they belong to."""
        for group in np.unique(groups):
            self.groups[group] += Moments.of(rows[groups == group])

    def total(self) -> Moments:
        """Those of all rows."""
        return _sum(self.groups)

    def without_each(self) -> list[Moments]:
        """For every group the moments of all others."""
        return [
            _sum(self.groups[:index] + self.groups[index + 1 :])
            for index in range(len(self.groups))
        ]


def _sum(parts: Iterable[Moments]) -> Moments:
    first, *rest = parts
    for part in rest:
        first += part
    return first
