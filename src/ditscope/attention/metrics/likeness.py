"""How alike maps are: of the heads of a layer, of a step and the one before, of two branches.

Shapes: b rows of a tile, H heads, t rows times heads, n queries, M keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ditscope.attention.metrics.registry import BRANCHES, QUERIES, STEPS, reduces
from ditscope.attention.metrics.scope import Tile


@reduces("head_similarity", QUERIES, all_heads=True)
def head_similarity(tile: Tile) -> Tensor:
    """Mean Bhattacharyya coefficient with the other heads: the sum over heads is taken first."""
    heads = tile.scope.heads
    roots = tile.p.sqrt().unflatten(0, (-1, heads))  # (b, H, n, M)
    others = roots.sum(1, keepdim=True) - roots
    found = (roots * others).sum(-1).flatten(0, 1)
    return found / (heads - 1) if heads > 1 else torch.full_like(found, torch.nan)


@reduces("step_overlap", STEPS)
@reduces("branch_overlap", BRANCHES)
def overlap(log_p: Tensor, log_other: Tensor) -> Tensor:
    """What the two maps have in common: sum min(p, p') = 1 - total variation distance."""
    return torch.minimum(log_p, log_other).exp().sum(-1)


@reduces("step_bhattacharyya", STEPS)
@reduces("branch_bhattacharyya", BRANCHES)
def bhattacharyya(log_p: Tensor, log_other: Tensor) -> Tensor:
    """The sum of sqrt(p p'): small weights count for more than in the overlap."""
    return ((log_p + log_other) / 2).exp().sum(-1)


@reduces("step_kl", STEPS)
@reduces("branch_kl", BRANCHES)
def kullback_leibler(log_p: Tensor, log_other: Tensor) -> Tensor:
    """The sum of p log(p / p'): infinite where p' hides a key that p sees."""
    p = log_p.exp()
    return torch.where(p == 0, p, p * (log_p - log_other)).sum(-1)
