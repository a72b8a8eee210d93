"""What is usually said of attention in Diffusion Transformers, measured on one run.

The claims: global structure comes early, local detail in the middle, fine texture late; low layers
look near, high layers look far. Each becomes one number per sample that is above zero if the claim
holds, and its 95 % interval over samples decides. Intervals of single layers are 95 % each: of
twenty layers without any effect, one is expected to show one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
import xarray

from ditscope.analysis.confidence import interval
from ditscope.analysis.layers import depth_correlation
from ditscope.analysis.map_measures import map_measures
from ditscope.analysis.recorded import RECORD_MAPS, branch_steps, map_steps, recorded
from ditscope.core.axes import Branch
from ditscope.errors import BadRequest
from ditscope.runs.reader import Run

EARLY, MIDDLE, LATE = range(3)
HOLDS, OPPOSITE, UNDECIDED, UNKNOWN = "holds", "the opposite holds", "undecided", "cannot be told"


@dataclass(frozen=True)
class Claim:
    """A claim about the thirds of a run: the third that has more of a quantity than the others."""

    name: str
    statement: str
    quantity: str
    contrast: Callable[[list[xarray.DataArray]], xarray.DataArray]  # of early, middle, late


CLAIMS = (
    Claim(
        "global early",
        "heads look farther in the first third of the steps than later",
        "rms_distance",
        lambda third: third[EARLY] - (third[MIDDLE] + third[LATE]) / 2,
    ),
    Claim(
        "local middle",
        "heads look nearer in the middle third of the steps than before and after",
        "rms_distance",
        lambda third: (third[EARLY] + third[LATE]) / 2 - third[MIDDLE],
    ),
    Claim(
        "texture late",
        "maps have more fine structure in the last third of the steps than earlier",
        "texture",
        lambda third: third[LATE] - (third[EARLY] + third[MIDDLE]) / 2,
    ),
)
DEPTH = ("local low, global high", "heads look farther the deeper their layer is")


def usual_claims(
    run: Run, *, branch: Branch = "cond", claims: Sequence[Claim] = CLAIMS
) -> xarray.Dataset:
    """Where the usual claims hold in a run, and where not.

    Args:
        run: a recorded run.
        branch: "cond" or "uncond".
        claims: those about steps; the one about depth is always last.

    Returns:
        Along `claim`: `mean`, `low`, `high` of the number that is above zero if the claim holds
        (patches, a share, or for depth Spearman's rank correlation), mean over layers and heads;
        `verdict`: "holds", "the opposite holds", "undecided" (the interval holds zero, or there is
        one sample only), or "cannot be told". `layer_mean`, `layer_low`, `layer_high`,
        `layer_verdict` (claim, layer): the same for single layers. Coordinates `statement`, and
        `missing`: what to record if it cannot be told.

    Raises:
        BadRequest: no statistics, or the branch is not in the run.
    """
    found = []
    for claim in claims:
        values, missing = _quantity(run, claim.quantity, branch)
        numbers = None if values is None else claim.contrast(values).mean("head", skipna=True)
        found.append(_judged(run, claim.name, claim.statement, numbers, missing))
    distance = _distance(run, branch)
    depth = None if distance is None else depth_correlation(distance.mean(["step", "head"]))
    undefined = depth is None or bool(depth.isnull().any())
    why = "fewer than three layers with a patch grid" if undefined else ""
    found.append(_judged(run, *DEPTH, None if undefined else depth, why))
    words = ["statement", "missing"]
    found = xarray.concat(
        found, "claim", data_vars="all", coords=words, compat="equals", join="exact"
    )
    return found.assign_attrs(branch=branch)


def _quantity(run: Run, name: str, branch: Branch) -> tuple[list[xarray.DataArray] | None, str]:
    """(sample, layer, head) means of a quantity over each third of the run; or what is missing."""
    thirds = numpy.array_split(branch_steps(run, branch), 3)
    if not all(len(third) for third in thirds):
        return None, "fewer than three steps"
    if name != "texture":
        values = _distance(run, branch)
        if values is None:
            return None, "no layer has a known patch grid"
    else:
        try:
            stored = map_steps(run, branch)
        except BadRequest:
            return None, RECORD_MAPS
        if not all(set(third.tolist()) & set(stored) for third in thirds):
            return None, f"no map is stored in one third of the steps. {RECORD_MAPS}"
        values = map_measures(run)[name].sel(branch=branch, drop=True).sel(step=stored)
    kept = [numpy.intersect1d(third, values["step"]) for third in thirds]
    return [values.sel(step=third).mean("step") for third in kept], ""


def _distance(run: Run, branch: Branch) -> xarray.DataArray | None:
    """Distances of layers that have a patch grid, (step, sample, layer, head)."""
    values = recorded(run, branch=branch)
    if "rms_distance" not in values["metric"].values.tolist():
        return None
    patched = [site.index for site in run.manifest.sites if site.grid is not None]
    found = values.sel(metric="rms_distance", layer=patched, drop=True)
    return found.drop_vars("unit", errors="ignore") if patched else None


def _judged(
    run: Run, name: str, statement: str, numbers: xarray.DataArray | None, missing: str
) -> xarray.Dataset:
    """One claim from its numbers, (sample) or (sample, layer), above zero where it holds."""
    layers = numpy.arange(len(run.manifest.sites))
    nothing = xarray.DataArray(numpy.nan)
    by_layer = xarray.DataArray(numpy.full(len(layers), numpy.nan), {"layer": layers}, ("layer",))
    whole = xarray.Dataset({end: nothing for end in ("mean", "low", "high")})
    single = xarray.Dataset({end: by_layer for end in ("mean", "low", "high")})
    if numbers is not None:
        if "layer" in numbers.dims:
            single = interval(numbers)[["mean", "low", "high"]].reset_coords(drop=True)
            single = single.reindex(layer=layers)
            numbers = numbers.mean("layer", skipna=True)
        whole = interval(numbers)[["mean", "low", "high"]].reset_coords(drop=True)
    found = whole.assign({f"layer_{end}": single[end] for end in single})
    return found.assign(verdict=_verdict(whole), layer_verdict=_verdict(single)).assign_coords(
        claim=name, statement=statement, missing=missing
    )


def _verdict(ends: xarray.Dataset) -> xarray.DataArray:
    """The verdict in words from the interval of the number."""
    words = numpy.full(ends["mean"].shape, UNDECIDED, dtype=object)
    words[(ends["low"] > 0).values] = HOLDS
    words[(ends["high"] < 0).values] = OPPOSITE
    words[ends["mean"].isnull().values] = UNKNOWN
    return ends["mean"].copy(data=words)
