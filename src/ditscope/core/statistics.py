"""The metrics of attention: what each number means, its unit and its exact bounds.

Making and reading share this table, so that a stored number cannot change its meaning on the way.
For query i and key j, `p_ij` is the attention; `x_i` is the place of a patch on its grid, `N` and
`M` count queries and keys. What has a place is about image queries and image keys alone, and
renormalised to them; a query that a mask hides every key from is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ditscope.core.sites import Site

Bound = Callable[[Site], float]

METRIC_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def _zero(site: Site) -> float:
    return 0.0


@dataclass(frozen=True)
class Statistic:
    """One number per (step, branch, sample, layer, head), from `minimum` to `maximum` of a site."""

    name: str
    long_name: str
    unit: str  # "nats", "patches", "1", ...
    formula: str
    source: str
    maximum: Bound  # NaN where the metric is undefined
    minimum: Bound = _zero
    axis: Literal["query", "key"] | None = "query"  # of its numbers of single tokens, if any
    gaps: bool = False  # may be undefined where it is evaluated, and is NaN there


def _diagonal(site: Site) -> float:
    return site.grid.diagonal if site.grid else math.nan


def _on_grid(bound: Bound) -> Bound:
    return lambda site: bound(site) if site.grid else math.nan


def _constant(value: float) -> Bound:
    return lambda site: value


_SHARE = _constant(1.0)

STATISTICS = {
    statistic.name: statistic
    for statistic in (
        Statistic(
            name="entropy",
            long_name="attention entropy, mean over queries",
            unit="nats",
            formula="mean_i -sum_j p_ij log p_ij",
            source="Clark et al. 2019, arXiv:1906.04341",
            maximum=lambda site: math.log(site.keys),
        ),
        Statistic(
            name="rms_distance",
            long_name="attention distance, root mean square over queries and keys",
            unit="patches",
            formula="sqrt(mean_i sum_j p_ij |x_i - x_j|^2)",
            source="after Dosovitskiy et al. 2021, arXiv:2010.11929",
            maximum=_diagonal,
        ),
        Statistic(
            name="received_max",
            long_name="largest mean attention that one key receives",
            unit="1",
            formula="max_j mean_i p_ij",
            source="Xiao et al. 2024, arXiv:2309.17453",
            maximum=_SHARE,
            axis="key",
        ),
    )
}
"""Every metric that is known, by name. `ditscope.metric` adds to it."""

DEFAULT_METRICS = ("entropy", "rms_distance", "received_max")
"""What is measured if nothing else is asked for: the price of one or two attention calls."""
