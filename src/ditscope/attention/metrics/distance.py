"""How far image queries look, on the grid of patches.

Shapes: t rows times heads, n image queries, I image tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ditscope.attention.metrics.registry import IMAGE, reduces
from ditscope.attention.metrics.scope import Scope, Tile
from ditscope.attention.tables import squared_distances


def _root(mean_square: Tensor, scope: Scope) -> Tensor:
    return mean_square.sqrt()


def _squares(tile: Tile) -> Tensor:
    return squared_distances(tile.grid, tile.queries.start, tile.queries.stop, tile.p.device)


def _sum_of_squares(tile: Tile) -> Tensor:
    return torch.mv(tile.p.flatten(1), _squares(tile).flatten())


@reduces("rms_distance", IMAGE, finish=_root, total=_sum_of_squares, fused=True)
def rms_distance(tile: Tile) -> Tensor:
    """Mean square distance of each query; the root is taken last."""
    return (tile.p * _squares(tile)).sum(-1)
