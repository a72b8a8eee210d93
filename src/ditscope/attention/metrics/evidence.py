"""From sums over the tokens of a call to its metrics.

Shapes: B rows, H heads, T rows times heads, N queries, M keys, I image tokens, C numbers of one
token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ditscope.attention.metrics.plan import Plan
from ditscope.attention.metrics.registry import COLUMNS, Metric
from ditscope.attention.metrics.scope import Scope
from ditscope.errors import BadRequest


@dataclass(frozen=True)
class Evidence:
    """What a pass over a call has found, averaged. Dictionaries are by metric."""

    lse: Tensor  # (T, N) float32, minus infinity for a query that sees no key
    means: dict[str, Tensor]  # (T,) or (T, C), over the queries that see a key
    share: Tensor | None  # (T, M), what each key receives
    tokens: dict[str, Tensor] = field(default_factory=dict)  # (T, N) or (T, N, C)


@dataclass(frozen=True)
class Measured:
    """The metrics of one attention call, by name, and its log-sum-exp (B, H, N), all float32.

    Those that compare two maps are not among them: `ditscope.attention.pairs.compare` makes those.
    """

    heads: dict[str, Tensor]  # (B, H)
    tokens: dict[str, Tensor]  # (B, H, N), or (B, H, M) of what keys receive
    lse: Tensor


def measured(evidence: Evidence, scope: Scope, plan: Plan) -> Measured:
    """Finish the metrics of `plan`."""
    heads: dict[str, Tensor] = {}
    tokens: dict[str, Tensor] = {}
    undefined = evidence.lse.new_full(evidence.lse.shape[:1], torch.nan)  # (T,)
    for metric in (*plan.queries, *plan.image, *plan.columns):
        mean = evidence.means.get(metric.name)
        if metric.needs == COLUMNS:
            mean = _expected(metric, evidence.share, scope)
        heads[metric.name] = undefined if mean is None else metric.finished(mean, scope)
        if plan.tokens and metric.statistic.axis:
            if metric.name in evidence.tokens:
                tokens[metric.name] = metric.finished(evidence.tokens[metric.name], scope)
            else:
                tokens[metric.name] = torch.full_like(evidence.lse, torch.nan)
    for metric in plan.received:
        assert evidence.share is not None
        share = metric.reduce(evidence.share, scope)
        heads[metric.name] = undefined if share is None else metric.finished(share, scope)
        if plan.tokens and metric.statistic.axis:
            none = torch.full_like(evidence.share, torch.nan)
            tokens[metric.name] = none if share is None else share
    for metric in plan.derived:
        for values in (heads, tokens):
            if metric.needs in values:
                following = metric.reduce(values[metric.needs], scope)
                assert following is not None
                values[metric.name] = metric.finished(following, scope)
    for name, values in heads.items():
        if values.shape != undefined.shape:
            raise BadRequest(
                f"its numbers have shape {tuple(values.shape)} after `finish`",
                field=f"metric {name}",
                expected=f"one number for each row and head, {tuple(undefined.shape)}",
            )
    heads_first = (len(undefined) // scope.heads, scope.heads)
    return Measured(
        {name: heads[name].view(heads_first) for name in plan.names if name in heads},
        {name: tokens[name].view(*heads_first, -1) for name in plan.names if name in tokens},
        evidence.lse.view(*heads_first, -1),
    )


def _expected(metric: Metric, share: Tensor | None, scope: Scope) -> Tensor | None:
    """Mean expectation of value columns, (T,) or (T, C): the share of each key times its values."""
    columns = metric.value_columns(scope)
    if columns is None or share is None:
        return None
    return (share @ columns).squeeze(-1)
