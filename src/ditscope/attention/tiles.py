"""Attention statistics from tiles of scores: exact in float32, for any mask, on any device.

A tile is some queries of some heads against all keys, made, reduced and forgotten, so that the
whole N x M map never exists. Beside the matrix product a tile is read a few times from cache.

Shapes: B rows, H heads, N queries, M keys, K head width, T rows times heads, n queries of a tile,
t heads of a tile, I image tokens.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ditscope.attention.operands import Operands
from ditscope.attention.tables import squared_distances
from ditscope.core.sites import TokenGrid

TILE_ELEMENTS = {"cpu": 2**20}  # 4 MiB of float32: stays in a last-level cache
LARGE_TILE_ELEMENTS = 2**24
MIN_TILE_QUERIES = 64


def tiled_statistics(
    attention: Operands, grid: TokenGrid | None, names: Collection[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Reduce one attention call.

    Args:
        attention: What makes the map.
        grid: Which tokens are patches; needed for `rms_distance`.
        names: Which statistics.

    Returns:
        Statistics by name, each (B, H) float32, NaN where no query attends to anything; and the
        log-sum-exp (B, H, N) float32, minus infinity for a query that sees no key.
    """
    rows, heads, queries, _ = attention.q.shape
    q = _one_block(attention.q)  # (T, N, K)
    k = _one_block(attention.k).mT  # (T, K, M)
    nothing = q.new_empty(())  # is not read: beta is 0
    n, t = _tile_shape(queries, k.shape[-1], q.device)
    groups = [_Sums() for _ in range(0, len(q), t)]
    for first in range(0, queries, n):
        block = _block(attention, grid, names, slice(first, min(first + n, queries)))
        for index, sums in enumerate(groups):
            group = slice(index * t, min((index + 1) * t, len(q)))
            scores = torch.baddbmm(
                nothing, q[group, block.queries], k[group], beta=0, alpha=attention.scale
            )  # (t, n, M)
            if block.bias is not None:
                row = torch.arange(group.start, group.stop, device=q.device)
                scores += block.bias[row // heads, row % heads]
            _reduce(scores, block, sums)
    lse = _joined([_joined(sums.lse, -1) for sums in groups])
    values = {name: _joined([sums.mean(name) for sums in groups]) for name in names}
    return (
        {name: value.view(rows, heads) for name, value in values.items()},
        lse.view(rows, heads, queries),
    )


def _one_block(tensor: Tensor) -> Tensor:
    """(B, H, N, K) -> (T, N, K), float32, without gaps; converted and laid out in one pass."""
    return tensor.to(torch.float32, memory_format=torch.contiguous_format).flatten(0, 1)


def _joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _tile_shape(queries: int, keys: int, device: torch.device) -> tuple[int, int]:
    elements = TILE_ELEMENTS.get(device.type, LARGE_TILE_ELEMENTS)
    n = min(queries, max(MIN_TILE_QUERIES, elements // keys))
    return n, max(1, elements // (n * keys))


@dataclass(frozen=True)
class _Block:
    """Some queries, and what all heads need to know of them."""

    queries: slice
    names: Collection[str]
    bias: Tensor | None  # (B, H, n or 1, M)
    image_queries: slice  # within the block
    image_keys: slice
    apart: Tensor | None  # (image queries, I) squared distances
    whole: bool  # all queries and keys are patches, and no mask hides one


def _block(
    attention: Operands, grid: TokenGrid | None, names: Collection[str], queries: slice
) -> _Block:
    bias = attention.bias(queries)
    if bias is not None:
        bias = bias.expand(*attention.q.shape[:2], *bias.shape[-2:])
    if grid is None or "rms_distance" not in names:
        return _Block(queries, names, bias, slice(0), slice(0), None, False)
    first = max(queries.start, grid.start)
    last = max(first, min(queries.stop, grid.start + grid.count))
    return _Block(
        queries,
        names,
        bias,
        slice(first - queries.start, last - queries.start),
        slice(grid.start, grid.start + grid.count),
        squared_distances(
            grid.height, grid.width, first - grid.start, last - grid.start, attention.q.device
        ),
        attention.plain and grid.count == attention.q.shape[-2] == attention.k.shape[-2],
    )


@dataclass
class _Sums:
    """Sums over the queries of one group of heads, and how many queries they cover."""

    lse: list[Tensor] = field(default_factory=list)  # (t, n) each
    sums: dict[str, Tensor] = field(default_factory=dict)
    seeing: Tensor | int = 0  # queries that see a key
    placed: Tensor | int = 0  # image queries that see an image key

    def add(self, name: str, value: Tensor) -> None:
        """Add to the sum `name`, or start it."""
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def mean(self, name: str) -> Tensor:
        """A finished statistic (t,): NaN, as 0 / 0, where it covers no query."""
        if name == "entropy":
            return self.sums["entropy"] / self.seeing
        if name == "received_max":
            return self.sums["received"].amax(-1) / self.seeing
        if "square" not in self.sums:  # no grid
            return self.lse[0].new_full(self.lse[0].shape[:1], torch.nan)
        return (self.sums["square"] / self.placed).sqrt()


def _reduce(scores: Tensor, block: _Block, sums: _Sums) -> None:
    """Add the scores (t, n, M) of a tile to the sums of its heads. Overwrites the scores."""
    p = scores.softmax(-1)
    largest = scores.amax(-1)
    lse = largest - p.amax(-1).log_()  # the largest p is 1 / sum exp(s - max s)
    sums.lse.append(lse)
    if block.apart is not None:
        _add_distances(scores, p, block.apart, block, sums)
    if block.bias is None:
        sums.seeing += lse.shape[1]
    else:
        blind = largest == -torch.inf  # sees no key: its softmax is NaN
        p.masked_fill_(blind.unsqueeze(-1), 0.0)
        scores.masked_fill_(scores == -torch.inf, 0.0)  # 0 * -inf is NaN
        sums.lse[-1] = lse.masked_fill(blind, -torch.inf)
        lse.masked_fill_(blind, 0.0)
        sums.seeing = sums.seeing + (~blind).sum(-1)
    if "received_max" in block.names:
        sums.add("received", p.sum(-2))
    if "entropy" in block.names:  # -sum p log p = log-sum-exp - sum p s
        sums.add("entropy", lse.sum(-1) - scores.mul_(p).sum((-1, -2)))


def _add_distances(scores: Tensor, p: Tensor, apart: Tensor, block: _Block, sums: _Sums) -> None:
    if block.whole:
        sums.add("square", torch.mv(p.flatten(1), apart.flatten()))
        sums.placed += p.shape[1]
        return
    among = scores[:, block.image_queries, block.image_keys]
    blind = among.amax(-1) == -torch.inf
    square = (among.softmax(-1) * apart).sum(-1)  # (t, n), renormalised to the image keys
    sums.add("square", square.masked_fill_(blind, 0.0).sum(-1))
    sums.placed = sums.placed + (~blind).sum(-1)
