"""How attention changes with depth: each statistic layer by layer, and whether it has a trend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy
import xarray
from numpy.typing import NDArray

from ditscope.analysis.confidence import interval
from ditscope.analysis.place import step_record
from ditscope.analysis.recorded import METRIC, recorded, valued
from ditscope.core.axes import Branch
from ditscope.errors import BadRequest
from ditscope.runs.reader import Run

LEAST_LAYERS = 3
"""Fewer layers have no trend that could be told from chance."""


def layer_profile(
    run: Run,
    *,
    metrics: Sequence[str] | None = None,
    layers: Iterable[int] | None = None,
    step: int | None = None,
    branch: Branch = "cond",
) -> xarray.Dataset:
    """Each statistic over the layers, mean over heads, with its 95 % interval over samples.

    Args:
        run: a recorded run.
        metrics: names of statistics; None: all that the run recorded and that have a value.
        layers: these, in this order; None: all.
        step: at this step; None: the mean over all.
        branch: "cond" or "uncond".

    Returns:
        `mean`, `low`, `high` (metric, layer); `head_least`, `head_most` (metric, layer): range of
        the heads' means over samples. `trend`, `trend_low`, `trend_high` (metric): Spearman's rank
        correlation of the statistic with depth, found in each sample, mean and interval over them;
        NaN below three layers or where the layers do not differ. Coordinate `relative_depth`: 0 for
        the first layer of the model, 1 for the last.

    Raises:
        BadRequest: no statistics, or a metric, layer, step or branch that is not in the run; a
            metric without a value.
    """
    values = recorded(run, metrics=metrics, layers=layers, branch=branch)
    if step is not None:
        record = step_record(run, step)
        if branch not in record.branches:
            raise BadRequest(f"{branch!r} was not evaluated at step {record.index}", field="branch")
        values = values.sel(step=[record.index])
    values = _mean_over_steps(valued(values, named=metrics is not None))
    found = interval(values.mean("head", skipna=True))
    heads = values.mean("sample", skipna=False)
    found["head_least"], found["head_most"] = heads.min("head"), heads.max("head")
    trend = interval(depth_correlation(values.mean("head", skipna=True)))
    found = found.assign(
        trend=trend["mean"], trend_low=trend["low"], trend_high=trend["high"]
    ).assign_attrs(branch=branch, step="mean" if step is None else step)
    last = max(len(run.manifest.sites) - 1, 1)
    return found.assign_coords(relative_depth=("layer", found["layer"].values / last))


def _mean_over_steps(values: xarray.DataArray) -> xarray.DataArray:
    """The mean over those steps at which a metric has a value for anything.

    Likeness to the step before has none at the first. NaN elsewhere is not left out: it spreads.
    """
    means: list[xarray.DataArray] = []
    for index in range(values.sizes[METRIC]):
        one = values.isel({METRIC: [index]})
        known = one.notnull().any([axis for axis in one.dims if axis != "step"])
        means.append(one.isel(step=numpy.flatnonzero(known)).mean("step", skipna=False))
    return xarray.concat(means, METRIC)


def depth_correlation(values: xarray.DataArray) -> xarray.DataArray:
    """Spearman's rank correlation of `values` (..., layer) with depth; NaN if it is undefined."""
    ordered = values.sortby("layer").transpose(..., "layer")
    data = numpy.asarray(ordered, dtype=float)
    found = numpy.full(data.shape[:-1], numpy.nan)
    if data.shape[-1] >= LEAST_LAYERS:
        for place in numpy.ndindex(found.shape):
            found[place] = _spearman(data[place])
    return ordered.isel(layer=0, drop=True).copy(data=found)


def _spearman(series: NDArray[numpy.float64]) -> float:
    """Pearson's correlation of the ranks with 0, 1, 2, ...; equal values share their mean rank."""
    if not numpy.isfinite(series).all():
        return numpy.nan
    _, group, sizes = numpy.unique(series, return_inverse=True, return_counts=True)
    ranks = (numpy.cumsum(sizes) - (sizes + 1) / 2)[group]
    if numpy.ptp(ranks) == 0:
        return numpy.nan
    return float(numpy.corrcoef(ranks, numpy.arange(len(series)))[0, 1])
