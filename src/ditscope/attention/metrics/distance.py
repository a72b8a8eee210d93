"""How far image queries look, on the grid of patches.

Shapes: t rows times heads, n image queries, I image tokens.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ditscope.attention.metrics.registry import IMAGE, Metric, family, reduces
from ditscope.attention.metrics.scope import Scope, Tile
from ditscope.attention.tables import distances, places, squared_distances
from ditscope.core.statistics import mass_within


def _root(mean_square: Tensor, scope: Scope) -> Tensor:
    return mean_square.sqrt()


def _squares(tile: Tile) -> Tensor:
    if isinstance(tile.queries, Tensor):
        place = places(tile.grid, tile.p.device)
        return (place[tile.queries].unsqueeze(1) - place).square().sum(-1)
    return squared_distances(tile.grid, tile.queries.start, tile.queries.stop, tile.p.device)


def _sum_of_squares(tile: Tile) -> Tensor:
    return torch.mv(tile.p.flatten(1), _squares(tile).flatten())


@reduces("rms_distance", IMAGE, finish=_root, total=_sum_of_squares, fused=True, one_pass=True)
def rms_distance(tile: Tile) -> Tensor:
    """Mean square distance of each query; the root is taken last."""
    return (tile.p * _squares(tile)).sum(-1)


def _distances(tile: Tile) -> Tensor:
    if isinstance(tile.queries, Tensor):
        return _squares(tile).sqrt()
    return distances(tile.grid, tile.queries.start, tile.queries.stop, tile.p.device)


def _sum_of_distances(tile: Tile) -> Tensor:
    return torch.mv(tile.p.flatten(1), _distances(tile).flatten())


@reduces("mean_distance", IMAGE, total=_sum_of_distances, one_pass=True)
def mean_distance(tile: Tile) -> Tensor:
    """Has no form as value columns: tiles are needed for the root of each pair."""
    return (tile.p * _distances(tile)).sum(-1)


@reduces("centroid_offset", IMAGE, one_pass=True)
def centroid_offset(tile: Tile) -> Tensor:
    """From the place of the query to its mean place under the attention."""
    place = places(tile.grid, tile.p.device)  # (I, 3)
    return (tile.p @ place - place[tile.queries]).norm(dim=-1)


def _elongation(covariance: Tensor, scope: Scope) -> Tensor:
    yy, xx, xy = covariance.unbind(-1)
    return torch.hypot(yy - xx, 2 * xy) / (yy + xx)  # NaN, as 0 / 0, of a single place


@reduces("anisotropy", IMAGE, finish=_elongation)
def anisotropy(tile: Tile) -> Tensor:
    """Covariance (yy, xx, xy) of the places a query looks at, from marginals around their means.

    Sums of squares that are no differences: a sharp head does not cancel in float32.
    """
    height, width = tile.grid.height, tile.grid.width
    p = tile.p.unflatten(-1, (tile.grid.frames, height, width)).sum(-3)
    rows, columns = p.sum(-1), p.sum(-2)  # (t, n, h) and (t, n, w)
    y, x = (torch.arange(side, device=p.device).float() for side in (height, width))
    y = y - (rows @ y).unsqueeze(-1)
    x = x - (columns @ x).unsqueeze(-1)
    joint = (p * x.unsqueeze(-2)).sum(-1)  # (t, n, h)
    return torch.stack(
        [(rows * y.square()).sum(-1), (columns * x.square()).sum(-1), (joint * y).sum(-1)], dim=-1
    )


def _near(tile: Tile, radius: int) -> Tensor:
    return (_squares(tile) <= radius * radius).float()


def _sum_within(tile: Tile, radius: int) -> Tensor:
    return torch.mv(tile.p.flatten(1), _near(tile, radius).flatten())


def _mass_within(tile: Tile, radius: int) -> Tensor:
    return (tile.p * _near(tile, radius)).sum(-1)


def _metric_within(name: str, radius: int) -> Metric:
    reduce, total = (partial(f, radius=radius) for f in (_mass_within, _sum_within))
    return Metric(name, IMAGE, reduce, total=total)


family("mass_within", mass_within, _metric_within)
