"""From healthy runs of one model to its calibration.

What a rule measures in healthy pictures is found on pictures that the reference has not seen: they
are dealt into two halves, each of which is the reference of the other.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence

import numpy
import xarray
from numpy.typing import NDArray

from ditscope.analysis.diagnose.calibration import (
    CalibratedSettings,
    Calibration,
    ClassReference,
    Extremes,
    Numbers,
    Spread,
)
from ditscope.analysis.diagnose.objects import MEASURES
from ditscope.analysis.diagnose.reference import Reference, interpolated, signatures
from ditscope.analysis.diagnose.rule import Rule
from ditscope.analysis.diagnose.seen import Seen
from ditscope.analysis.recorded import METRIC
from ditscope.core.axes import BRANCHES, Branch
from ditscope.errors import BadRequest

LEVELS = tuple(round(level, 4) for level in numpy.linspace(0, 1, 17).tolist())
LEAST_PICTURES = 2
"""Of a noise level, for a deviation; with fewer the next level's is taken."""
DIGITS = 4
SHRUNK = 1.0
"""Pictures like all others that each class is given: the mean of few is mostly noise."""

Array = NDArray[numpy.float64]


def calibrated(seen: Sequence[Seen], rules: Iterable[Rule], weights: dict[str, str]) -> Calibration:
    """The calibration that healthy runs of one model give.

    Args:
        seen: Runs with statistics and guidance; with Q and K of late steps, objects are calibrated
            too. At least two, of the same network.
        rules: What is to be calibrated.
        weights: Digest of the weights by the number type they compute in.

    Raises:
        BadRequest: fewer than two runs, or runs of different networks.
    """
    if len(seen) < 2:
        raise BadRequest(f"found {len(seen)} runs", field="runs", expected="at least 2")
    if len({each.sites for each in seen}) > 1:
        raise BadRequest("runs of different networks", field="runs")
    rules, seen = list(rules), list(seen)
    found = _reference(seen, weights)
    halves = _halves(seen)
    measured: dict[str, list[Array]] = {}
    for half, other in (halves, halves[::-1]):
        reference = Reference(_reference(half, weights))
        for each in other:
            again = each.part(range(len(each.labels)), reference)
            for rule in rules:
                try:
                    worst = rule.worst(again)
                except BadRequest:
                    continue
                if worst is not None and numpy.isfinite(worst).any():
                    measured.setdefault(rule.name, []).append(worst[numpy.isfinite(worst)])
    extremes = {name: _extremes(numpy.concatenate(each)) for name, each in measured.items()}
    return found.model_copy(update={"rules": extremes})


def _halves(seen: Sequence[Seen]) -> tuple[list[Seen], list[Seen]]:
    """Half of the pictures of every run, drawn once and for all, and the other half."""
    halves: tuple[list[Seen], list[Seen]] = [], []
    for number, each in enumerate(seen):
        order = numpy.random.default_rng(number).permutation(len(each.labels)).tolist()
        cut = (len(order) + number % 2) // 2
        for half, part in zip(halves, (order[:cut], order[cut:]), strict=True):
            if part:
                half.append(each.part(part))
    return halves


def _reference(seen: Sequence[Seen], weights: dict[str, str]) -> Calibration:
    """Statistics, objects and classes of runs."""
    manifests = [each.run.manifest for each in seen]
    metrics = [
        name for name in manifests[0].statistics if all(name in m.statistics for m in manifests)
    ]
    branches: list[Branch] = [
        name for name in BRANCHES if all(name in each.branches for each in seen)
    ]
    found = Calibration(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        model=manifests[0].model.name,
        weights=weights,
        settings=CalibratedSettings(
            steps=_ends([m.sampler.steps for m in manifests]),
            cfg_scale=_ends([m.guidance.scale for m in manifests]),
            samplers=tuple(sorted({m.sampler.name for m in manifests})),
            pictures=sum(len(each.labels) for each in seen),
        ),
        levels=LEVELS,
        metrics=tuple(metrics),
        statistics={branch: _statistics(seen, metrics, branch) for branch in branches},
        objects=_objects(seen),
    )
    classes, sd = _classes(seen, Reference(found))
    return found.model_copy(update={"classes": classes, "class_sd": sd})


def _statistics(seen: Sequence[Seen], metrics: Sequence[str], branch: Branch) -> Spread:
    curves = []
    for each in seen:
        values = each.statistics(branch).sel({METRIC: list(metrics)})
        curves.append(_at_levels(values.transpose("step", "sample", METRIC, "layer", "head")))
    mean, sd = _spread(numpy.concatenate(curves, axis=1))  # (level, metric, layer, head)
    return _packed(("metric", "level", "layer", "head"), mean.swapaxes(0, 1), sd.swapaxes(0, 1))


def _objects(seen: Sequence[Seen]) -> dict[str, Spread]:
    measured = []
    for each in seen:
        try:
            measured.append(each.objects())
        except BadRequest:
            return {}
    found = {}
    for name in MEASURES:
        curves = [_at_levels(each[name].transpose("step", "sample", "layer")) for each in measured]
        mean, sd = _spread(numpy.concatenate(curves, axis=1))
        found[name] = _packed(("level", "layer"), mean, sd)
    return found


def _classes(
    seen: Sequence[Seen], reference: Reference
) -> tuple[dict[str, ClassReference], Numbers]:
    """The signature of every class, and the spread of signatures within a class."""
    rows: list[Array] = []
    names: list[str] = []
    for each in seen:
        rows.append(signatures(reference.departures(each.statistics("cond"), "cond")))
        names += each.labels
    own = numpy.concatenate(rows)
    labels = numpy.array(names)
    means = {name: own[labels == name] for name in sorted(set(names))}
    apart = numpy.concatenate([each - each.mean(0) for each in means.values()])
    free = max(len(own) - len(means), 1)
    sd = numpy.sqrt(numpy.maximum((apart**2).sum(0) / free, 0.05**2))
    classes = {
        name: ClassReference(mean=_numbers(each.sum(0) / (len(each) + SHRUNK), 2), count=len(each))
        for name, each in means.items()
    }
    return classes, _numbers(sd, 2)


def _at_levels(values: xarray.DataArray) -> Array:
    """Curves (step, sample, ...) at `LEVELS`: (level, sample, ...), NaN beyond their ends."""
    noise = values["noise_level"].values
    order = numpy.unique(noise, return_index=True)[1]  # a solver may ask twice at one level
    x, data = noise[order], values.values[order]
    at = numpy.array(LEVELS)
    if len(x) < 2:
        return numpy.full((len(at), *data.shape[1:]), numpy.nan)
    found = interpolated(x, data, at)
    found[(at < x[0] - 1e-9) | (at > x[-1] + 1e-9)] = numpy.nan
    return found


def _spread(curves: Array) -> tuple[Array, Array]:
    """Mean and deviation over pictures (level, picture, ...); levels without are the nearest's."""
    count = numpy.isfinite(curves).sum(1)
    known = count >= LEAST_PICTURES
    total = numpy.nansum(curves, axis=1)
    with numpy.errstate(all="ignore"):
        mean = total / count
        sd = numpy.sqrt(numpy.nansum((curves - mean[:, None]) ** 2, axis=1) / (count - 1))
    for ends in (mean, sd):
        ends[~known] = numpy.nan
        flat = ends.reshape(len(ends), -1)
        for column in flat.T:
            there = numpy.nonzero(numpy.isfinite(column))[0]
            if len(there):
                nearest = abs(numpy.arange(len(column))[:, None] - there).argmin(1)
                column[:] = column[there[nearest]]
    return mean, sd


def _extremes(values: Array) -> Extremes:
    least, middle, most = (float(f"{v:.5g}") for v in numpy.quantile(values, [0, 0.5, 1]))
    return Extremes(least=least, median=middle, greatest=most, count=len(values))


def _packed(axes: tuple[str, ...], mean: Array, sd: Array) -> Spread:
    return Spread(axes=axes, shape=mean.shape, mean=_numbers(mean), sd=_numbers(sd))


def _numbers(values: Array, digits: int = DIGITS) -> Numbers:
    """An array as it is written: flat, rounded to so many significant digits."""
    return tuple(
        float(f"{value:.{digits}g}") if numpy.isfinite(value) else None
        for value in values.ravel().tolist()
    )


def _ends(values: Sequence[float]) -> tuple:
    return min(values), max(values)
