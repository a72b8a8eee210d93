"""Attention rows as panels: the plain data behind every picture that shows where a patch looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import numpy
import xarray

from ditscope.analysis.pictures import finished_picture
from ditscope.analysis.place import (
    Place,
    Where,
    checked_layer,
    default_step,
    grid_of,
    locate,
    some_patch_layers,
    step_record,
    stored_steps,
)
from ditscope.core.axes import Branch
from ditscope.errors import BadRequest, foreign
from ditscope.runs.reader import Run

USUAL_LAYERS = tuple(layer / 27 for layer in (2, 8, 14, 18, 22, 24))
"""Relative depths of a comparison over layers, if the caller names none: DiT-XL's 28 layers."""
USUAL_TIMESTEPS = (1000, 750, 500, 250, 1)
"""Timesteps of a comparison over steps, of a process with 1000 of them."""


@dataclass(frozen=True)
class AttentionPanels:
    """Attention of one query patch at one or more places, one map per panel.

    `weights` (panel, y, x) are shares of the query's attention: 0 to 1, NaN where there is no
    data; a map sums to 1 where every key is an image patch. `even_share` is what each key gets,
    per panel, when attention is even: 1 / number of keys.
    """

    places: tuple[Place, ...]
    weights: xarray.DataArray
    even_share: tuple[float, ...]
    noise_levels: tuple[float, ...]
    picture: xarray.DataArray  # (y, x, channel) uint8: what the sample became
    picture_name: str

    @property
    def query(self) -> tuple[int, int]:
        """The patch that looks (row, column), the same in all panels."""
        return self.places[0].query

    @property
    def effective_patches(self) -> tuple[float, ...]:
        """Over how many patches each map spreads: exp(its entropy), 1 to N, or NaN."""
        return tuple(_effective_patches(weights) for weights in self.weights.values)


def map_at(run: Run, **where: Unpack[Where]) -> AttentionPanels:
    """One attention row as a single panel (see `locate` for what may be left out)."""
    return _panels(run, (locate(run, **where),))


def maps_by_layer(
    run: Run, layers: Sequence[int] | None = None, **where: Unpack[Where]
) -> AttentionPanels:
    """The same row in several layers: `layers`, or those of `usual_layers`.

    The head is the mean over heads if it is not given: head numbers do not correspond across
    layers. Raises BadRequest for a layer that is not there or has another patch grid.
    """
    if where.pop("layer", None) is not None:
        raise BadRequest("these maps differ in their layer", field="layer", expected="layers=[...]")
    if layers is None:
        layers = usual_layers(run)
    layers = [checked_layer(run, layer) for layer in _several("layers", layers)]
    if where.get("head") is None:
        where["head"] = "mean"
    places = []
    for layer in layers:
        place = locate(run, **{**where, "layer": layer})
        where["query"] = place.query
        places.append(replace(place, reasons=places[0].reasons) if places else place)
    return _panels(run, tuple(places))


def maps_by_step(
    run: Run, steps: Sequence[int] | None = None, **where: Unpack[Where]
) -> AttentionPanels:
    """The same row at several steps, noisiest first: `steps`, or those of `usual_steps`.

    Layer, head and patch, if left open, are chosen at the default step (see `locate`), or at
    the last one if that is none of them.
    """
    if where.pop("step", None) is not None:
        raise BadRequest("these maps differ in their step", field="step", expected="steps=[...]")
    if steps is None:
        first = locate(run, **where)
        steps = usual_steps(run, first.branch)
    else:
        steps = sorted(step_record(run, step).index for step in _several("steps", steps))
        usual = default_step(run, where.get("branch") or "cond")
        first = locate(run, **{**where, "step": usual if usual in steps else steps[-1]})
    found = Where(
        layer=first.layer,
        head=first.head,
        query=first.query,
        sample=first.sample,
        branch=first.branch,
    )
    places = (locate(run, **{**found, "step": step}) for step in steps)
    return _panels(run, tuple(replace(place, reasons=first.reasons) for place in places))


def usual_layers(run: Run) -> list[int]:
    """Layers 2, 8, 14, 18, 22 and 24 of 28, and the same relative depths of any other model.

    Of a model with few layers each depth takes the nearest layer that is still free; all six, or
    as many as there are.
    """
    free = some_patch_layers(run)
    last = len(run.manifest.sites) - 1
    chosen = []
    for depth in USUAL_LAYERS[: len(free)]:
        chosen.append(min(free, key=lambda layer: abs(layer - depth * last)))
        free = [layer for layer in free if layer not in chosen]
    return sorted(chosen)


def usual_steps(run: Run, branch: Branch) -> list[int]:
    """The steps nearest to timesteps 1000, 750, 500, 250 and 1, noisiest first, each once.

    Steps that can be read without the model are preferred, if there are at least five.
    """
    stored = stored_steps(run, branch)
    if len(stored) < len(USUAL_TIMESTEPS):
        stored = [record.index for record in run.steps if branch in record.branches]
    told = run.manifest.model.process.get("time_scale")
    scale = told / 1000 if isinstance(told, int | float) and told > 0 else 1.0
    chosen = {
        min(stored, key=lambda step: abs(run.steps[step].timestep - timestep * scale))
        for timestep in USUAL_TIMESTEPS
    }
    return sorted(chosen)


def most_attended(weights: xarray.DataArray, share: float = 0.5) -> xarray.DataArray:
    """The fewest patches that together receive at least `share` of a map's attention.

    Args:
        weights: one map (y, x).
        share: 0 to 1, of the attention that goes to patches with data.

    Returns:
        Boolean (y, x). Empty where the map holds no attention at all.
    """
    values = numpy.nan_to_num(weights.values.astype(float).ravel())
    order = numpy.argsort(-values, kind="stable")
    mass = numpy.cumsum(values[order])
    kept = numpy.zeros(values.size, bool)
    if mass[-1] > 0:
        kept[order[: int(numpy.searchsorted(mass, share * mass[-1] * (1 - 1e-9))) + 1]] = True
    return weights.copy(data=kept.reshape(weights.shape))


def _panels(run: Run, places: tuple[Place, ...]) -> AttentionPanels:
    """Read the maps at `places`, which share query and sample."""
    grids = {(grid.height, grid.width) for grid in (grid_of(run, p.layer) for p in places)}
    if len(grids) > 1:
        sizes = ", ".join(f"{height} x {width}" for height, width in sorted(grids))
        raise BadRequest(f"layers with different patch grids: {sizes}", field="layers")
    maps = [
        run.attention(
            layer=place.layer,
            head=place.head,
            step=place.step,
            query=place.query,
            sample=place.sample,
            branch=place.branch,
        )
        for place in places
    ]
    stacked = numpy.stack([numpy.asarray(m.transpose("y", "x"), dtype=float) for m in maps])
    picture, name = finished_picture(run, places[0].sample)
    return AttentionPanels(
        places=places,
        weights=xarray.DataArray(stacked, dims=("panel", "y", "x")),
        even_share=tuple(1 / run.manifest.sites[place.layer].keys for place in places),
        noise_levels=tuple(step_record(run, place.step).noise_level for place in places),
        picture=picture,
        picture_name=name,
    )


def _effective_patches(weights: numpy.ndarray) -> float:
    """exp(entropy) of one map, after it is scaled to sum to 1; NaN if it holds nothing."""
    values = weights[numpy.isfinite(weights)]
    values = values[values > 0]
    if not values.size:
        return float("nan")
    share = values / values.sum()
    return float(numpy.exp(-(share * numpy.log(share)).sum()))


def _several(field: str, items: Sequence[int]) -> list[int]:
    """`items` as a list of at least one, else BadRequest."""
    try:
        found = list(items)
    except TypeError:
        found = []
    if not found:
        raise BadRequest(
            f"{foreign(repr(items))} names no panel", field=field, expected="a list of integers"
        )
    return found
