"""The per-head statistics of attention: what each number means, its unit and its exact bounds.

Making and reading share this table, so that a stored number cannot change its meaning on the way.
For one query, `p` is its attention over the keys; a head's statistic is the reduction named here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ditscope.core.sites import Site


@dataclass(frozen=True)
class Statistic:
    """One number per (step, branch, sample, layer, head), between 0 and `maximum` of its site."""

    name: str
    long_name: str
    unit: Literal["nats", "patches", "1"]
    formula: str
    source: str
    maximum: Callable[[Site], float]  # NaN where the statistic is undefined


def _diagonal(site: Site) -> float:
    return math.hypot(site.grid.height - 1, site.grid.width - 1) if site.grid else math.nan


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
            maximum=lambda site: 1.0,
        ),
    )
}
