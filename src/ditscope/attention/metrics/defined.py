"""Which metrics can have a value at a site: what is asked for is not left out in silence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ditscope.attention.metrics.registry import COLUMNS, IMAGE, NEEDS, find
from ditscope.attention.metrics.sampling import sampled_defaults
from ditscope.attention.metrics.scope import Scope
from ditscope.core.sites import Site
from ditscope.core.statistics import DEFAULT_METRICS
from ditscope.errors import BadRequest, listed


def refuse_undefined(names: Sequence[str], sites: Sequence[Site], *, sampled: bool = False) -> None:
    """Refuse metrics that would be NaN at every site. The default ones are left as they are.

    `sampled`: the default ones are those that a sample of queries can tell.

    Raises:
        BadRequest: names them, and says what is missing.
    """
    if tuple(names) == (sampled_defaults() if sampled else DEFAULT_METRICS):
        return
    idle = [name for name in names if not any(_has_value(name, site) for site in sites)]
    if not idle:
        return
    kinds = {segment.kind for site in sites for segment in site.segments}
    kinds |= {"image"} if any(site.grid for site in sites) else set()
    raise BadRequest(
        f"{listed(idle)} has no value at any site",
        field="metrics",
        expected=f"metrics of what is known of the tokens: {listed(sorted(kinds)) or 'nothing'}; "
        "and of two heads or keys at least where these are compared",
        fix="leave it out"
        if "image" in kinds
        else "say where the image tokens lie, grid=TokenGrid(height=..., width=...), or leave it "
        "out",
    )


def _has_value(name: str, site: Site) -> bool:
    metric = find(name)
    if metric.needs not in NEEDS and not _has_value(metric.needs, site):
        return False
    if metric.needs == IMAGE and site.grid is None:
        return False
    if metric.needs == COLUMNS:
        cpu = torch.device("cpu")
        scope = Scope(site.heads, site.queries, site.keys, cpu, site.grid, site.segments)
        return metric.value_columns(scope) is not None
    return not math.isnan(metric.statistic.maximum(site))
