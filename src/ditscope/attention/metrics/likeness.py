"""How alike the heads of a layer are.

Shapes: b rows of a tile, H heads, n queries, M keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ditscope.attention.metrics.registry import QUERIES, reduces
from ditscope.attention.metrics.scope import Tile


@reduces("head_similarity", QUERIES, all_heads=True)
def head_similarity(tile: Tile) -> Tensor:
    """Mean Bhattacharyya coefficient with the other heads: the sum over heads is taken first."""
    heads = tile.scope.heads
    roots = tile.p.sqrt().unflatten(0, (-1, heads))  # (b, H, n, M)
    others = roots.sum(1, keepdim=True) - roots
    found = (roots * others).sum(-1).flatten(0, 1)
    return found / (heads - 1) if heads > 1 else torch.full_like(found, torch.nan)
