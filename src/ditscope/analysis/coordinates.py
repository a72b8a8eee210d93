"""Statistics of runs on coordinates that any two of them share.

Statistics are put in units of even attention (so that grids of any size compare), steps into four
ranges of noise level, and layers by number if both models have the same, else by relative depth
with the mean over heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy
import xarray
from numpy.typing import NDArray

from ditscope.analysis.place import step_record
from ditscope.analysis.recorded import (
    EVEN_METRICS,
    METRIC,
    metric_names,
    recorded,
    relative_to_even,
)
from ditscope.core.axes import Branch
from ditscope.core.labels import find_class
from ditscope.errors import BadRequest, foreign, listed
from ditscope.runs.reader import Run

NOISE_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)
PLACE = (METRIC, "noise", "layer", "head")

Array = NDArray[numpy.float64]


class Sides(NamedTuple):
    """Values of both runs on shared coordinates, (sample, metric, noise, layer, head)."""

    a: xarray.DataArray
    b: xarray.DataArray
    paired: bool  # sample i of both started from the same noise
    layers: str  # what the layer axis is


def comparable(
    run: Run,
    label: str | int | None,
    metrics: Sequence[str] | None,
    branch: Branch,
    other: Run,
    steps: Iterable[int] | None = None,
) -> xarray.DataArray:
    """(metric, step, sample, layer, head) of the samples of one class, relative to even.

    Args:
        run: the run that is read.
        label: only samples of this class, by name or index; None: all.
        metrics: names of statistics; None: those that `other` recorded too.
        branch: "cond" or "uncond".
        other: the run it will be compared with.
        steps: only these; None: all.

    Raises:
        BadRequest: a class, step, metric or branch that is not in the run.
    """
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
    found = found.isel(sample=class_samples(run, label))
    return found if steps is None else found.sel(step=_named(run, steps, found))


def _named(run: Run, steps: Iterable[int], found: xarray.DataArray) -> list[int]:
    """Steps that the caller names, each recorded for this branch."""
    chosen = sorted({step_record(run, step).index for step in steps})
    evaluated = found["step"].values.tolist()
    if not chosen or not set(chosen) <= set(evaluated):
        raise BadRequest(
            f"found {listed(chosen)}", field="steps", expected=f"some of {listed(evaluated, 20)}"
        )
    return chosen


def class_samples(run: Run, label: str | int | None) -> list[int]:
    """Samples of a class, by name or index; None: all. BadRequest if there are none."""
    records = run.manifest.labels
    if label is None:
        return list(range(len(records)))
    names = sorted({record.name for record in records})
    wanted = (
        names[find_class(label, names)]
        if isinstance(label, str)
        else next((record.name for record in records if record.index == label), None)
    )
    if wanted is None:
        indices = sorted({record.index for record in records})
        raise BadRequest(
            f"no sample is of class {foreign(label)}",
            field="class",
            expected=f"one of {listed(indices)}",
        )
    return [i for i, record in enumerate(records) if record.name == wanted]


def same_heads(run_a: Run, run_b: Run) -> bool:
    """Whether layer and head numbers mean the same place in both models."""
    shapes = [[(site.name, site.heads) for site in run.manifest.sites] for run in (run_a, run_b)]
    return shapes[0] == shapes[1]


def on_shared_coordinates(
    a: xarray.DataArray, b: xarray.DataArray, *, same_heads: bool, named_steps: bool = False
) -> Sides:
    """Both sides by range of noise level, or as the mean of the steps that were named.

    Raises:
        BadRequest: no range of noise levels that both have.
    """
    metrics = [name for name in a[METRIC].values.tolist() if name in b[METRIC].values.tolist()]
    a, b = (side.sel({METRIC: metrics}) for side in (a, b))
    if named_steps:
        level = float(numpy.mean([side["noise_level"].mean() for side in (a, b)]))
        a, b = (side.mean("step").expand_dims(noise=[level]) for side in (a, b))
    else:
        a, b = by_noise(a), by_noise(b)
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
    return Sides(a.transpose(*order), b.transpose(*order), paired, layers)


def _but(axis: str, values: xarray.DataArray) -> list[str]:
    return [str(name) for name in values.dims if name != axis]


def by_noise(values: xarray.DataArray) -> xarray.DataArray:
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
