"""Where in the picture two classes, runs or models differ in what patches receive."""

from __future__ import annotations

from collections.abc import Iterable

import xarray

from ditscope.analysis.compare import tested
from ditscope.analysis.coordinates import class_samples
from ditscope.analysis.place import some_patch_layers
from ditscope.analysis.received import on_grid, received_maps
from ditscope.analysis.recorded import map_steps
from ditscope.core.axes import Branch
from ditscope.errors import BadRequest
from ditscope.runs.reader import Run

WHOLE = (0.0, 1.0)


def map_difference(
    run_a: Run,
    run_b: Run,
    *,
    class_a: str | int | None = None,
    class_b: str | int | None = None,
    depth: tuple[float, float] = WHOLE,
    noise: tuple[float, float] = WHOLE,
    branch: Branch = "cond",
) -> xarray.Dataset:
    """Received attention of two runs on one grid, b less a.

    Args:
        run_a: the run that is compared with; with stored Q and K.
        run_b: the other; the same run for two of its classes.
        class_a: only samples of this class, by name or index; None: all.
        class_b: the same for `run_b`.
        depth: mean over layers from this to this relative depth; 0 the first layer, 1 the last.
        noise: mean over stored steps from this to this noise level, 1 pure noise.
        branch: "cond" or "uncond".

    Returns:
        (y, x), on the coarser of both grids, in even shares: `mean_a`, `mean_b`, `difference`,
        `low`, `high`, `effect`, `p`, `p_adjusted`, as in `compare`. `design` in attrs: "paired by
        seed" or "independent".

    Raises:
        BadRequest: no Q and K stored; a class that is not in a run; no layer or no stored step in
            the range.
    """
    sides = [
        _received(run, label, depth, noise, branch)
        for run, label in ((run_a, class_a), (run_b, class_b))
    ]
    height, width = (min(side.sizes[axis] for side in sides) for axis in ("y", "x"))
    a, b = (on_grid(side.values, height, width).reshape(len(side), -1) for side in sides)
    starts = [
        [(run.manifest.sample_seeds[i], run.manifest.latent_shape) for i in side["sample"].values]
        for run, side in zip((run_a, run_b), sides, strict=True)
    ]
    paired = starts[0] == starts[1] and run_a.manifest.model.process == run_b.manifest.model.process
    found = tested(a, b, paired=paired)
    return xarray.Dataset(
        {name: (("y", "x"), values.reshape(height, width)) for name, values in found.items()},
        attrs={
            "design": "paired by seed" if paired else "independent",
            "samples": (len(a), len(b)),
            "steps": tuple(len(side.attrs["steps"]) for side in sides),
            "depth": depth,
            "noise": noise,
            "branch": branch,
        },
    )


def _received(
    run: Run,
    label: str | int | None,
    depth: tuple[float, float],
    noise: tuple[float, float],
    branch: Branch,
) -> xarray.DataArray:
    """What patches receive, (sample, y, x), mean over the layers and steps of the ranges."""
    last = max(len(run.manifest.sites) - 1, 1)
    layers = [i for i in some_patch_layers(run) if depth[0] <= i / last <= depth[1]]
    steps = [
        step
        for step in map_steps(run, branch)
        if noise[0] <= run.steps[step].noise_level <= noise[1]
    ]
    for field, wanted, kept in (("depth", depth, layers), ("noise", noise, steps)):
        if not kept:
            raise BadRequest(
                f"nothing is recorded from {wanted[0]:g} to {wanted[1]:g}",
                field=field,
                expected="a range within 0 to 1 that holds a layer"
                if field == "depth"
                else f"a range that holds one of {_levels(run, branch)}",
            )
    found = received_maps(
        run, layers=layers, steps=steps, samples=class_samples(run, label), branch=branch
    )
    return found.mean("layer", keep_attrs=True)


def _levels(run: Run, branch: Branch) -> str:
    levels: Iterable[float] = (run.steps[step].noise_level for step in map_steps(run, branch))
    return ", ".join(f"{level:.2f}" for level in levels)
