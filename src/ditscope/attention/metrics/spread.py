"""Over how much a query spreads its attention.

Shapes: t rows times heads, n queries, M keys.
"""

from __future__ import annotations

from torch import Tensor

from ditscope.attention.metrics.registry import QUERIES, reduces
from ditscope.attention.metrics.scope import Tile


def _sum_of_entropies(tile: Tile) -> Tensor:
    return tile.lse.sum(-1) - tile.weighted_scores.sum((-1, -2))


@reduces("entropy", QUERIES, total=_sum_of_entropies, fused=True)
def entropy(tile: Tile) -> Tensor:
    """-sum p log p = log-sum-exp - sum p s: no logarithm of each weight is taken."""
    return tile.lse - tile.weighted_scores.sum(-1)
