"""How attention changes from noise to picture: one curve over the steps for each statistic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import xarray

from ditscope.analysis.confidence import interval
from ditscope.analysis.recorded import recorded, valued
from ditscope.core.axes import Branch
from ditscope.runs.reader import Run


def step_curves(
    run: Run,
    *,
    metrics: Sequence[str] | None = None,
    layers: Iterable[int] | None = None,
    branch: Branch = "cond",
) -> xarray.Dataset:
    """Each statistic over the steps, mean over layers and heads, with its band over samples.

    Args:
        run: a recorded run.
        metrics: names of statistics; None: all that the run recorded and that have a value.
        layers: mean over these; None: over all.
        branch: "cond" or "uncond".

    Returns:
        `mean`, `low`, `high` (metric, step) in the `unit` of each metric; the band is the 95 %
        interval of the mean over samples (see `confidence.interval`), NaN for one sample.

    Raises:
        BadRequest: no statistics, or a metric, layer or branch that is not in the run; a metric
            without a value.
    """
    values = recorded(run, metrics=metrics, layers=layers, branch=branch)
    values = valued(values, named=metrics is not None)
    # Heads first: each layer counts the same, however many heads it has.
    per_sample = values.mean("head", skipna=True).mean("layer", skipna=True)
    return interval(per_sample).assign_attrs(branch=branch)
