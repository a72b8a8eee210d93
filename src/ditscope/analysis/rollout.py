"""What the network made a place from: attention followed through all layers, without gradients.

Rollout (Abnar and Zuidema 2020, arXiv:2005.00928): of every layer the mean map of its heads, with a
share of the residual stream left where it is, A' = (1 - b) A + b I; the product over layers, the
last one leftmost, has rows that sum to 1. Row q says how much of each input token is in output
token q, if heads mixed values as they mix attention. Only rows are followed, from the last layer to
the first, so no product of matrices is formed. Steps are not chained: between two of them lies an
update of the picture, not attention.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy
import xarray
from numpy.typing import NDArray

from ditscope.analysis.place import (
    checked_query,
    checked_sample,
    default_step,
    some_patch_layers,
)
from ditscope.analysis.recorded import RECORD_MAPS, branch_steps, chosen_layers
from ditscope.core.axes import Branch
from ditscope.core.sites import Site
from ditscope.errors import BadRequest, foreign
from ditscope.runs.reader import Run

RESIDUAL = 0.5
"""Share of a token that a layer leaves as it is: the published choice; a run does not record the
true one."""
BLOCK = 2**22
"""Attention weights that are read together."""

Array = NDArray[numpy.float64]


def rollout(
    run: Run,
    *,
    query: tuple[int, int] | None = None,
    layers: Iterable[int] | None = None,
    step: int | None = None,
    sample: int = 0,
    branch: Branch = "cond",
    residual: float = RESIDUAL,
) -> xarray.Dataset:
    """Where a patch, or the whole picture, comes from at one step.

    Args:
        run: a run with Q and K of the step stored.
        query: the patch (row, column) that is explained; None: the mean over all patches.
        layers: a chain of these, in the order of the network; None: all.
        step: its index; None: of the stored steps the one three quarters through.
        sample: index of the sample.
        branch: "cond" or "uncond".
        residual: share `b` of a token that each layer leaves as it is, 0 to below 1.

    Returns:
        `relevance` (y, x): shares of the input patches. `from_layer` (layer, y, x): the same if the
        chain ended at the input of that layer: how the place gathers with depth. `token_relevance`
        (token): shares of all tokens, sum 1. In attrs: `outside`, what comes from tokens that are
        no patches, and of those `class_relevance`, `text_relevance`, `register_relevance` where the
        model has such tokens.

    Raises:
        BadRequest: no Q and K of the step; layers that do not act on one sequence of tokens; a
            coordinate that is not in the run; a residual share out of range.
    """
    chain = _chain(run, layers)
    if not 0 <= residual < 1:
        raise BadRequest(f"{residual!r}", field="residual", expected="a share from 0 to below 1")
    sample = checked_sample(run, sample)
    step = _stored_step(run, step, branch)
    grid = chain[0].grid
    assert grid is not None
    start = numpy.zeros(chain[0].queries)
    if query is None:
        start[grid.start : grid.start + grid.count] = 1 / grid.count
    else:
        start[grid.token(*checked_query(run, chain[0].index, query))] = 1
    row, by_layer = start, []
    for site in reversed(chain):
        mixed = _pulled_back(run, site, step, sample, branch, row)
        row = residual * row + (1 - residual) * mixed
        by_layer.append(row)
    patches = numpy.stack(by_layer[::-1])[:, grid.start : grid.start + grid.count]
    shape = (len(chain), grid.height, grid.width)
    found = xarray.Dataset(
        {
            "relevance": (("y", "x"), patches[0].reshape(shape[1:])),
            "from_layer": (("layer", "y", "x"), patches.reshape(shape)),
            "token_relevance": ("token", row),
        },
        coords={"layer": [site.index for site in chain]},
        attrs={"step": step, "sample": sample, "branch": branch, "residual": residual},
    )
    found.attrs["outside"] = float(row.sum() - patches[0].sum())
    for kind in {segment.kind for segment in chain[0].segments}:
        found.attrs[f"{kind}_relevance"] = _share(row, chain[0], kind)
    return found


def class_relevance(run: Run, *, kind: str = "class", **where: object) -> float:
    """Share of the picture, or of one patch, that comes from the tokens of the condition.

    Args:
        run: a run of a model that has such tokens.
        kind: "class", "text" or "register".
        **where: as for `rollout`.

    Raises:
        BadRequest: the model has no such tokens: a class that acts by the scale and shift of every
            layer, as in DiT, is not in the attention.
    """
    found = rollout(run, **where)  # type: ignore[arg-type]
    name = f"{kind}_relevance"
    if name not in found.attrs:
        raise BadRequest(
            f"this model has no {foreign(kind)} tokens; its condition acts outside of attention "
            "(in DiT by the scale and shift of every layer)",
            field="kind",
            fix="Compare both branches instead: ditscope sample --cfg-scale 4 --metrics "
            "branch_overlap --attention-debug",
        )
    return float(found.attrs[name])


def _chain(run: Run, layers: Iterable[int] | None) -> list[Site]:
    """Sites in the order of the network that all mix the same tokens."""
    sites = run.manifest.sites
    numbers = some_patch_layers(run) if layers is None else sorted(chosen_layers(run, layers))
    chain = [sites[number] for number in numbers]
    sizes = {size for site in chain for size in (site.queries, site.keys)}
    if len(sizes) > 1 or chain[0].grid is None or any(s.grid != chain[0].grid for s in chain):
        raise BadRequest(
            "these layers do not act on one sequence of tokens, so they cannot be chained",
            field="layers",
            expected="self-attention layers with the same tokens",
        )
    return chain


def _stored_step(run: Run, step: int | None, branch: Branch) -> int:
    evaluated = branch_steps(run, branch)
    chosen = default_step(run, branch) if step is None else step
    if chosen not in run.manifest.qk_steps or chosen not in evaluated:
        stored = [each for each in evaluated if each in run.manifest.qk_steps]
        raise BadRequest(
            f"no Q and K are stored of step {foreign(chosen)}",
            field="step",
            expected=f"one of {stored}" if stored else None,
            fix=RECORD_MAPS,
        )
    return chosen


def _pulled_back(run: Run, site: Site, step: int, sample: int, branch: Branch, row: Array) -> Array:
    """`row` (token) times the mean map of a layer, rows scaled to sum to 1."""
    result = numpy.zeros(site.keys)
    asked = numpy.flatnonzero(row)
    block = max(1, BLOCK // (site.heads * site.keys))
    for first in range(0, len(asked), block):
        queries = asked[first : first + block]
        maps = run.maps(site.index, step, queries.tolist(), sample, branch).astype(float).mean(0)
        result += row[queries] @ (maps / maps.sum(-1, keepdims=True))
    return result


def _share(row: Array, site: Site, kind: str) -> float:
    parts = [segment for segment in site.segments if segment.kind == kind]
    return float(sum(row[part.start : part.start + part.count].sum() for part in parts))
