"""The metrics of one attention call, estimated from a stratified sample of its queries.

Where `stats` looks at every query, this makes the scores of the drawn ones alone: n of N rows of
the map, and as much less work. A mean over queries is estimated without bias, also under a mask,
since how many queries see a key follows from the mask; `strata` says how, and with what variance.

A metric that is a function f of such means, the root of one or its exponential, is f of the
estimate: its bias is of the order of the variance. Its standard error is
sqrt(sum_h ((f(m + d_h) - f(m - d_h)) / 2)^2), with m the mean and d_h what half the difference in
stratum h moves it by; the d_h^2 add up to the variance of m. It is exact where f is linear. Source:
jackknife of pairs in strata, Wolter 2007, Introduction to Variance Estimation, chapter 4.

Shapes: B rows, H heads, N queries, n drawn ones, M keys, K head width, T rows times heads, t some
of them, L strata, C numbers of one query, I image tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ditscope.attention.metrics.plan import Plan
from ditscope.attention.metrics.registry import Metric
from ditscope.attention.metrics.scope import Scope, Tile
from ditscope.attention.operands import Operands
from ditscope.attention.strata import Drawn
from ditscope.attention.tiles import LARGE_TILE_ELEMENTS, TILE_ELEMENTS
from ditscope.core.standard_error import error_name
from ditscope.errors import BadRequest


def measure_sampled(
    attention: Operands, plan: Plan, scope: Scope, drawn: Drawn
) -> dict[str, Tensor]:
    """The metrics of `plan` that a pass is made for, estimated, each with its standard error.

    Args:
        attention: What makes the map.
        plan: Of metrics that can be estimated: see `ditscope.attention.metrics.sampling`.
        scope: The tokens of the call.
        drawn: Which queries are looked at.

    Returns:
        By name (B, H) float32; the errors under `core.standard_error.error_name`.

    Raises:
        BadRequest: a registered metric returned what is no metric; the message names it.
    """
    rows, heads = attention.q.shape[:2]
    population = _population(attention, scope, drawn)
    parts: dict[str, list[Tensor]] = {}
    for group, scores in _groups(attention, drawn, heads if plan.all_heads else 1):
        for name, value in _of_tile(scores, plan, scope, population.part(group)):
            parts.setdefault(name, []).append(value)
    values = {name: torch.cat(found) for name, found in parts.items()}  # (T, 1 + 2L) each
    undefined = attention.q.new_full((rows * heads, 1), torch.nan, dtype=torch.float32)
    for metric in (*plan.image, *plan.columns):
        values.setdefault(metric.name, undefined)
    for metric in plan.derived:
        if metric.needs in values:
            number = metric.reduce(values[metric.needs].flatten(), scope)
            assert number is not None
            values[metric.name] = metric.finished(number, scope).view(rows * heads, -1)
    return _with_errors({name: values[name] for name in plan.names if name in values}, rows, heads)


def compare_sampled(
    first: Operands, second: Operands, metrics: tuple[Metric, ...], drawn: Drawn
) -> dict[str, Tensor]:
    """As `ditscope.attention.pairs.compare`, estimated from the same queries of both maps."""
    rows, heads, queries, _ = first.q.shape
    drawn = drawn.on(first.q.device)
    seeing = [_seeing(each, slice(0, queries), slice(None)) for each in (first, second)]
    both = seeing[0] if seeing[1] is None else seeing[1] if seeing[0] is None else None
    both = seeing[0] & seeing[1] if seeing[0] is not None and seeing[1] is not None else both
    share = _share(both, queries, rows, heads)
    parts: dict[str, list[Tensor]] = {metric.name: [] for metric in metrics}
    for (group, scores), (_, other) in zip(
        _groups(first, drawn, 1), _groups(second, drawn, 1), strict=True
    ):
        blind = (scores.amax(-1) == -torch.inf) | (other.amax(-1) == -torch.inf)
        log_p, log_other = (
            each.log_softmax(-1).masked_fill(blind.unsqueeze(-1), -torch.inf)
            for each in (scores, other)
        )
        stratum = _Strata(drawn.sizes, None if share is None else share[group])
        for metric in metrics:
            value = metric.reduce(log_p, log_other)
            assert value is not None
            parts[metric.name].append(stratum.spread(value, blind).squeeze(-1))
    return _with_errors({name: torch.cat(found) for name, found in parts.items()}, rows, heads)


@dataclass(frozen=True)
class _Strata:
    """The strata of a population of queries, all of them or those of the image."""

    sizes: Tensor  # (L,) queries in each
    share: Tensor | None  # (t,) what to multiply by where some queries see no key; None: by 1

    def spread(self, value: Tensor, blind: Tensor | None) -> Tensor:
        """The estimated mean of `value` (t, 2L) or (t, 2L, C), and it moved by each stratum.

        Returns (t, 1 + 2L, C): the mean m, then m + d_h, then m - d_h.
        """
        value = value.float().view(*value.shape[:2], -1)
        if blind is not None:
            value = value.masked_fill(blind.unsqueeze(-1), 0.0)
        first, second = value.unflatten(1, (-1, 2)).unbind(2)  # (t, L, C) each
        weight = (self.sizes / self.sizes.sum() / 2).unsqueeze(-1)
        if self.share is not None:
            weight = weight * self.share[:, None, None]
        mean = ((first + second) * weight).sum(1, keepdim=True)
        left = (1 - 2 / self.sizes).clamp(min=0.0).sqrt().unsqueeze(-1)  # of one query, nothing
        moved = (first - second) * weight * left
        return torch.cat([mean, mean + moved, mean - moved], dim=1)


@dataclass(frozen=True)
class _Population:
    """The drawn queries of a call and what they stand for."""

    drawn: Drawn  # on the device of the call
    masked: bool
    seeing: Tensor | None  # (T,): see `_Strata.share`, of all queries
    placed: Tensor | None  # (T,): likewise, of image queries

    def part(self, group: slice) -> _Population:
        """Of some rows times heads."""
        seeing, placed = (
            None if each is None else each[group] for each in (self.seeing, self.placed)
        )
        return _Population(self.drawn, self.masked, seeing, placed)


def _population(attention: Operands, scope: Scope, drawn: Drawn) -> _Population:
    rows, heads, queries, _ = attention.q.shape
    seeing = _seeing(attention, slice(0, queries), slice(None))
    placed = None
    if scope.grid:
        image = slice(scope.grid.start, scope.grid.start + scope.grid.count)
        counted = _seeing(attention, image, image)
        placed = _share(counted, scope.grid.count, rows, heads)
    share = _share(seeing, queries, rows, heads)
    return _Population(drawn.on(scope.device), not attention.plain, share, placed)


def _seeing(attention: Operands, queries: slice, keys: slice) -> Tensor | None:
    """Whether each query sees one of the keys: bool, broadcasts to (B, H, N); None if all do.

    Without a mask a causal call hides from no query the keys at and before its own place.
    """
    if attention.mask is None:
        return None
    rows = slice(0, 1) if attention.mask.shape[-2] == 1 and not attention.causal else queries
    bias = attention.bias(rows)
    assert bias is not None
    bias = bias if bias.shape[-1] == 1 else bias[..., keys]
    return bias.amax(-1) > -torch.inf


def _share(seeing: Tensor | None, queries: int, rows: int, heads: int) -> Tensor | None:
    """All queries over those that see a key, (T,); infinite where none does."""
    if seeing is None:
        return None
    return queries / seeing.expand(rows, heads, queries).sum(-1).flatten().float()


def _groups(attention: Operands, drawn: Drawn, together: int) -> Iterator[tuple[slice, Tensor]]:
    """Scores (t, n, M) float32 of the drawn queries, with their bias, for parts of T.

    `together` heads are never parted.
    """
    drawn = drawn.on(attention.q.device)
    heads, keys = attention.q.shape[1], attention.k.shape[2]
    q = attention.q[:, :, drawn.queries].float().flatten(0, 1)  # (T, n, K)
    k = attention.k.to(torch.float32, memory_format=torch.contiguous_format).flatten(0, 1).mT
    bias = attention.bias(drawn.queries)
    if bias is not None:
        bias = bias.expand(*attention.q.shape[:2], *bias.shape[-2:])
    elements = TILE_ELEMENTS.get(q.device.type, LARGE_TILE_ELEMENTS)
    size = together * max(1, elements // (together * q.shape[1] * keys))
    nothing = q.new_empty(())  # is not read: beta is 0
    for first in range(0, len(q), size):
        group = slice(first, min(first + size, len(q)))
        scores = torch.baddbmm(nothing, q[group], k[group], beta=0, alpha=attention.scale)
        if bias is not None:
            row = torch.arange(group.start, group.stop, device=q.device)
            scores += bias[row // heads, row % heads]
        yield group, scores


def _of_tile(
    scores: Tensor, plan: Plan, scope: Scope, population: _Population
) -> Iterator[tuple[str, Tensor]]:
    """What each metric that a pass is made for finds, (t, 1 + 2L). Overwrites the scores."""
    drawn = population.drawn
    if plan.image and scope.grid:
        image = slice(scope.grid.start, scope.grid.start + scope.grid.count)
        among = scores[:, : drawn.patches, image]
        p, blind = _shares(among, population.masked)
        tile = Tile(p, scope, drawn.queries[: drawn.patches] - scope.grid.start)
        strata = _Strata(drawn.sizes[: drawn.image], population.placed)
        for metric in plan.image:
            yield metric.name, _finished(metric, _reduced(metric, tile), blind, strata, scope)
    p, blind = _shares(scores, population.masked)
    largest_score, largest = scores.amax(-1), p.amax(-1)
    lse = largest_score - largest.log()
    if blind is not None:
        lse.masked_fill_(blind, 0.0)
        scores.masked_fill_(scores == -torch.inf, 0.0)  # 0 * -inf is NaN
    tile = Tile(p, scope, drawn.queries, lse=lse, scores=scores, largest=largest)
    strata = _Strata(drawn.sizes, population.seeing)
    for metric in plan.queries:
        yield metric.name, _finished(metric, _reduced(metric, tile), blind, strata, scope)
    for metric in plan.columns:
        columns = metric.value_columns(scope)
        if columns is not None:
            yield metric.name, _finished(metric, p @ columns, blind, strata, scope)


def _shares(scores: Tensor, masked: bool) -> tuple[Tensor, Tensor | None]:
    """The map (t, n, M), zero for a query that sees no key, and which queries those are."""
    p = scores.softmax(-1)
    if not masked:
        return p, None
    blind = scores.amax(-1) == -torch.inf
    return p.masked_fill_(blind.unsqueeze(-1), 0.0), blind


def _reduced(metric: Metric, tile: Tile) -> Tensor:
    """What a metric finds of each query of a tile: (t, n) or (t, n, C)."""
    if metric.scattered:
        value = metric.reduce(tile)
    else:
        assert isinstance(tile.queries, Tensor)
        parts = [
            metric.reduce(tile.one(place, int(query)))
            for place, query in enumerate(tile.queries.tolist())
        ]
        good = all(isinstance(each, Tensor) and each.dim() in (2, 3) for each in parts)
        value = torch.cat([each for each in parts if each is not None], 1) if good else parts[0]
    expected = tuple(tile.p.shape[:2])
    if not isinstance(value, Tensor) or value.shape[:2] != expected or value.dim() > 3:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise BadRequest(
            f"returned {found}",
            field=f"metric {metric.name}",
            expected=f"one number per query of the tile, {expected}, or several, on a third axis",
        )
    return value


def _finished(
    metric: Metric, value: Tensor, blind: Tensor | None, strata: _Strata, scope: Scope
) -> Tensor:
    """The metric of the mean, and of the mean moved by each stratum: (t, 1 + 2L)."""
    spread = strata.spread(value, blind)
    several = value.dim() == 3 and value.shape[-1] > 1
    numbers = spread.flatten(0, 1) if several else spread.flatten()
    found = metric.finished(numbers, scope)
    if found.shape != numbers.shape[:1]:
        raise BadRequest(
            f"its numbers have shape {tuple(found.shape)} after `finish`",
            field=f"metric {metric.name}",
            expected=f"one number for each row and head, {tuple(numbers.shape[:1])}",
        )
    return found.view(len(value), -1)


def _with_errors(values: dict[str, Tensor], rows: int, heads: int) -> dict[str, Tensor]:
    """By name (T, 1 + 2L) -> (B, H), and the standard error of each beside it."""
    found: dict[str, Tensor] = {}
    for name, value in values.items():
        mean, moved = value[:, 0], value[:, 1:]
        up, down = moved.chunk(2, dim=1) if moved.shape[1] else (moved, moved)
        error = ((up - down) / 2).square().sum(-1).sqrt()
        found[name] = mean.view(rows, heads)
        found[error_name(name)] = error.masked_fill(mean.isnan(), torch.nan).view(rows, heads)
    return found
