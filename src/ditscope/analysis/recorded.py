"""What a run recorded, checked and as one array: the input of every analysis of statistics.

A tier that the run lacks is an error that names the option of `ditscope sample` that records it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy
import xarray

from ditscope.analysis.measured import measured_steps, refuse_unmeasured
from ditscope.analysis.place import checked_index
from ditscope.core.axes import STATISTIC_AXES, Branch
from ditscope.core.sites import Site
from ditscope.core.standard_error import described, error_name
from ditscope.core.statistics import STATISTICS
from ditscope.errors import BadRequest, foreign, listed
from ditscope.runs.reader import Run

METRIC = "metric"
EVEN_METRICS = ("entropy", "rms_distance", "received_max")
"""Statistics with a known value for even attention, see `even_value`."""
RECORD_STATISTICS = "Record them: ditscope sample --attention-debug"
RECORD_MAPS = "Record them: ditscope sample --attention-debug --qk-steps 5"
RECORD_STEPS = "Record more: ditscope sample --attention-debug --steps 20"
RECORD_BRANCHES = "Record it: ditscope sample --attention-debug --cfg-scale 4"


def metric_names(run: Run) -> list[str]:
    """The metrics per head that the run recorded, without standard errors.

    Raises:
        BadRequest: it recorded none.
    """
    names = [str(name) for name, array in run.stats.items() if array.dims == STATISTIC_AXES]
    errors = {error_name(name) for name in names}
    names = [name for name in names if name in STATISTICS or name not in errors]
    if not names:
        raise BadRequest("this run recorded no statistics", field=METRIC, fix=RECORD_STATISTICS)
    return names


def recorded(
    run: Run,
    *,
    metrics: Sequence[str] | None = None,
    layers: Iterable[int] | None = None,
    branch: Branch = "cond",
) -> xarray.DataArray:
    """Statistics of the measured steps that evaluated `branch`.

    (metric, step, sample, layer, head) float64. NaN where nothing was measured, a layer has fewer
    heads, or a statistic is undefined. Coordinates as in `run.stats`, and the `unit` of each
    metric.

    Args:
        run: a recorded run.
        metrics: names of statistics, standard errors among them; None: all metrics that the run
            recorded.
        layers: which layers, in any order; None: all.
        branch: half of classifier-free guidance.

    Raises:
        BadRequest: no statistics, or a metric, layer or branch that is not in the run or was not
            measured.
    """
    names = metric_names(run)
    chosen = names if metrics is None else list(metrics)
    names += [name for name in map(error_name, names) if name in run.stats]
    for name in chosen:
        if name not in names:
            raise BadRequest(
                f"{foreign(repr(name))} is not in this run",
                field=METRIC,
                expected=f"one of {listed(names)}",
            )
    evaluated = branch_steps(run, branch)
    refuse_unmeasured(run, branch=branch)
    steps = measured_steps(run, evaluated)
    if not steps:
        refuse_unmeasured(run, steps=evaluated)
    found = run.stats[chosen].sel(branch=branch, step=steps).to_dataarray(METRIC)
    if layers is not None:
        several = chosen_layers(run, layers)
        refuse_unmeasured(run, layers=several)
        found = found.sel(layer=several)
    found = found.transpose(METRIC, "step", "sample", "layer", "head").astype("float64")
    return found.drop_vars("branch").assign_coords(
        unit=(METRIC, [unit_of(name) for name in chosen])
    )


def valued(values: xarray.DataArray, *, named: bool) -> xarray.DataArray:
    """Of `values` (metric, ...) the metrics that have a value somewhere in them.

    Args:
        values: from `recorded`, or a part of it.
        named: whether the metrics were asked for by name; one without a value is then an error.

    Raises:
        BadRequest: a metric that was asked for has no value, or none has.
    """
    known = values.notnull().any([axis for axis in values.dims if axis != METRIC]).values
    if known.all() or (known.any() and not named):
        return values.isel({METRIC: numpy.flatnonzero(known)})
    names = values[METRIC].values
    raise BadRequest(
        f"{listed(names[~known])} has no value here, in no step, sample, layer or head",
        field=METRIC,
        expected=f"a metric that has: {listed(names[known])}" if known.any() else None,
        fix="metrics of two steps have none at the first step, those of two branches none without "
        "guidance, those of tokens none where there are no such tokens",
    )


def branch_steps(run: Run, branch: Branch) -> list[int]:
    """Steps that evaluated `branch`; BadRequest if none did."""
    steps = [record.index for record in run.steps if branch in record.branches]
    if not steps:
        evaluated = sorted({name for record in run.steps for name in record.branches})
        raise BadRequest(
            f"{foreign(repr(branch))} is not in this run",
            field="branch",
            expected=f"one of {listed(evaluated)}",
            fix=RECORD_BRANCHES if branch == "uncond" else None,
        )
    return steps


def chosen_layers(run: Run, layers: Iterable[int]) -> list[int]:
    """Layer numbers, at least one and each in the run, else BadRequest."""
    found = [checked_index("layer", layer, len(run.manifest.sites)) for layer in layers]
    if not found:
        raise BadRequest("no layer is named", field="layers", expected="a list of integers")
    return found


def map_steps(run: Run, branch: Branch = "cond") -> list[int]:
    """Steps of a branch whose Q and K are stored; BadRequest with what to record if none are."""
    steps = [step for step in branch_steps(run, branch) if step in run.manifest.qk_steps]
    if not steps:
        raise BadRequest(
            "this run stored no Q and K, from which attention maps are made",
            field="step",
            fix=RECORD_MAPS,
        )
    return steps


def unit_of(metric: str) -> str:
    """Unit of a statistic: "nats", "patches", or "1" for a number without one."""
    known = described(metric)
    return known.unit if known else "1"


def even_value(metric: str, site: Site) -> float:
    """What even attention (every key gets the same) would have, a unit for sites of any size.

    Entropy: log N. RMS distance over a grid of h x w: sqrt((h^2 - 1 + w^2 - 1) / 6) patches, the
    root mean square distance of two patches drawn at random. Received maximum: 1 / N. NaN for any
    other statistic, for a distance without a grid, and where it would be zero.
    """
    if metric == "entropy":
        value = math.log(site.keys)
    elif metric == "received_max":
        value = 1 / site.keys
    elif metric == "rms_distance" and site.grid is not None:
        value = math.sqrt((site.grid.height**2 + site.grid.width**2 - 2) / 6)
    else:
        value = 0.0
    return value or math.nan


def relative_to_even(run: Run, values: xarray.DataArray) -> xarray.DataArray:
    """`values` (metric, ..., layer, ...) in units of even attention (see `even_value`)."""
    even = [
        [even_value(metric, run.manifest.sites[layer]) for layer in values["layer"].values.tolist()]
        for metric in values[METRIC].values.tolist()
    ]
    scale = xarray.DataArray(numpy.array(even), dims=(METRIC, "layer"))
    units = ["of even attention"] * values.sizes[METRIC]
    return (values / scale).transpose(*values.dims).assign_coords(unit=(METRIC, units))
