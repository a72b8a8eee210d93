"""What differs between two runs: classes, seeds, checkpoints, or models of different size.

Both are brought to shared coordinates: statistics in units of even attention (so that grids of any
size compare), four ranges of noise level, and layers by number if both models have the same, else
by relative depth with the mean over heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy
import xarray
from numpy.typing import NDArray

from ditscope.analysis import testing
from ditscope.analysis.confidence import bounds
from ditscope.analysis.recorded import (
    EVEN_METRICS,
    METRIC,
    metric_names,
    recorded,
    relative_to_even,
)
from ditscope.core.axes import Branch
from ditscope.core.labels import find_class
from ditscope.errors import BadRequest, listed
from ditscope.runs.reader import Run

NOISE_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)
PLACE = (METRIC, "noise", "layer", "head")
SIGNIFICANT = 0.05
"""Adjusted p up to which a difference counts as found: of those that count, one in twenty is
expected to be none."""
FEW = 4
COLUMNS = 512
"""Numbers that are tested together: bounds memory."""

Array = NDArray[numpy.float64]


class _Sides(NamedTuple):
    """Values of both runs on shared coordinates, (sample, metric, noise, layer, head)."""

    a: xarray.DataArray
    b: xarray.DataArray
    paired: bool  # sample i of both started from the same noise
    layers: str  # what the layer axis is


def compare(
    run_a: Run,
    run_b: Run,
    *,
    class_a: str | int | None = None,
    class_b: str | int | None = None,
    metrics: Sequence[str] | None = None,
    branch: Branch = "cond",
) -> xarray.Dataset:
    """Every difference between two runs, b less a, with how large and how sure it is.

    Where sample i of both runs has the same seed, pairs are compared: what they share of the noise
    does not count as chance.

    Args:
        run_a: the run that is compared with.
        run_b: the run that may differ; the same run for two of its classes.
        class_a: only samples of this class, by name or index; None: all.
        class_b: the same for `run_b`.
        metrics: names of statistics; None: those that both runs recorded and that have a value for
            even attention.
        branch: "cond" or "uncond".

    Returns:
        (metric, noise, layer, head): `mean_a`, `mean_b`, `difference` in units of even attention;
        `low`, `high`: 95 % bootstrap interval of the difference; `effect`: the difference in
        standard deviations (Hedges' g); `p` of a permutation test and `p_adjusted` for all tests at
        once (false discovery rate). Uncertainties are NaN where a run has one sample. `noise` is
        the middle of a range of noise levels; `layer` the number, or the relative depth (0 to 1)
        with one `head`, the mean. `attrs["design"]` says "paired by seed" or "independent".

    Raises:
        BadRequest: no statistics, a class, metric or branch that is not in a run, or no range of
            noise levels that both have.
    """
    sides = _on_shared_coordinates(
        _values(run_a, class_a, metrics, branch, run_b),
        _values(run_b, class_b, metrics, branch, run_a),
        _same_heads(run_a, run_b),
    )
    shape = sides.a.shape[1:]
    a, b = (side.values.reshape(side.sizes["sample"], -1) for side in (sides.a, sides.b))
    blocks = [
        _tested(a[:, first : first + COLUMNS], b[:, first : first + COLUMNS], sides.paired)
        for first in range(0, a.shape[1], COLUMNS)
    ]
    found = {name: numpy.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    found["p_adjusted"] = testing.adjusted(found["p"])
    coords = {name: sides.a[name] for name in (*PLACE, "unit")}
    return xarray.Dataset(
        {name: (PLACE, values.reshape(shape)) for name, values in found.items()},
        coords=coords,
        attrs={
            "design": "paired by seed" if sides.paired else "independent",
            "layers": sides.layers,
            "samples": (len(a), len(b)),
            "branch": branch,
        },
    )


def most_changed(comparison: xarray.Dataset, count: int = 10) -> xarray.Dataset:
    """The places that differ most, first those that are beyond chance: along `place`.

    Order: adjusted p at most 0.05 first, then by size of the effect. With fewer than four samples
    in a run the spread that an effect is measured in is mostly chance: then by the difference, as a
    multiple of the root mean square difference of its metric.
    """
    difference = comparison["difference"]
    typical = (difference**2).mean([axis for axis in PLACE if axis != METRIC]) ** 0.5
    few = min(comparison.attrs["samples"]) < FEW
    size = difference / typical.where(typical > 0) if few else comparison["effect"]
    ranked = comparison.assign(size=abs(size).fillna(0))
    flat = ranked.stack(place=PLACE, create_index=False).dropna("place", subset=["difference"])
    beyond = (flat["p_adjusted"] <= SIGNIFICANT).values
    order = numpy.lexsort((-flat["size"].values, ~beyond))
    return flat.isel(place=order[:count]).drop_vars("size")


def _values(
    run: Run,
    label: str | int | None,
    metrics: Sequence[str] | None,
    branch: Branch,
    other: Run,
) -> xarray.DataArray:
    """(metric, step, sample, layer, head) of the samples of one class, relative to even."""
    if metrics is None:
        theirs = metric_names(other)
        metrics = [name for name in metric_names(run) if name in theirs and name in EVEN_METRICS]
    if not metrics or not set(metrics) <= set(EVEN_METRICS):
        raise BadRequest(
            "the runs share no statistic that can be put in units of even attention"
            if not metrics
            else f"{listed(metrics)} cannot all be put in units of even attention",
            field=METRIC,
            expected=listed(EVEN_METRICS),
        )
    found = relative_to_even(run, recorded(run, metrics=metrics, branch=branch))
    manifest = run.manifest
    noise = f"{manifest.latent_shape} {manifest.model.process}"  # of a seed: where it is drawn
    starts = numpy.array([f"{seed} {noise}" for seed in manifest.sample_seeds], dtype=object)
    found = found.assign_coords(seed=("sample", starts))
    if label is None:
        return found
    records = run.manifest.labels
    names = sorted({record.name for record in records})
    wanted = (
        names[find_class(label, names)]
        if isinstance(label, str)
        else next((record.name for record in records if record.index == label), None)
    )
    if wanted is None:
        indices = sorted({record.index for record in records})
        raise BadRequest(
            f"no sample is of class {label}", field="class", expected=f"one of {listed(indices)}"
        )
    return found.isel(sample=[i for i, record in enumerate(records) if record.name == wanted])


def _same_heads(run_a: Run, run_b: Run) -> bool:
    """Whether layer and head numbers mean the same place in both models."""
    shapes = [[(site.name, site.heads) for site in run.manifest.sites] for run in (run_a, run_b)]
    return shapes[0] == shapes[1]


def _on_shared_coordinates(a: xarray.DataArray, b: xarray.DataArray, same_heads: bool) -> _Sides:
    metrics = [name for name in a[METRIC].values.tolist() if name in b[METRIC].values.tolist()]
    a, b = (_by_noise(side.sel({METRIC: metrics})) for side in (a, b))
    both = (a.notnull().any(_but("noise", a)) & b.notnull().any(_but("noise", b))).values
    if not both.any():
        raise BadRequest(
            "the runs have no range of noise levels in common",
            field="noise",
            expected="steps of both runs in one of " + ", ".join(map(str, NOISE_EDGES)),
        )
    a, b = a.isel(noise=both), b.isel(noise=both)
    layers = "number"
    if not same_heads:
        depths = numpy.linspace(0, 1, min(a.sizes["layer"], b.sizes["layer"]))
        a, b, layers = _by_depth(a, depths), _by_depth(b, depths), "relative depth"
    paired = a["seed"].values.tolist() == b["seed"].values.tolist()
    order = ("sample", *PLACE)
    return _Sides(a.transpose(*order), b.transpose(*order), paired, layers)


def _but(axis: str, values: xarray.DataArray) -> list[str]:
    return [str(name) for name in values.dims if name != axis]


def _by_noise(values: xarray.DataArray) -> xarray.DataArray:
    """Mean over the steps in each range of noise levels; NaN for a range without steps."""
    level = values["noise_level"].values
    edges = numpy.array(NOISE_EDGES)
    which = numpy.clip(numpy.searchsorted(edges, level, side="left") - 1, 0, len(edges) - 2)
    nothing = values.isel(step=0, drop=True) * numpy.nan
    parts = [
        values.isel(step=which == i).mean("step", skipna=False) if (which == i).any() else nothing
        for i in range(len(edges) - 1)
    ]
    middles = xarray.DataArray((edges[1:] + edges[:-1]) / 2, dims="noise", name="noise")
    return xarray.concat(parts, middles, coords="minimal", compat="override", join="exact")


def _by_depth(values: xarray.DataArray, depths: Array) -> xarray.DataArray:
    """Mean over heads, by linear interpolation at relative depths; the axis is still `layer`."""
    mean = values.mean("head", skipna=True).drop_vars(["site"], errors="ignore")
    own = mean["layer"].values / max(mean.sizes["layer"] - 1, 1)
    mean = mean.transpose(..., "layer")
    data = mean.values.reshape(-1, len(own))
    found = numpy.stack([numpy.interp(depths, own, row) for row in data])
    shape = (*mean.shape[:-1], len(depths))
    kept = {name: c for name, c in mean.coords.items() if "layer" not in c.dims}
    result = xarray.DataArray(found.reshape(shape), kept, mean.dims)
    return result.assign_coords(layer=depths).expand_dims(head=["mean"])


def _tested(a: Array, b: Array, paired: bool) -> dict[str, Array]:
    """Everything about the columns of (sample, column)."""
    found = {"mean_a": a.mean(0), "mean_b": b.mean(0), "difference": b.mean(0) - a.mean(0)}
    if paired:
        low, high = bounds(b - a)
        effect, p = testing.paired_g(b - a), testing.sign_flip_p(b - a)
    else:
        low, high = testing.difference_bounds(a, b)
        effect, p = testing.hedges_g(a, b), testing.permutation_p(a, b)
    return found | {"low": low, "high": high, "effect": effect, "p": p}
