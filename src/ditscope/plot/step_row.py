"""`timesteps`: the same patch at several steps, side by side, below what the network saw then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

from ditscope.analysis.maps import maps_by_step
from ditscope.analysis.pictures import latent_picture
from ditscope.analysis.place import Where
from ditscope.plot.map_row import ScaleChoice, map_row
from ditscope.plot.marks import draw_picture, outline_patch
from ditscope.plot.sheet import GAP, MARGIN, TITLE_ROOM, WIDTH, Sheet, sheet
from ditscope.plot.theme import Plot, themed
from ditscope.plot.words import SPREAD_NOTE, closing_notes, panel_words
from ditscope.runs.reader import Run

COLUMNS, BESIDE = 5, 1.4
"""Panels in a row, and the height (inches) from which there is room for words beside them."""


@themed
def timesteps(
    run: Run,
    *,
    steps: Sequence[int] | None = None,
    scale: ScaleChoice = "shared",
    title: str | None = None,
    **where: Unpack[Where],
) -> Plot:
    """Figure of where one patch looks at several steps, noisiest first.

    Above each map is what the network saw at that step, see `analysis.pictures.latent_picture`.

    Args:
        run: a recorded run.
        steps: which steps; None: those nearest to timesteps 1000, 750, 500, 250 and 1.
        scale: one colour scale for all panels ("shared"), or one for each ("panel").
        title: in place of the usual one.
        **where: layer, head, query (row, column), sample, branch; what is left out is chosen as
            `analysis.place.locate` says.

    Raises:
        BadRequest: a coordinate that is not in the run; the message gives the range.
    """
    panels = maps_by_step(run, steps, **where)
    row = map_row(panels, scale, COLUMNS, WIDTH - 2 * MARGIN)
    rows = math.ceil(len(panels.places) / COLUMNS)
    above = row.height + 0.1
    page = sheet(
        title or "Where the outlined patch looks, as the picture forms",
        panel_words(run, panels, step=False),
        [SPREAD_NOTE, *closing_notes(panels)],
        rows * (above + row.row_height) + row.foot_height,
    )
    for i, place in enumerate(panels.places):
        y, x = divmod(i, COLUMNS)
        left = MARGIN + x * (row.width + GAP)
        top = page.top + y * (above + row.row_height)
        words = f"step {place.step}, noise {panels.noise_levels[i]:.2f}"
        axes = page.panel(left, top + TITLE_ROOM, row.width, row.height, words)
        seen = latent_picture(run, place.sample, place.step)
        draw_picture(axes, seen.values, panels.weights.shape[1:])
        outline_patch(axes, panels.query)
        if x == 0 and row.height >= BESIDE:
            _beside(page, top + TITLE_ROOM + row.height / 2, "what the network sees")
            _beside(page, top + above + TITLE_ROOM + row.height / 2, "where the patch looks")
        row.draw(page, i, left, top + above)
    row.draw_foot(page, MARGIN, page.top + rows * (above + row.row_height))
    return page.figure


def _beside(page: Sheet, middle: float, words: str) -> None:
    """Write `words` upright in the left margin."""
    page.text(MARGIN - 0.06, middle, words, rotation=90, ha="right", va="center")
