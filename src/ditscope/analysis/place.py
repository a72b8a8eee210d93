"""One place in a run (layer, head, step, query patch, sample, branch): checked, or chosen by rule.

What the caller leaves open is chosen so that the picture shows something, by rules that depend on
nothing but the run, and `Place.reasons` says in words what was chosen and why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

import numpy

from ditscope.analysis.measured import measured_steps, refuse_unmeasured
from ditscope.analysis.pictures import finished_picture, object_patch
from ditscope.core.axes import BRANCHES, Branch
from ditscope.core.integers import as_index
from ditscope.core.manifest import StepRecord
from ditscope.core.sites import TokenGrid
from ditscope.errors import BadRequest, foreign, listed
from ditscope.runs.reader import Head, Run

PART = 2 / 3
"""Entropy, as a share of log N, of a head that looks at a part of the picture."""

DEFAULT_PROGRESS = 0.75
"""Default step, as a share of the run: the object is visible, and is still being drawn."""

FAR, FAVOURITE = 0.5, 10
"""A head looks far from this share of the distance of even attention, and has a favourite patch if
one receives more than this many even shares."""
CHOSEN_BY = ("entropy", "rms_distance", "received_max")
HEAD_FIX = "Say which: layer=0, head=0, or head='mean' (--layer 0 --head 0, --head mean)."


class Where(TypedDict, total=False):
    """Coordinates that a caller may give; each one left out (or None) is chosen by `locate`."""

    layer: int | None
    head: Head | None
    step: int | None
    query: tuple[int, int] | None
    sample: int
    branch: Branch


@dataclass(frozen=True)
class Place:
    """Coordinates of one attention row. All are valid in the run that they were located in."""

    layer: int
    head: Head
    step: int
    query: tuple[int, int]  # grid row, grid column
    sample: int
    branch: Branch
    reasons: tuple[str, ...] = ()  # one sentence for each coordinate that was chosen by rule

    def call(self) -> str:
        """The call that returns the numbers at this place, as a user would type it."""
        return (
            f"run.attention(layer={self.layer}, head={self.head!r}, step={self.step}, "
            f'query={self.query}, sample={self.sample}, branch="{self.branch}")'
        )


def locate(
    run: Run,
    *,
    layer: int | None = None,
    head: Head | None = None,
    step: int | None = None,
    query: tuple[int, int] | None = None,
    sample: int = 0,
    branch: Branch = "cond",
) -> Place:
    """The place that the arguments name, with what they leave open chosen by these rules.

    * `step`: the one three quarters through the run, among the steps whose Q and K are stored if
      there are any (those need no model to rebuild).
    * `query`: see `object_patch`.
    * `layer` and `head`: see `selective_head`; a layer that is given is kept. With a head given
      and no layer, the middle layer.

    Raises:
        BadRequest: a coordinate that is not in the run; the message gives the range.
    """
    reasons = []
    sample = checked_sample(run, sample)
    if step is None:
        step = default_step(run, branch)
    record = step_record(run, step)
    if branch not in record.branches:
        raise BadRequest(
            f"{foreign(repr(branch))} was not evaluated at step {record.index}",
            field="branch",
            expected=f"one of {listed(record.branches)}"
            if branch in BRANCHES
            else f"one of {listed(BRANCHES)}",
        )
    if layer is not None:
        layer = checked_layer(run, layer)
    elif head is not None:
        patched = some_patch_layers(run)
        layer = patched[len(patched) // 2]
    if head is None:
        layer, head = selective_head(run, record.index, sample, branch, layer)
        reasons.append("Head chosen by rule: of those that look far, one that looks at a part.")
    assert layer is not None
    head = _checked_head(run, layer, head)
    if query is None:
        query = object_patch(finished_picture(run, sample)[0], grid_of(run, layer))
        reasons.append("Patch chosen by rule: amid what stands out from the picture's border.")
    query = checked_query(run, layer, query)
    return Place(layer, head, record.index, query, sample, branch, tuple(reasons))


def grid_of(run: Run, layer: int) -> TokenGrid:
    """The patch grid of a layer.

    Raises:
        BadRequest: the tokens of that layer are not known to be image patches.
    """
    site = run.manifest.sites[layer]
    if site.grid is None:
        raise BadRequest(
            f"the tokens of layer {layer} ({site.name}) are not on a known patch grid",
            field="layer",
            expected=f"one of {listed(patch_layers(run))}",
        )
    return site.grid


def patch_layers(run: Run) -> list[int]:
    """Layers whose tokens are known to be image patches, in order."""
    return [site.index for site in run.manifest.sites if site.grid is not None]


def some_patch_layers(run: Run) -> list[int]:
    """The same, or BadRequest if there are none."""
    layers = patch_layers(run)
    if not layers:
        raise BadRequest("no layer of this run is known to work on image patches", field="layer")
    return layers


def checked_layer(run: Run, layer: int) -> int:
    """A layer number that is in the run and has a patch grid, else BadRequest with the range."""
    layer = checked_index("layer", layer, len(run.manifest.sites))
    grid_of(run, layer)
    return layer


def checked_sample(run: Run, sample: int) -> int:
    """A sample number that is in the run, else BadRequest with the range."""
    return checked_index("sample", sample, len(run.manifest.labels))


def step_record(run: Run, step: int) -> StepRecord:
    """The record of a step that is whole on disk, else BadRequest with what there is."""
    step = checked_index("step", step, len(run.manifest.steps))
    if step < len(run.steps):
        return run.steps[step]
    raise BadRequest(
        f"step {step} is not recorded in this partial run",
        field="step",
        expected=f"an integer from 0 to {len(run.steps) - 1}",
    )


def default_step(run: Run, branch: Branch = "cond") -> int:
    """The step three quarters through those of `stored_steps` that were measured, if any were."""
    steps = stored_steps(run, branch)
    steps = measured_steps(run, steps) or steps
    return steps[round(DEFAULT_PROGRESS * (len(steps) - 1))] if steps else 0


def stored_steps(run: Run, branch: Branch) -> list[int]:
    """Steps of a branch that can be read without the model; all of them if that is none."""
    evaluated = [record.index for record in run.steps if branch in record.branches]
    return [step for step in evaluated if step in run.manifest.qk_steps] or evaluated


def selective_head(
    run: Run, step: int, sample: int, branch: Branch, layer: int | None
) -> tuple[int, int]:
    """Of the heads that look far and at no fixed patch, one that looks at a part, as (layer, head).

    Of the heads of `layer` (of all layers with patches if None), those count whose RMS distance is
    at least half that of even attention (others look at their neighbours) and whose most received
    patch gets at most ten even shares (others park all patches on one); all of them if none is so.
    The choice is the one whose entropy is nearest to `PART` of log N: it spreads over about
    N ** PART patches (40 of 256), not over its own patch alone and not over everything.

    Raises:
        BadRequest: the run does not hold these statistics, or not at this place.
    """
    # A sample of queries cannot tell what the keys receive: then no head is left out for that.
    by = CHOSEN_BY[: 2 if run.manifest.only.queries is not None else 3]
    missing = [name for name in by if name not in run.stats]
    if missing:
        raise BadRequest(
            f"this run recorded no {listed(missing)}, by which a head would be chosen",
            field="head",
            fix=f"{HEAD_FIX} Or record them: ditscope sample --attention-debug",
        )
    refuse_unmeasured(run, steps=[step], layers=[] if layer is None else [layer], branch=branch)
    found: list[tuple[bool, float, int, int]] = []
    for index in some_patch_layers(run) if layer is None else [layer]:
        keys, even_distance = run.manifest.sites[index].keys, even_rms_distance(grid_of(run, index))
        here = run.stats.sel(step=step, sample=sample, branch=branch, layer=index)
        entropy, distance = (here[name].values.tolist() for name in by[:2])
        received = here[by[2]].values.tolist() if len(by) > 2 else [0.0] * len(entropy)
        for head, row in enumerate(zip(entropy, distance, received, strict=True)):
            if all(map(math.isfinite, row)):
                fit = row[1] >= FAR * even_distance and row[2] <= FAVOURITE / keys
                focus = row[0] / math.log(max(keys, 2))
                found.append((not fit, abs(focus - PART), index, head))
    if not found:
        raise BadRequest(
            f"no head has statistics at step {step}, sample {sample}, branch {branch!r}",
            field="head",
            fix=HEAD_FIX,
        )
    best = min(found)
    return best[2], best[3]


def even_rms_distance(grid: TokenGrid) -> float:
    """RMS distance of even attention over a grid, mean over queries, in patches."""
    rows, columns = numpy.arange(grid.height), numpy.arange(grid.width)
    spread = ((rows - rows.mean()) ** 2)[:, None] + (columns - columns.mean()) ** 2
    return float(numpy.sqrt(spread + rows.var() + columns.var()).mean())


def checked_index(field: str, value: object, count: int) -> int:
    """`value` as an index below `count`, else BadRequest with the range."""
    try:
        index = as_index(value)
    except TypeError:
        index = -1
    if not 0 <= index < count:
        raise BadRequest(
            f"{foreign(repr(value))} is not in this run",
            field=field,
            expected=f"an integer from 0 to {count - 1}",
        )
    return index


def _checked_head(run: Run, layer: int, head: Head) -> Head:
    heads = run.manifest.sites[layer].heads
    if isinstance(head, str):
        if head != "mean":
            raise BadRequest(
                f"{foreign(repr(head))} is not a head",
                field="head",
                expected=f"an integer from 0 to {heads - 1}, or 'mean'",
            )
        return head
    return checked_index("head", head, heads)


def checked_query(run: Run, layer: int, query: tuple[int, int]) -> tuple[int, int]:
    """A patch (row, column) of a layer's grid, else BadRequest with the range."""
    grid = grid_of(run, layer)
    try:
        y, x = (as_index(part) for part in query)
    except (TypeError, ValueError):
        y = x = -1
    if not (0 <= y < grid.height and 0 <= x < grid.width):
        raise BadRequest(
            f"{foreign(repr(query))} is not a patch of layer {layer}",
            field="query",
            expected=f"(row, column) with row 0 to {grid.height - 1}, column 0 to {grid.width - 1}",
        )
    return y, x
