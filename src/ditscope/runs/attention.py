"""Attention of any combination of layers, heads, steps, branches, samples and tokens, labelled.

One attention call is looked at after the other, so a mean over layers, steps or samples holds one
call in memory, and of a map over many queries one block.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray
from numpy.typing import NDArray

from ditscope.core.axes import BRANCH, HEAD, KEY, LAYER, QUERY, SAMPLE, STEP, X, Y
from ditscope.core.sites import Site
from ditscope.errors import BadRequest, foreign, listed
from ditscope.runs import outputs
from ditscope.runs.attention_rows import Operands, Tokens, looked_at, looking
from ditscope.runs.choices import ALL, MEAN, Choice, chosen, layer_of, tokens_of
from ditscope.runs.labelled import sample_coords, site_coords, step_coords
from ditscope.runs.layout import Layout
from ditscope.runs.outputs import Agreement

Load = Callable[[int, Any, int, int], Operands]
"""Step, branch, sample and layer of one attention call to what it worked on."""

_AXES = (STEP, BRANCH, SAMPLE, LAYER, HEAD)


@dataclass(frozen=True)
class Asked:
    """What `Run.attention` was called with."""

    layer: Any
    head: Any
    step: Any
    sample: Any
    branch: Any
    query: Any = None
    received: Any = None


def attention(layout: Layout, num_steps: int, load: Load, asked: Asked) -> xarray.DataArray:
    """See `ditscope.runs.reader.Run.attention`; `num_steps` are whole."""
    if (asked.query is None) == (asked.received is None):
        raise BadRequest(
            "neither or both are given", field="query, received", expected="one of the two"
        )
    choices = _choices(layout, num_steps, asked)
    site = layout.manifest.sites[choices[LAYER].indices[0]]
    axis, tokens = QUERY, asked.query
    if asked.received is not None:
        axis, tokens = KEY, asked.received
    found = _collected(layout, load, choices, tokens_of(site, tokens, axis), axis)
    return _labelled(layout, choices, site, found, (axis, tokens))


def _choices(layout: Layout, num_steps: int, asked: Asked) -> dict[str, Choice]:
    manifest = layout.manifest
    layers = range(len(manifest.sites))
    layer = asked.layer
    if isinstance(layer, str):
        layer = layer_of(manifest.sites, layer)
    elif isinstance(layer, list | tuple):
        layer = [layer_of(manifest.sites, each) for each in layer]
    layer = chosen(LAYER, layer, layers, len(layers))
    site = _one_shape([manifest.sites[index] for index in layer.indices])
    branch = _branches(layout, asked.branch)
    names = {layout.branches[index] for index in branch.indices}
    steps = manifest.steps[:num_steps]
    evaluated = [step.index for step in steps if names <= {*step.branches}]
    step = chosen(STEP, asked.step, evaluated, num_steps)
    for index in step.indices:
        if lacking := names - {*steps[index].branches}:
            raise BadRequest(
                f"{listed(sorted(lacking))} was not evaluated at step {index}",
                field=BRANCH,
                expected=listed(steps[index].branches),
            )
    samples = range(len(manifest.labels))
    return {
        STEP: step,
        BRANCH: branch,
        SAMPLE: chosen(SAMPLE, asked.sample, samples, len(samples)),
        LAYER: layer,
        HEAD: chosen(HEAD, asked.head, range(site.heads), site.heads),
    }


def _branches(layout: Layout, asked: Any) -> Choice:
    names: list[str] = list(layout.branches)
    if isinstance(asked, str) and asked in (ALL, MEAN):
        return Choice(tuple(range(len(names))), asked == ALL, asked)
    several = [asked] if isinstance(asked, str) else list(asked)
    if strange := [each for each in several if each not in names]:
        raise BadRequest(
            f"{foreign(strange[0])} was not evaluated", field=BRANCH, expected=listed(names)
        )
    if not several:
        raise BadRequest("no branch is left", field=BRANCH, expected=listed(names))
    indices = tuple(names.index(each) for each in several)
    return Choice(indices, not isinstance(asked, str), asked)


def _one_shape(sites: list[Site]) -> Site:
    """The shape that all `sites` share. Raises BadRequest."""
    shapes = {(each.heads, each.queries, each.keys, each.grid) for each in sites}
    if len(shapes) > 1:
        raise BadRequest(
            f"layers of {len(shapes)} shapes", field=LAYER, expected="layers of one shape at a time"
        )
    return sites[0]


@dataclass(frozen=True)
class _Found:
    values: NDArray[np.float32]  # (step, branch, sample, layer, head, token), one where averaged
    notes: dict[str, object]


def _collected(
    layout: Layout, load: Load, choices: dict[str, Choice], tokens: Tokens, axis: str
) -> _Found:
    head, site = choices[HEAD], layout.manifest.sites[choices[LAYER].indices[0]]
    every = head.indices == tuple(range(site.heads))
    heads = slice(None) if every else slice(min(head.indices), max(head.indices) + 1)
    picked = [index - (heads.start or 0) for index in head.indices]
    length = site.keys if axis == QUERY else site.queries
    total = np.zeros((*(choices[name].size for name in _AXES), length))
    sources, worst = set(), 0.0
    agreements: set[Agreement | None] = set()
    # The layer before branch and sample: these lie in one chunk.
    order = (STEP, LAYER, BRANCH, SAMPLE)
    for place in itertools.product(*(enumerate(choices[name].indices) for name in order)):
        number, index = (dict(zip(order, each, strict=True)) for each in zip(*place, strict=True))
        branch = layout.branches[index[BRANCH]]
        operands = load(index[STEP], branch, index[SAMPLE], index[LAYER])
        if axis == QUERY:
            found, error = looking(operands, heads, tokens)
            worst = max(worst, error)
        else:
            found = looked_at(operands, heads, tokens)
        found = found[picked] if head.stays else found[picked].mean(axis=0, keepdims=True)
        total[tuple(choices[name].position(number[name]) for name in _AXES[:-1])] += found
        sources.add(operands.source)
        agreements |= {operands.agreement} if operands.source == "replayed" else set()
    averaged = [len(choices[name].indices) for name in order if not choices[name].stays]
    notes: dict[str, object] = {"source": " and ".join(sorted(sources))}
    if axis == QUERY:
        notes["row_sum_error"] = worst
    notes |= _verified(agreements)
    return _Found((total / np.prod(averaged, initial=1)).astype(np.float32), notes)


def _verified(agreements: set[Agreement | None]) -> dict[str, object]:
    """How what was replayed compares with the recording; what was stored, by its digest."""
    if not agreements:
        return {"verified": "sha256"}
    least = outputs.worst(each for each in agreements if each)
    if least is None or None in agreements:
        return {"verified": outputs.NOT_KEPT}
    return {"verified": str(least), "replay_difference": least.difference}


def _labelled(
    layout: Layout,
    choices: dict[str, Choice],
    site: Site,
    found: _Found,
    tokens: tuple[str, object],
) -> xarray.DataArray:
    """The values with names on axes that stay, and what was chosen of the others as attributes."""
    manifest, (axis, asked) = layout.manifest, tokens
    stay = [name for name in _AXES if choices[name].stays]
    attributes: dict[str, object] = {
        name: choices[name].asked for name in _AXES if name not in stay
    }
    if not choices[LAYER].stays and choices[LAYER].asked != MEAN:
        attributes["site"] = site.name
    long_name = "attention probability"
    if axis == KEY:
        long_name = "share of each patch's attention received"
    attributes |= {"long_name": long_name, axis: _told(asked), **found.notes}
    values = found.values.reshape(*(choices[name].size for name in stay), found.values.shape[-1])
    coords: dict[str, Any] = {}
    if STEP in stay:
        coords |= step_coords([manifest.steps[index] for index in choices[STEP].indices])
    if BRANCH in stay:
        coords[BRANCH] = [layout.branches[index] for index in choices[BRANCH].indices]
    if SAMPLE in stay:
        coords |= sample_coords(layout, choices[SAMPLE].indices)
    if LAYER in stay:
        coords |= site_coords(layout, choices[LAYER].indices)
    if HEAD in stay:
        coords[HEAD] = list(choices[HEAD].indices)
    other = KEY if axis == QUERY else QUERY
    if site.grid is None:
        return xarray.DataArray(values, coords, (*stay, other), name="attention", attrs=attributes)
    grid = site.grid
    inside = values[..., grid.start : grid.start + grid.count]
    if grid.count < values.shape[-1]:
        outside = values.sum(-1) - inside.sum(-1)
        if stay:
            coords["outside_grid"] = (stay, outside)
        else:
            attributes["outside_grid"] = float(outside)
    coords |= {Y: np.arange(grid.height), X: np.arange(grid.width)}
    shaped = inside.reshape(*inside.shape[:-1], grid.height, grid.width)
    return xarray.DataArray(shaped, coords, (*stay, Y, X), name="attention", attrs=attributes)


def _told(asked: Any) -> object:
    """What was asked of the tokens, short enough for an attribute."""
    if np.ndim(asked) == 2:
        return f"a mask of {int(np.count_nonzero(np.asarray(asked)))} places"
    return asked
