"""Over how much a query spreads its attention.

Shapes: t rows times heads, n queries, M keys.
"""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor

from ditscope.attention.metrics.registry import QUERIES, Metric, family, reduces
from ditscope.attention.metrics.scope import Scope, Tile
from ditscope.core.statistics import top_mass


def _sum_of_entropies(tile: Tile) -> Tensor:
    return tile.lse.sum(-1) - tile.weighted_scores.sum((-1, -2))


@reduces("entropy", QUERIES, total=_sum_of_entropies, fused=True, one_pass=True)
def entropy(tile: Tile) -> Tensor:
    """-sum p log p = log-sum-exp - sum p s: no logarithm of each weight is taken."""
    return tile.lse - tile.weighted_scores.sum(-1)


@reduces("entropy_share", "entropy")
def entropy_share(entropy: Tensor, scope: Scope) -> Tensor:
    """NaN, as 0 / 0, of one key."""
    return entropy * (1 / math.log(scope.keys) if scope.keys > 1 else math.nan)


@reduces("effective_keys", "entropy")
def effective_keys(entropy: Tensor, scope: Scope) -> Tensor:
    """Of a head: the geometric mean of its queries' numbers."""
    return entropy.exp()


@reduces("participation", QUERIES, one_pass=True)
def participation(tile: Tile) -> Tensor:
    """As many keys as even attention would have with this sum of squares."""
    return tile.p.square().sum(-1).reciprocal()


@reduces("largest_probability", QUERIES, one_pass=True)
def largest_probability(tile: Tile) -> Tensor:
    """Is known from the softmax."""
    return tile.largest


def _top_mass(tile: Tile, k: int) -> Tensor:
    return tile.p.topk(min(k, tile.p.shape[-1]), sorted=False).values.sum(-1)


def _metric_top(name: str, k: int) -> Metric:
    return Metric(name, QUERIES, partial(_top_mass, k=k))


family("top_mass", top_mass, _metric_top)
