"""Phases of a run: stretches of steps in which attention changes at a steady rate.

The statistics of every layer, each scaled to unit variance over the steps, are fitted by straight
lines, one per phase. For a number of phases the boundaries are those with the least squared error,
found exactly by dynamic programming over all (Bellman 1961, doi:10.1145/366573.366611). The number
is the smallest that leaves at most a tenth of the variance over steps unexplained, beyond what
differences between samples explain: a steady drift is one phase, and so is noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy
import xarray
from numpy.typing import NDArray

from ditscope.analysis.recorded import METRIC, recorded
from ditscope.core.axes import Branch
from ditscope.runs.reader import Run

UNEXPLAINED = 0.1
LEAST_STEPS = 3
"""Steps of a phase: two points are always on a line."""
MOST_PHASES = 6
FLAT = 1e-6
"""A series whose spread is below this share of its size does not change."""

Array = NDArray[numpy.float64]


def phases(
    run: Run,
    *,
    metrics: Sequence[str] | None = None,
    layers: Iterable[int] | None = None,
    branch: Branch = "cond",
) -> xarray.Dataset:
    """The phases of a run, noisiest first.

    Args:
        run: a recorded run; with fewer than six steps it is one phase.
        metrics: names of statistics; None: all that the run recorded.
        layers: only these; None: all.
        branch: "cond" or "uncond".

    Returns:
        Along `phase`: `first_step` and `last_step`, `first_noise` and `last_noise`; `first_least`
        and `first_most`, between which the first step stays if any one sample is left out (NaN for
        one sample). Along (phase, metric): `level`, the mean, and `change`, what the line rises by
        over the phase, mean over layers and heads in the metric's `unit`. `explained` in attrs: the
        share of the variance over steps that the lines explain.

    Raises:
        BadRequest: no statistics, or a metric, layer or branch that is not in the run.
    """
    values = recorded(run, metrics=metrics, layers=layers, branch=branch)
    series = values.mean("head", skipna=True).transpose("step", "sample", METRIC, "layer")
    data = numpy.asarray(series, dtype=float).reshape(*series.shape[:2], -1)
    starts, unexplained = _starts(data)
    noise = values["noise_level"].values
    steps = values["step"].values
    lasts = [*[start - 1 for start in starts[1:]], len(steps) - 1]
    least, most = _left_out(data, starts)
    curves = series.mean(["sample", "layer"], skipna=True)
    level, change = _levels(numpy.asarray(curves), starts, lasts)
    return xarray.Dataset(
        {
            "first_step": ("phase", steps[starts]),
            "last_step": ("phase", steps[lasts]),
            "first_noise": ("phase", noise[starts]),
            "last_noise": ("phase", noise[lasts]),
            "first_least": ("phase", least),
            "first_most": ("phase", most),
            "level": (("phase", METRIC), level),
            "change": (("phase", METRIC), change),
        },
        coords={METRIC: values[METRIC], "unit": values["unit"]},
        attrs={"explained": 1 - unexplained, "branch": branch, "samples": values.sizes["sample"]},
    )


def _starts(data: Array, count: int | None = None) -> tuple[list[int], float]:
    """First steps of the phases of (step, sample, series), and the variance left unexplained.

    `count` fixes the number of phases; None: as the module says.
    """
    scaled, noise = _scaled(data)
    steps, total = len(scaled), float(scaled.size)
    if not total:
        return [0], 0.0
    cost = _line_costs(scaled)
    most = min(MOST_PHASES, max(steps // LEAST_STEPS, 1)) if count is None else count
    for found, error in _partitions(cost, most):
        enough = len(found) == count if count else error <= UNEXPLAINED * total + noise
        if enough or len(found) == most:
            return found, error / total
    raise AssertionError("a partition into `most` phases exists")


def _scaled(data: Array) -> tuple[Array, float]:
    """Mean over samples of each series that changes, at unit variance, and its expected noise.

    The noise is the squared error that lines through the truth would leave. It is estimated from
    how the samples move against their mean from step to step, and taken two standard errors of
    that estimate higher: 0 for one sample or one step.
    """
    mean = data.mean(1)
    spread = mean.std(0)
    with numpy.errstate(invalid="ignore"):
        changes = spread > FLAT * numpy.abs(mean).max(0, initial=0.0)  # false for NaN
    mean, spread = mean[:, changes], spread[changes]
    scaled = (mean - mean.mean(0)) / spread
    samples = data.shape[1]
    if samples < 2 or len(mean) < 2:
        return scaled, 0.0
    apart = data[:, :, changes] - mean[:, None]
    moves = numpy.diff(apart, axis=0)
    variance = (moves**2).sum(1) / (2 * (samples - 1) * samples)
    per_step = variance.mean(0) / spread**2
    margin = 1 + 2 / numpy.sqrt(max(len(scaled) - 1, 1) * (samples - 1))
    return scaled, float(per_step.sum() * len(scaled) * margin)


def _line_costs(scaled: Array) -> Array:
    """Squared error of the best line over steps i to j, summed over series: (i, j), i <= j."""
    steps = len(scaled)
    cost = numpy.full((steps, steps), numpy.inf)
    for i in range(steps):
        y = scaled[i:]
        n = numpy.arange(1.0, len(y) + 1)
        x = numpy.arange(float(len(y)))
        sums, squares = y.cumsum(0), (y * y).cumsum(0).sum(1)
        centred = squares - (sums * sums).sum(1) / n
        slope = (x[:, None] * y).cumsum(0) - ((n - 1) / 2)[:, None] * sums
        width = n * (n * n - 1) / 12  # sum of squares of x about its mean
        gain = (slope * slope).sum(1) / numpy.maximum(width, 0.5)  # one step has no slope
        cost[i, i:] = numpy.maximum(centred - gain, 0.0)
    return cost


def _partitions(cost: Array, most: int) -> Iterable[tuple[list[int], float]]:
    """For 1, 2, ... `most` phases: the first steps of the best ones, and their squared error."""
    steps = len(cost)
    best = cost[0].copy()
    first = numpy.zeros((1, steps), int)
    yield [0], float(best[-1])
    for _ in range(1, most):
        following = numpy.full(steps, numpy.inf)
        chosen = numpy.zeros(steps, int)
        for j in range(LEAST_STEPS, steps):
            starts = numpy.arange(LEAST_STEPS, j - LEAST_STEPS + 2)
            if starts.size:
                totals = best[starts - 1] + cost[starts, j]
                chosen[j] = starts[totals.argmin()]
                following[j] = totals.min()
        best, first = following, numpy.vstack([first, chosen])
        starts, end = [], steps - 1
        for row in first[:0:-1]:
            starts.insert(0, int(row[end]))
            end = starts[0] - 1
        yield [0, *starts], float(best[-1])


def _left_out(data: Array, starts: list[int]) -> tuple[Array, Array]:
    """Least and greatest first step of each phase, as index, when any one sample is left out."""
    samples = data.shape[1]
    if samples < 2:
        return numpy.full(len(starts), numpy.nan), numpy.full(len(starts), numpy.nan)
    found = [_starts(numpy.delete(data, left, axis=1), len(starts))[0] for left in range(samples)]
    found = [each for each in found if len(each) == len(starts)] or [starts]
    return numpy.min(found, axis=0).astype(float), numpy.max(found, axis=0).astype(float)


def _levels(curves: Array, starts: list[int], lasts: list[int]) -> tuple[Array, Array]:
    """Mean of (step, metric) over each phase, and the rise of its line from first to last step."""
    levels, changes = [], []
    for first, last in zip(starts, lasts, strict=True):
        part = curves[first : last + 1]
        x = numpy.arange(len(part)) - (len(part) - 1) / 2
        levels.append(part.mean(0))
        slope = (x[:, None] * part).sum(0) / max(float((x * x).sum()), 1.0)
        changes.append(slope * (len(part) - 1))
    return numpy.array(levels), numpy.array(changes)
