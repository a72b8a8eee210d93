"""The standard error of a metric that was estimated: its name, and what the number means."""

from __future__ import annotations

import math

from ditscope.core.statistics import STATISTICS, Statistic

SUFFIX = "_error"


def error_name(metric: str) -> str:
    """Under which name the standard error of `metric` stands beside it."""
    return metric + SUFFIX


def described(name: str) -> Statistic | None:
    """What a stored number means: a metric, or the standard error of one; None if unknown."""
    if name in STATISTICS or not name.endswith(SUFFIX):
        return STATISTICS.get(name)
    of = STATISTICS.get(name.removesuffix(SUFFIX))
    if of is None:
        return None
    return Statistic(
        name=name,
        long_name=f"standard error of: {of.long_name}",
        unit=of.unit,
        formula="sqrt(sum_h W_h^2 (1 - 2 / N_h) (y_h1 - y_h2)^2 / 4), strata h of N_h = W_h N "
        f"queries, y as in: {of.formula}",
        source="Cochran 1977, Sampling Techniques, 3rd edition, section 5.4",
        maximum=lambda site: math.nan if math.isnan(of.maximum(site)) else math.inf,
        axis=None,
        gaps=True,
    )
