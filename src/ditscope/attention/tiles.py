"""Attention metrics from tiles of scores: exact in float32, for any mask, on any device.

A tile is some queries of some heads against all keys, made, reduced and forgotten, so that the
whole N x M map never exists. Beside the matrix product a tile is read a few times from cache.

Shapes: B rows, H heads, N queries, M keys, K head width, T rows times heads, n queries of a tile,
t heads of a tile, I image tokens, C numbers of one token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ditscope.attention.metrics.evidence import Evidence
from ditscope.attention.metrics.plan import Plan
from ditscope.attention.metrics.registry import Metric
from ditscope.attention.metrics.scope import Scope, Tile
from ditscope.attention.operands import Operands
from ditscope.errors import BadRequest

TILE_ELEMENTS = {"cpu": 2**20}  # 4 MiB of float32: stays in a last-level cache
LARGE_TILE_ELEMENTS = 2**24
MIN_TILE_QUERIES = 64


def tiled_evidence(attention: Operands, scope: Scope, plan: Plan) -> Evidence:
    """Reduce one attention call, in one pass, to what the metrics of `plan` are finished from."""
    rows, heads, queries, _ = attention.q.shape
    shape = tile_shape(scope, whole_rows=plan.all_heads)
    groups = [_Sums() for _ in range(0, rows * heads, shape[1])]
    columns = _columns(scope, plan) if plan.tokens else {}
    for queries, tiles in score_tiles(attention, shape):
        block = _block(attention, scope, plan, queries, columns)
        for (group, scores), sums in zip(tiles, groups, strict=True):
            if block.bias is not None:
                row = torch.arange(group.start, group.stop, device=scores.device)
                scores += block.bias[row // heads, row % heads]
            _reduce(scores, block, sums)
    return _evidence(groups, {metric.name for metric in plan.image})


def score_tiles(
    attention: Operands, shape: tuple[int, int]
) -> Iterator[tuple[slice, Iterator[tuple[slice, Tensor]]]]:
    """For blocks of queries: the slice of T and the scores (t, n, M), without bias, of each tile.

    `shape` is how many queries and how many rows times heads a tile has.
    """
    n, t = shape
    q = _one_block(attention.q)  # (T, N, K)
    k = _one_block(attention.k).mT  # (T, K, M)
    nothing = q.new_empty(())  # is not read: beta is 0

    def tiles(queries: slice) -> Iterator[tuple[slice, Tensor]]:
        for first in range(0, len(q), t):
            group = slice(first, min(first + t, len(q)))
            yield (
                group,
                torch.baddbmm(nothing, q[group, queries], k[group], beta=0, alpha=attention.scale),
            )

    for first in range(0, q.shape[1], n):
        queries = slice(first, min(first + n, q.shape[1]))
        yield queries, tiles(queries)


def _one_block(tensor: Tensor) -> Tensor:
    """(B, H, N, K) -> (T, N, K), float32, without gaps; converted and laid out in one pass."""
    return tensor.to(torch.float32, memory_format=torch.contiguous_format).flatten(0, 1)


def tile_shape(scope: Scope, *, whole_rows: bool = False) -> tuple[int, int]:
    """How many queries, and how many rows times heads, a tile has; or all heads of whole rows."""
    elements = TILE_ELEMENTS.get(scope.device.type, LARGE_TILE_ELEMENTS)
    together = scope.heads if whole_rows else 1
    n = min(scope.queries, max(MIN_TILE_QUERIES, elements // (scope.keys * together)))
    return n, together * max(1, elements // 2 // (n * scope.keys * together))  # half is faster


@dataclass(frozen=True)
class _Block:
    """Some queries, and what all heads need to know of them."""

    scope: Scope
    plan: Plan
    queries: slice
    bias: Tensor | None  # (B, H, n or 1, M)
    image_queries: slice  # within the block
    image_keys: slice
    patches: slice  # which those image queries are
    whole: bool  # all queries and keys are patches, and no mask hides one
    columns: dict[str, Tensor]  # (M, C) by metric, for the numbers of single tokens


def _block(
    attention: Operands, scope: Scope, plan: Plan, queries: slice, columns: dict[str, Tensor]
) -> _Block:
    bias = attention.bias(queries)
    if bias is not None:
        bias = bias.expand(*attention.q.shape[:2], *bias.shape[-2:])
    grid = scope.grid
    if grid is None:
        none = slice(0, 0)
        return _Block(scope, plan, queries, bias, none, none, none, False, columns)
    first = max(queries.start, grid.start)
    last = max(first, min(queries.stop, grid.start + grid.count))
    return _Block(
        scope,
        plan,
        queries,
        bias,
        slice(first - queries.start, last - queries.start),
        slice(grid.start, grid.start + grid.count),
        slice(first - grid.start, last - grid.start),
        attention.plain and grid.count == scope.queries == scope.keys,
        columns,
    )


def _columns(scope: Scope, plan: Plan) -> dict[str, Tensor]:
    found = {each.name: each.value_columns(scope) for each in plan.columns}
    return {name: columns for name, columns in found.items() if columns is not None}


@dataclass
class _Sums:
    """Sums over the queries of one group of heads, and how many queries they cover."""

    lse: list[Tensor] = field(default_factory=list)  # (t, n) each
    sums: dict[str, Tensor] = field(default_factory=dict)  # (t,) or (t, C), by metric
    received: Tensor | None = None  # (t, M)
    tokens: dict[str, list[Tensor]] = field(default_factory=dict)  # (t, n) or (t, n, C) each
    seeing: Tensor | int = 0  # queries that see a key
    placed: Tensor | int = 0  # image queries that see an image key

    def add(self, name: str, value: Tensor) -> None:
        """Add to the sum `name`, or start it."""
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def keep(self, name: str, value: Tensor) -> None:
        """Keep the numbers of single queries."""
        self.tokens.setdefault(name, []).append(value)


def _evidence(groups: list[_Sums], images: Collection[str]) -> Evidence:
    """The sums of all heads, as means: NaN, as 0 / 0, where they cover no query."""

    def over(sums: Tensor, count: Tensor | int) -> Tensor:
        if isinstance(count, Tensor) and sums.dim() == 2:
            count = count.unsqueeze(-1)
        return sums / count

    def mean(group: _Sums, name: str) -> Tensor:
        return over(group.sums[name], group.placed if name in images else group.seeing)

    shares = [over(each.received, each.seeing) for each in groups if each.received is not None]
    return Evidence(
        lse=_joined([_joined(group.lse, -1) for group in groups]),
        means={name: _joined([mean(group, name) for group in groups]) for name in groups[0].sums},
        share=_joined(shares) if shares else None,
        tokens={
            name: _joined([_joined(group.tokens[name], 1) for group in groups])
            for name in groups[0].tokens
        },
    )


def _joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _reduce(scores: Tensor, block: _Block, sums: _Sums) -> None:
    """Add the scores (t, n, M) of a tile to the sums of its heads. Overwrites the scores."""
    p = scores.softmax(-1)
    largest_score, largest = scores.amax(-1), p.amax(-1)
    lse = largest_score - largest.log()  # the largest p is 1 / sum exp(s - max s)
    sums.lse.append(lse)
    if block.plan.image and block.scope.grid:
        _reduce_image(scores, p, block, sums)
    blind = None
    if block.bias is None:
        sums.seeing += lse.shape[1]
    else:
        blind = largest_score == -torch.inf  # sees no key: its softmax is NaN
        p.masked_fill_(blind.unsqueeze(-1), 0.0)
        largest.masked_fill_(blind, 0.0)
        scores.masked_fill_(scores == -torch.inf, 0.0)  # 0 * -inf is NaN
        sums.lse[-1] = lse.masked_fill(blind, -torch.inf)
        lse.masked_fill_(blind, 0.0)
        sums.seeing = sums.seeing + (~blind).sum(-1)
    if block.plan.received or block.plan.columns:
        received = p.sum(-2)
        sums.received = received if sums.received is None else sums.received + received
    tile = Tile(p, block.scope, block.queries, lse=lse, scores=scores, largest=largest)
    for metric in block.plan.queries:
        if metric.total and not block.plan.tokens:
            sums.add(metric.name, metric.total(tile))
        else:
            _add(metric, tile, blind, slice(None), block, sums)
    for name, columns in block.columns.items():
        sums.keep(name, _missing((p @ columns).squeeze(-1), blind, torch.nan))


def _reduce_image(scores: Tensor, p: Tensor, block: _Block, sums: _Sums) -> None:
    """Add what image queries do among the image keys, renormalised to them."""
    blind = None
    if block.whole:
        sums.placed += p.shape[1]
    else:
        scores = scores[:, block.image_queries, block.image_keys]
        blind = scores.amax(-1) == -torch.inf
        p = scores.softmax(-1).masked_fill_(blind.unsqueeze(-1), 0.0)
        sums.placed = sums.placed + (~blind).sum(-1)
    tile = Tile(p, block.scope, block.patches)
    for metric in block.plan.image:
        if metric.total and block.whole and not block.plan.tokens:
            sums.add(metric.name, metric.total(tile))
        else:
            _add(metric, tile, blind, block.image_queries, block, sums)


def _add(
    metric: Metric, tile: Tile, blind: Tensor | None, where: slice, block: _Block, sums: _Sums
) -> None:
    """Reduce a tile query by query; `where` among the queries of the block those are."""
    value = metric.reduce(tile)
    if not isinstance(value, Tensor) or value.shape[:2] != tile.p.shape[:2] or value.dim() > 3:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        expected = tuple(tile.p.shape[:2])
        raise BadRequest(
            f"returned {found}",
            field=f"metric {metric.name}",
            expected=f"one number per query of the tile, {expected}, or several, on a third axis",
        )
    sums.add(metric.name, _missing(value, blind, 0.0).sum(1))
    if block.plan.tokens:
        value = _missing(value.float(), blind, torch.nan)
        shape = (len(value), block.queries.stop - block.queries.start, *value.shape[2:])
        everyone = value.new_full(shape, torch.nan)
        everyone[:, where] = value
        sums.keep(metric.name, everyone)


def _missing(value: Tensor, blind: Tensor | None, instead: float) -> Tensor:
    """`value` (t, n) or (t, n, C), with `instead` where a query is blind (t, n)."""
    if blind is None:
        return value
    return value.masked_fill(blind.view(*blind.shape, *(1,) * (value.dim() - 2)), instead)
