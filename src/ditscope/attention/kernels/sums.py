"""What a kernel is asked for, and what it finds: sums over the keys of each query.

Shapes: T rows times heads, N queries, M keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Wanted:
    """Which sums are wanted beside those that cost nothing more."""

    square: bool = False  # of squared weights
    places: bool = False  # of squared distances on the grid
    centre: bool = False  # of displacements on the grid
    distance: bool = False  # of distances on the grid
    received: bool = False  # what each key receives


@dataclass(frozen=True)
class Sums:
    """Sums over keys with w = exp(score - largest score), float32.

    Those over image keys may take their weights from the largest score among these. They mean
    nothing for a query that is no image token, nor does what was not wanted.
    """

    largest: Tensor  # (T, N), the largest score
    w: Tensor  # (T, N)
    w_log2_w: Tensor  # (T, N)
    w_square: Tensor  # (T, N)
    image: Tensor  # (T, N), of w over image keys; below, the sum of these times ...
    square: Tensor  # (T, N), the squared distance from the query
    distance: Tensor  # (T, N), the distance
    offset: Tensor  # (3, T, N), the displacement in frames, grid rows and grid columns
    received: Tensor | None = None  # (T, M), the sum of the map over its queries
