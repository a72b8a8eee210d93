"""Statistics as the rules need them: per sample, and where along the steps something holds."""

from __future__ import annotations

import numpy
import xarray
from numpy.typing import NDArray

from ditscope.analysis.confidence import bounds
from ditscope.analysis.recorded import METRIC, RECORD_STATISTICS, recorded, relative_to_even
from ditscope.core.axes import Branch
from ditscope.errors import BadRequest
from ditscope.runs.reader import Run


def statistic(
    run: Run, metric: str, *, relative: bool, branch: Branch = "cond"
) -> xarray.DataArray:
    """One statistic, (step, sample, layer, head), as recorded or in units of even attention.

    Raises:
        BadRequest: the run did not record it.
    """
    try:
        values = recorded(run, metrics=[metric], branch=branch)
    except BadRequest as error:
        if error.field != METRIC:
            raise
        raise BadRequest(
            f"this run recorded no {metric}", field=METRIC, fix=RECORD_STATISTICS
        ) from None
    values = relative_to_even(run, values) if relative else values
    return values.isel({METRIC: 0}, drop=True).drop_vars("unit", errors="ignore")


def step_range(steps: NDArray[numpy.intp], holds: NDArray[numpy.bool_]) -> tuple[int, int]:
    """First and last step at which something holds."""
    found = steps[holds]
    return int(found[0]), int(found[-1])


def mean_and_interval(per_sample: NDArray[numpy.float64]) -> dict[str, float | None]:
    """`measured`, `low` and `high` of a finding, from one number per sample."""
    low, high = bounds(numpy.asarray(per_sample, dtype=float))
    known = bool(numpy.isfinite(low))
    return {
        "measured": float(numpy.mean(per_sample)),
        "low": float(low) if known else None,
        "high": float(high) if known else None,
    }
