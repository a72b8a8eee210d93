"""`layers`: the same patch in several layers, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

from ditscope.analysis.maps import maps_by_layer
from ditscope.analysis.place import Where
from ditscope.plot.map_row import ScaleChoice, map_row
from ditscope.plot.marks import draw_grid, draw_picture, outline_patch
from ditscope.plot.sheet import GAP, MARGIN, TITLE_ROOM, WIDTH, sheet
from ditscope.plot.theme import Plot, themed
from ditscope.plot.words import SPREAD_NOTE, closing_notes, panel_words
from ditscope.runs.reader import Run

COLUMNS = 7


@themed
def layers(
    run: Run,
    *,
    layers: Sequence[int] | None = None,
    scale: ScaleChoice = "shared",
    title: str | None = None,
    **where: Unpack[Where],
) -> Plot:
    """Figure of where one patch looks in several layers, beside the finished picture.

    Args:
        run: a recorded run.
        layers: which layers; None: 2, 8, 14, 18, 22 and 24 of 28, and the same relative depths
            of other models.
        scale: one colour scale for all panels ("shared"), or one for each ("panel").
        title: in place of the usual one.
        **where: head (default "mean", over the heads of each layer), step, query (row, column),
            sample, branch; what is left out is chosen as `analysis.place.locate` says.

    Raises:
        BadRequest: a coordinate that is not in the run; the message gives the range.
    """
    panels = maps_by_layer(run, layers, **where)
    row = map_row(panels, scale, COLUMNS, WIDTH - 2 * MARGIN)
    rows = math.ceil((len(panels.places) + 1) / COLUMNS)
    page = sheet(
        title or "Where the outlined patch looks, layer by layer",
        panel_words(run, panels, layer=False),
        [SPREAD_NOTE, *closing_notes(panels)],
        rows * row.row_height + row.foot_height,
    )
    grid = panels.weights.shape[1:]
    axes = page.panel(MARGIN, page.top + TITLE_ROOM, row.width, row.height, panels.picture_name)
    draw_picture(axes, panels.picture.values, grid)
    draw_grid(axes, grid)
    outline_patch(axes, panels.query)
    for i, place in enumerate(panels.places):
        y, x = divmod(i + 1, COLUMNS)
        left, top = MARGIN + x * (row.width + GAP), page.top + y * row.row_height
        row.draw(page, i, left, top, f"layer {place.layer}")
    row.draw_foot(page, MARGIN, page.top + rows * row.row_height)
    return page.figure
