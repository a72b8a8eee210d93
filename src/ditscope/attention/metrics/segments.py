"""How much attention goes to the image, the text, a class token, registers, or any set of tokens.

Shapes: M keys, h and w the grid.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ditscope.attention.metrics.registry import COLUMNS, metric, reduces
from ditscope.attention.metrics.scope import Scope
from ditscope.core.sites import TokenGrid
from ditscope.core.statistics import SEGMENTS
from ditscope.errors import BadRequest


def mask_metric(name: str, mask: Tensor, *, long_name: str | None = None) -> None:
    """Register the metric `name`: attention on the tokens of a mask, mean over queries.

    Args:
        name: As of `ditscope.metric`.
        mask: Either (h, w), patches of the grid, or (M,), tokens of the sequence. Numbers are
            weights; of a site whose grid or number of keys is another one the metric is NaN.
        long_name: What the tokens are, in words.

    Raises:
        BadRequest: the name is taken or no name, or the mask has another number of axes.
    """
    weights = torch.as_tensor(mask).float().clone()
    if weights.dim() not in (1, 2) or not weights.numel() or not weights.isfinite().all():
        raise BadRequest(
            f"found {weights.dim()} axes of {weights.numel()} values",
            field="mask",
            expected="finite values for (y, x) of the patches or for each token",
        )
    metric(
        name,
        needs=COLUMNS,
        long_name=long_name,
        formula="mean_i sum_j p_ij m_j",
        bounds=(float(weights.min().clamp(max=0)), float(weights.max().clamp(min=0))),
    )(partial(_mask, weights=weights))


def _mask(scope: Scope, weights: Tensor) -> Tensor | None:
    if weights.dim() == 1:
        return weights if len(weights) == scope.keys else None
    grid = scope.grid
    if grid is None or grid.frames > 1 or weights.shape != (grid.height, grid.width):
        return None
    columns = torch.zeros(scope.keys)
    columns[grid.start : grid.start + grid.count] = weights.flatten()
    return columns


def _segment(scope: Scope, kind: str) -> Tensor | None:
    found: list[TokenGrid] | list = [s for s in scope.segments if s.kind == kind]
    if kind == "image":
        found = [scope.grid] if scope.grid else []
    if not found:
        return None
    columns = torch.zeros(scope.keys)
    for segment in found:
        columns[segment.start : segment.start + segment.count] = 1
    return columns


for _kind in SEGMENTS:
    reduces(f"mass_{_kind}", COLUMNS)(partial(_segment, kind=_kind))
