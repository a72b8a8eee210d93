"""What rules about departures from healthy runs share: how far off a layer is, and where it began.

A defect of one layer changes all that comes after it: the layers above in the same step, and all
layers in the steps that follow, because the latent is another. What comes before it in the same
step is as in healthy runs. So the origin is the first layer that is off, in the first step in which
any is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import xarray

from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.seen import Seen
from ditscope.analysis.recorded import EVEN_METRICS, METRIC


def of_metric(seen: Seen, metric: str) -> xarray.DataArray:
    """Signed departures of one metric in standard deviations: (step, sample, layer, head)."""
    seen.statistic(metric)  # says what to record if there is none
    return seen.departures().sel({METRIC: metric}, drop=True).drop_vars("unit", errors="ignore")


def of_layers(seen: Seen) -> xarray.DataArray:
    """How far each layer is off, (step, sample, layer): root mean square over metrics and heads."""
    values = seen.departures()
    kept = [name for name in EVEN_METRICS if name in values[METRIC].values.tolist()]
    squares = (values.sel({METRIC: kept}) ** 2).mean([METRIC, "head"], skipna=True)
    return squares**0.5


def worst_of(values: xarray.DataArray) -> numpy.ndarray:
    """The largest size of each sample (sample,), over all else."""
    data = abs(values).transpose("sample", ...).values
    return numpy.nanmax(data.reshape(len(data), -1), axis=1)


def origin(values: xarray.DataArray, threshold: Threshold) -> tuple[int, int] | None:
    """Step and layer where (step, layer) first reaches the threshold; None if it never does."""
    holds = threshold.reached(values.transpose("step", "layer").values)
    if not holds.any():
        return None
    step = int(holds.any(1).argmax())
    layer = int(holds[step].argmax())
    return int(values["step"].values[step]), int(values["layer"].values[layer])


def words(layers: Sequence[int]) -> str:
    """`layer 3`, `layers 3 and 4`, `layers 3 to 7`."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if list(layers) == list(range(layers[0], layers[-1] + 1)) and len(layers) > 2:
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"
