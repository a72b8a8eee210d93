"""A run held against the calibration of its model: where it departs from healthy runs."""

from __future__ import annotations

from functools import cached_property

import numpy
import xarray
from numpy.typing import NDArray

from ditscope.analysis.diagnose.calibration import (
    Calibration,
    Numbers,
    Spread,
    calibration_path,
    read_calibration,
)
from ditscope.analysis.recorded import METRIC
from ditscope.core.axes import Branch
from ditscope.errors import BadRequest, foreign
from ditscope.runs.reader import Run

LEAST_SPREAD = 0.02
"""Standard deviations are taken to be at least this share of the mean: what is nearly constant in
the healthy runs may still differ a little with the sampler, the number type and the machine."""
FAR = 4.0
"""A signature counts departures up to this many deviations: one wild number is not its class."""
BANDS = (0.5,)
"""Noise levels between the parts of a run that a signature is made of."""

Array = NDArray[numpy.float64]


class Reference:
    """Healthy runs of a model, and what of a run lies outside of them."""

    def __init__(self, calibration: Calibration, *, sides: dict[str, str] | None = None) -> None:
        """`sides`: whether a rule looks for what is "at least" or "at most" as far as healthy."""
        self.calibration = calibration
        self._sides = sides or {}

    def healthy(self, rule: str) -> tuple[float, int] | None:
        """The most extreme healthy measurement of a rule, and of how many pictures; or None."""
        found = self.calibration.rules.get(rule)
        if found is None:
            return None
        low = self._sides.get(rule) == "at most"
        return (found.least if low else found.greatest), found.count

    def departures(self, values: xarray.DataArray, branch: Branch) -> xarray.DataArray:
        """`values` (metric, step, ...) as standard deviations from the healthy mean.

        Of the metrics that the calibration knows, at the noise level of each step. Raises
        BadRequest if it does not know the branch.
        """
        mean, sd = self.expected(values, branch)
        known = values.sel({METRIC: mean[METRIC].values.tolist()})
        return ((known - mean) / sd).transpose(*values.dims)

    def expected(
        self, values: xarray.DataArray, branch: Branch
    ) -> tuple[xarray.DataArray, xarray.DataArray]:
        """Healthy mean and deviation (metric, step, layer, head) at the steps of `values`."""
        found = self.calibration.statistics.get(branch)
        if found is None:
            raise BadRequest(
                f"the calibration holds nothing of the branch {foreign(repr(branch))}",
                field="calibration",
            )
        names = [
            name for name in self.calibration.metrics if name in values[METRIC].values.tolist()
        ]
        rows = [self.calibration.metrics.index(name) for name in names]
        mean, sd = (each[rows].swapaxes(0, 1) for each in unpacked(found))
        at = values["noise_level"].values
        axes = ("step", METRIC, "layer", "head")
        coords = {METRIC: names, "step": values["step"].values}
        mean, sd = (interpolated(self.levels, each, at) for each in (mean, sd))
        sd = numpy.maximum(sd, LEAST_SPREAD * abs(mean))
        return xarray.DataArray(mean, coords, axes), xarray.DataArray(sd, coords, axes)

    def object_departures(self, measures: xarray.Dataset, name: str) -> xarray.DataArray | None:
        """A measure of `objects` as standard deviations from healthy; None if it is not known."""
        found = self.calibration.objects.get(name)
        if found is None:
            return None
        mean, sd = unpacked(found)
        at = measures["noise_level"].values
        axes, coords = ("step", "layer"), {"step": measures["step"].values}
        mean, sd = (
            xarray.DataArray(interpolated(self.levels, each, at), coords, axes)
            for each in (mean, sd)
        )
        return ((measures[name] - mean) / sd).transpose(*measures[name].dims)

    def strangeness(self, values: xarray.DataArray) -> tuple[Array, tuple[str, ...]]:
        """How badly each class fits each picture: (sample, class), and the names of the classes.

        Mean square of the deviations of a picture's signature from that of the class.
        """
        names = tuple(self.calibration.classes)
        if not names:
            raise BadRequest("the calibration knows no classes", field="calibration")
        own = signatures(self.departures(values, "cond"))
        means = numpy.array([floats(self.calibration.classes[name].mean) for name in names])
        if own.shape[1] != means.shape[1]:
            raise BadRequest("the run recorded other metrics than the calibration", field=METRIC)
        sd = floats(self.calibration.class_sd)
        apart = (own[:, None] - means) / sd
        return numpy.nanmean(apart**2, axis=-1), names

    @cached_property
    def levels(self) -> Array:
        """The noise levels of the calibration, rising."""
        return numpy.array(self.calibration.levels)


def find_reference(run: Run, sides: dict[str, str]) -> tuple[Reference | None, str]:
    """The reference of a run's model, if there is one that holds for it, and in words which.

    A calibration of other weights, or of other settings of the sampler, is named and not used.

    Raises:
        BadConfig: there is a file, but it is damaged.
    """
    model = run.manifest.model
    path = calibration_path(model.source, model.weights)
    again = f"`ditscope calibrate {foreign(model.source)}` makes one"
    if not path.is_file():
        return None, f"none: {foreign(path)} does not exist; {again}"
    calibration = read_calibration(path)
    if calibration.weights.get(model.dtype) != model.weights_sha256:
        return None, f"not used: {foreign(path)} is of other weights than the run; {again}"
    beyond = outside(run, calibration)
    if beyond:
        return None, f"not used: {beyond}"
    return Reference(calibration, sides=sides), describe(calibration)


def describe(calibration: Calibration) -> str:
    """What a calibration is, in words."""
    settings = calibration.settings
    return (
        f"{settings.pictures} healthy pictures of {foreign(calibration.model)}, "
        f"{settings.steps[0]} steps or more, guidance "
        f"{settings.cfg_scale[0]:g} to {settings.cfg_scale[1]:g}"
    )


def outside(run: Run, calibration: Calibration) -> str:
    """Which setting of a run the calibration does not cover, in words; "" if it covers all."""
    settings, sampler = calibration.settings, run.manifest.sampler
    scale, shape = run.manifest.guidance.scale, calibration.statistics["cond"].shape[2:]
    sites = run.manifest.sites
    own = (len(sites), max(site.heads for site in sites))
    if own != shape:
        return f"the run has {own[0]} layers of {own[1]} heads, the calibration {shape}"
    if sampler.steps < settings.steps[0]:  # more steps lead to nearly the same latents
        return f"the run has {sampler.steps} steps, the calibration at least {settings.steps[0]}"
    low, high = settings.cfg_scale
    if not low <= scale <= high:
        return f"the run has guidance {scale:g}, the calibration {low:g} to {high:g}"
    if sampler.name not in settings.samplers:
        return (
            f"the run was drawn with {foreign(sampler.name)}, the calibration with "
            f"{', '.join(settings.samplers)}"
        )
    if run.manifest.guidance.interval is not None:
        return "guidance was on at some noise levels only"
    return ""


def signatures(departures: xarray.DataArray) -> Array:
    """What is particular of each picture: (sample, numbers), from departures of healthy runs.

    The mean departure of every metric and head over each band of noise levels.
    """
    values = departures.transpose("sample", "step", ...).clip(-FAR, FAR)
    band = numpy.digitize(departures["noise_level"].values, BANDS)
    parts = []
    for number in range(len(BANDS) + 1):
        here = values.values[:, band == number]
        if not here.shape[1]:
            raise BadRequest("the run has no steps with much, or with little, noise", field="step")
        parts.append(here.mean(1).reshape(len(here), -1))
    return numpy.concatenate(parts, axis=1)


def interpolated(levels: Array, values: Array, at: Array) -> Array:
    """`values` (level, ...) on a straight line between rising `levels`, at (n,): (n, ...)."""
    place = numpy.clip(numpy.searchsorted(levels, at) - 1, 0, len(levels) - 2)
    width = levels[place + 1] - levels[place]
    share = numpy.clip((at - levels[place]) / width, 0, 1).reshape(-1, *[1] * (values.ndim - 1))
    return values[place] * (1 - share) + values[place + 1] * share


def unpacked(spread: Spread) -> tuple[Array, Array]:
    """Mean and standard deviation as arrays."""
    return floats(spread.mean).reshape(spread.shape), floats(spread.sd).reshape(spread.shape)


def floats(numbers: Numbers) -> Array:
    """Numbers of a file as an array, NaN where there is none."""
    return numpy.array(numbers, dtype=float)
