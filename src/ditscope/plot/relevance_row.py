"""`relevance`: what the network made a place from, layer by layer (attention rollout)."""

from __future__ import annotations

from typing import Any

import numpy
from matplotlib.colors import PowerNorm

from ditscope.analysis.maps import usual_layers
from ditscope.analysis.pictures import finished_picture
from ditscope.analysis.rollout import RESIDUAL, rollout
from ditscope.core.axes import Branch
from ditscope.plot.map_panels import LEGEND_ROOM, left_of, lying_bar, panel_size
from ditscope.plot.marks import draw_grid, draw_map, draw_picture, outline_patch
from ditscope.plot.sheet import MARGIN, NOTE_ROOM, TITLE_ROOM, WIDTH, sheet
from ditscope.plot.theme import ATTENTION_COLOURS, Plot, themed
from ditscope.plot.words import sentence, step_words, subject_words
from ditscope.runs.reader import Run

COLUMNS = 7


@themed
def relevance(
    run: Run,
    *,
    query: tuple[int, int] | None = None,
    step: int | None = None,
    sample: int = 0,
    branch: Branch = "cond",
    residual: float = RESIDUAL,
    title: str | None = None,
) -> Plot:
    """Figure of the rollout of a patch, or of the whole picture, from six layers down to the input.

    Args:
        run: a run with Q and K of the step stored.
        query: the patch that is explained; None: the whole picture.
        step: its index; None: of the stored steps the one three quarters through.
        sample: index of the sample.
        branch: "cond" or "uncond".
        residual: share of a token that each layer leaves as it is.
        title: in place of the usual one.

    Raises:
        BadRequest: see `analysis.rollout.rollout`.
    """
    where: dict[str, Any] = {"query": query, "step": step, "sample": sample, "branch": branch}
    found = rollout(run, **where, residual=residual)
    layers = [layer for layer in usual_layers(run) if layer in found["layer"].values][::-1]
    first = int(found["layer"][0])
    layers = layers if first in layers else [*layers[: COLUMNS - 2], first]
    maps = found["from_layer"].sel(layer=layers).values * found["relevance"].size
    picture, name = finished_picture(run, sample)
    width, height = panel_size(picture.values, COLUMNS, WIDTH - 2 * MARGIN)
    page = sheet(
        title or f"What the {'picture' if query is None else 'outlined patch'} is made from",
        sentence(step_words(run, found.attrs["step"]), subject_words(run, sample, branch)),
        [
            "Rollout: the mean map of each layer, followed from the last layer down to the one "
            f"named; {100 * residual:.0f} % of a patch passes each layer by. No gradients. Sums of "
            "shares: what heads do with values is not in it.",
        ],
        TITLE_ROOM + height + NOTE_ROOM + LEGEND_ROOM,
    )
    others = maps if query is None else maps.copy()
    if query is not None:
        others[:, query[0], query[1]] = 0
    norm = PowerNorm(0.5, 0, max(float(others.max()), 1.0))
    top = page.top + TITLE_ROOM
    axes = page.panel(MARGIN, top, width, height, name)
    draw_picture(axes, picture.values, maps.shape[1:])
    draw_grid(axes, maps.shape[1:])
    if query is not None:
        outline_patch(axes, query)
    for i, (layer, values) in enumerate(zip(layers, maps, strict=True)):
        words = "input" if layer == 0 else f"before layer {layer}"
        axes = page.panel(left_of(i + 1, width), top, width, height, words)
        draw_map(axes, numpy.minimum(values, norm.vmax or 1.0), norm)
        if query is not None:
            outline_patch(axes, query)
            own = 100 * values[query] / values.size
            page.text(left_of(i + 1, width), top + height + 0.05, f"itself {own:.0f} %")
    words = "share of the result, in even shares (square-root scale)"
    lying_bar(page, MARGIN, top + height + NOTE_ROOM + 0.12, norm, ATTENTION_COLOURS, words)
    return page.figure
