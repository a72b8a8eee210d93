"""Two maps of the same tokens compared, tile by tile: of two steps, or of two branches.

Shapes: B rows, H heads, N queries, M keys, T rows times heads, n queries of a tile, t heads of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ditscope.attention.metrics.registry import Metric
from ditscope.attention.metrics.scope import Scope
from ditscope.attention.operands import Operands
from ditscope.attention.tiles import score_tiles, tile_shape


def compare(first: Operands, second: Operands, metrics: Sequence[Metric]) -> dict[str, Tensor]:
    """Each metric of the pair, by name (B, H) float32: the mean over queries.

    A query that sees no key in one of the maps is left out; NaN where that leaves none.
    """
    rows, heads, queries, _ = first.q.shape
    scope = Scope(heads, queries, first.k.shape[2], first.q.device)
    sums = {metric.name: first.q.new_zeros(rows * heads, dtype=torch.float32) for metric in metrics}
    count = first.q.new_zeros(rows * heads, dtype=torch.float32)
    shape = tile_shape(scope)
    blocks = zip(score_tiles(first, shape), score_tiles(second, shape), strict=True)
    for (queries, tiles), (_, others) in blocks:
        for (group, scores), (_, other) in zip(tiles, others, strict=True):
            log_p, log_other = (
                _logarithm(each, of, queries, group)
                for each, of in ((scores, first), (other, second))
            )
            blind = (log_p.amax(-1) == -torch.inf) | (log_other.amax(-1) == -torch.inf)
            count[group] += (~blind).sum(-1)
            for metric in metrics:
                value = metric.reduce(log_p, log_other)
                assert value is not None
                sums[metric.name][group] += value.masked_fill(blind, 0.0).sum(-1)
    return {name: (total / count).view(rows, heads) for name, total in sums.items()}


def other_branch(attention: Operands) -> Operands:
    """The operands with the two halves of the batch, its branches, in each other's place."""
    half = len(attention.q) // 2
    return taken(attention, [*range(half, 2 * half), *range(half)])


def taken(attention: Operands, rows: Sequence[int]) -> Operands:
    """Some rows of the batch, as copies: a model may write over its tensors."""
    index = torch.tensor(rows, dtype=torch.long, device=attention.q.device)
    mask = attention.mask
    if mask is not None and len(mask) > 1:
        mask = mask[index]
    return replace(attention, q=attention.q[index], k=attention.k[index], mask=mask)


def _logarithm(scores: Tensor, attention: Operands, queries: slice, group: slice) -> Tensor:
    """Scores (t, n, M) -> log p, minus infinity for what is not seen."""
    bias = attention.bias(queries)
    if bias is None:
        return scores.log_softmax(-1)
    heads = attention.q.shape[1]
    row = torch.arange(group.start, group.stop, device=scores.device)
    bias = bias.expand(*attention.q.shape[:2], *bias.shape[-2:])[row // heads, row % heads]
    scores = scores + bias
    blind = scores.amax(-1, keepdim=True) == -torch.inf
    return scores.log_softmax(-1).masked_fill(blind, -torch.inf)
