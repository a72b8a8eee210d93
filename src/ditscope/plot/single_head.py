"""`head_map`: where one patch looks in one head, beside the finished picture."""

from __future__ import annotations

from typing import Unpack

from ditscope.analysis.maps import map_at
from ditscope.analysis.place import Where
from ditscope.plot.marks import (
    colour_bar,
    draw_grid,
    draw_map,
    draw_picture,
    outline_patch,
    scale_of,
)
from ditscope.plot.sheet import (
    BAR,
    BAR_ROOM,
    MARGIN,
    NOTE_ROOM,
    TITLE_ROOM,
    fitted,
    sheet,
)
from ditscope.plot.theme import Plot, themed
from ditscope.plot.words import SPREAD_NOTE, closing_notes, panel_words, spread_words
from ditscope.runs.reader import Run

PANEL, BETWEEN = 3.9, 0.3


@themed
def head_map(run: Run, *, title: str | None = None, **where: Unpack[Where]) -> Plot:
    """Figure of one attention row: the finished picture in patches, and what each patch receives.

    Args:
        run: a recorded run.
        title: in place of the usual one.
        **where: layer, head, step, query (row, column), sample, branch; what is left out is
            chosen as `analysis.place.locate` says.

    Raises:
        BadRequest: a coordinate that is not in the run; the message gives the range.
    """
    panels = map_at(run, **where)
    values, scale = panels.weights.values[0], scale_of(panels.weights.values)
    kind = "layer" if panels.places[0].head == "mean" else "attention head"
    width, height = fitted(panels.picture.shape, PANEL, PANEL)
    page = sheet(
        title or f"Where the outlined patch looks in one {kind}",
        panel_words(run, panels),
        [f"Colour: {scale.words()}.", SPREAD_NOTE, *closing_notes(panels)],
        TITLE_ROOM + height + NOTE_ROOM,
        width=2 * (MARGIN + width) + BETWEEN + BAR_ROOM,
    )
    top, right = page.top + TITLE_ROOM, MARGIN + width + BETWEEN
    picture = page.panel(MARGIN, top, width, height, f"{panels.picture_name}, cut into patches")
    draw_picture(picture, panels.picture.values, values.shape)
    draw_grid(picture, values.shape)
    outline_patch(picture, panels.query)
    heat = page.panel(right, top, width, height, "its attention, patch by patch")
    draw_map(heat, values, scale.norm)
    outline_patch(heat, panels.query)
    page.text(right, top + height + 0.05, spread_words(panels, 0))
    bar = page.panel(right + width + 0.16, top, BAR, height)
    colour_bar(bar, scale, upright=True, even=panels.even_share[0])
    return page.figure
