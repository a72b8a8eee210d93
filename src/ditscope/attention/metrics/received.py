"""What keys receive: the mean of the map over its queries.

Shapes: T rows times heads, M keys.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ditscope.attention.metrics.registry import RECEIVED, reduces
from ditscope.attention.metrics.scope import Scope
from ditscope.core.statistics import SINK


def _largest(share: Tensor, scope: Scope) -> Tensor:
    return share.amax(-1)


@reduces("received_max", RECEIVED, finish=_largest)
def received_max(share: Tensor, scope: Scope) -> Tensor:
    """The share of each key; the largest is taken last."""
    return share


def _all(each: Tensor, scope: Scope) -> Tensor:
    return each.sum(-1)


def _is_sink(share: Tensor, scope: Scope) -> Tensor:
    return share > SINK / scope.keys


@reduces("sink_tokens", RECEIVED, finish=_all)
def sink_tokens(share: Tensor, scope: Scope) -> Tensor:
    """One for a sink, else zero; NaN stays NaN."""
    return torch.where(share.isnan(), share, _is_sink(share, scope).float())


@reduces("sink_mass", RECEIVED, finish=_all)
def sink_mass(share: Tensor, scope: Scope) -> Tensor:
    """The share of a sink, else zero; NaN stays NaN."""
    return torch.where(_is_sink(share, scope) | share.isnan(), share, 0.0)


def _mean_map(share: Tensor, scope: Scope) -> Tensor | None:
    grid = scope.grid
    return None if grid is None else share[:, grid.start : grid.start + grid.count]


def _share_of_power(mean_map: Tensor, scope: Scope, low: bool) -> Tensor:
    assert scope.grid is not None
    sides = (scope.grid.frames, scope.grid.height, scope.grid.width)
    mean_map = mean_map / mean_map.sum(-1, keepdim=True)  # the square of little would be zero
    power = torch.fft.fftn(mean_map.unflatten(-1, sides), dim=(-3, -2, -1)).abs().square()
    squares = [torch.fft.fftfreq(side, device=power.device).square() for side in sides[1:]]
    frequency = (squares[0][:, None] + squares[1]).sqrt().expand(sides)
    band = (frequency > 0) & (frequency <= 0.25) if low else frequency > 0.25
    return power[..., band].sum(-1) / power.sum((-3, -2, -1))


reduces("low_frequency", RECEIVED, finish=partial(_share_of_power, low=True))(_mean_map)
reduces("high_frequency", RECEIVED, finish=partial(_share_of_power, low=False))(_mean_map)
