"""One number for every head of a run: rows are layers, columns are heads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import xarray

from ditscope.analysis.measured import refuse_unmeasured
from ditscope.analysis.place import checked_sample, step_record
from ditscope.analysis.recorded import METRIC, metric_names, valued
from ditscope.core.axes import Branch
from ditscope.core.statistics import STATISTICS
from ditscope.errors import BadRequest, foreign, listed
from ditscope.runs.reader import Run


@dataclass(frozen=True)
class HeadAtlas:
    """A statistic per head, reduced over what was not selected.

    `values` (layer, head) are NaN where nothing was recorded. `maximum` (layer) is the greatest
    value that the statistic can have, NaN if unknown: for entropy log N, of even attention.
    """

    metric: str
    values: xarray.DataArray
    maximum: xarray.DataArray
    step: int | None  # None: mean over steps
    sample: int | None  # None: mean over samples
    branch: Branch

    @property
    def extremes(self) -> tuple[tuple[int, int], ...]:
        """(layer, head) of the smallest and of the largest value; empty if no two values differ."""
        values = self.values.values
        known = values[numpy.isfinite(values)]
        if not known.size or numpy.ptp(known) <= 1e-6 * abs(known.max()):
            return ()
        places = (numpy.nanargmin(values), numpy.nanargmax(values))
        least, most = (numpy.unravel_index(int(place), values.shape) for place in places)
        return (int(least[0]), int(least[1])), (int(most[0]), int(most[1]))


def head_atlas(
    run: Run,
    metric: str = "entropy",
    *,
    step: int | None = None,
    sample: int | None = None,
    branch: Branch = "cond",
) -> HeadAtlas:
    """The statistic `metric` of every head, at one step or averaged over all, likewise samples.

    Raises:
        BadRequest: a statistic, step, sample or branch that is not in the run, or a statistic
            that has no value there.
    """
    for field, value, found in (
        ("metric", metric, metric_names(run)),
        ("branch", branch, run.stats["branch"].values.tolist()),
    ):
        if value not in found:
            raise BadRequest(
                f"{foreign(repr(value))} is not in this run",
                field=field,
                expected=f"one of {listed(found)}",
            )
    refuse_unmeasured(run, branch=branch)
    values = run.stats[metric].sel(branch=branch)
    if step is not None:
        step = step_record(run, step).index
        refuse_unmeasured(run, steps=[step])
        values = values.sel(step=step)
    if sample is not None:
        values = values.sel(sample=checked_sample(run, sample))
    values = valued(values.expand_dims({METRIC: [metric]}), named=True).isel({METRIC: 0})
    over = [axis for axis in ("step", "sample") if axis in values.dims]
    known = STATISTICS.get(metric)
    maximum = [known.maximum(site) if known else numpy.nan for site in run.manifest.sites]
    return HeadAtlas(
        metric=metric,
        values=values.astype("float64").mean(over, skipna=True).transpose("layer", "head"),
        maximum=xarray.DataArray(maximum, dims="layer"),
        step=step,
        sample=sample,
        branch=branch,
    )
