"""`matrix`: the whole map of one head as a matrix, every patch against every patch."""

from __future__ import annotations

from typing import Unpack

import numpy

from ditscope.analysis.map_measures import patch_maps
from ditscope.analysis.maps import map_at
from ditscope.analysis.place import Where, grid_of
from ditscope.plot.marks import (
    colour_bar,
    draw_map,
    draw_picture,
    outline_patch,
    percent,
    scale_of,
)
from ditscope.plot.sheet import BAR, BAR_ROOM, MARGIN, TITLE_ROOM, fitted, sheet
from ditscope.plot.theme import CHOSEN, EDGE, NOTE, Plot, themed
from ditscope.plot.words import closing_notes, panel_words
from ditscope.runs.reader import Run

PANEL, PICTURE, BETWEEN, FOOT = 4.6, 2.2, 0.75, 0.42
MOST = 1024
"""Rows of the matrix that are drawn; of more patches, this many spread evenly are shown."""


@themed
def matrix(run: Run, *, title: str | None = None, **where: Unpack[Where]) -> Plot:
    """Figure of a head's attention: rows are the patches that look, columns those looked at.

    Patches are in reading order, so one row of the picture is a run of neighbouring rows; the
    outlined patch of the picture is the marked row.

    Args:
        run: a recorded run.
        title: in place of the usual one.
        **where: layer, head, step, query, sample, branch, chosen as `analysis.place.locate` says.

    Raises:
        BadRequest: a coordinate that is not in the run; the message gives the range.
    """
    panels = map_at(run, **where)
    place = panels.places[0]
    grid = grid_of(run, place.layer)
    shown = numpy.unique(numpy.linspace(0, grid.count - 1, min(MOST, grid.count)).astype(int))
    maps = patch_maps(run, place.layer, place.step, shown, place.sample, place.branch)[:, :, shown]
    values = maps.mean(0) if place.head == "mean" else maps[place.head]
    scale = scale_of(values)
    width, height = fitted(panels.picture.shape, PICTURE, PICTURE)
    page = sheet(
        title or "All of one head: where every patch looks",
        panel_words(run, panels),
        [
            "Diagonal: patches that look at themselves and their neighbours in the row; stripes "
            f"beside it, every {grid.width}: neighbours above and below. An upright line: a patch "
            "that all look at.",
            f"Dark is little, not nothing: half of all cells are above {_short(values, 50)}, one "
            f"in a hundred above {_short(values, 99)}, the brightest is {_short(values, 100)}.",
            *([f"{len(shown)} of {grid.count} patches."] if len(shown) < grid.count else []),
            *closing_notes(panels)[:-1],
        ],
        TITLE_ROOM + PANEL + FOOT,
        width=2 * MARGIN + width + BETWEEN + PANEL + BAR_ROOM,
    )
    top = page.top + TITLE_ROOM
    axes = page.panel(MARGIN, top, width, height, panels.picture_name)
    draw_picture(axes, panels.picture.values, (grid.height, grid.width))
    outline_patch(axes, place.query)
    left = MARGIN + width + BETWEEN
    axes = page.panel(left, top, PANEL, PANEL, "attention of every patch")
    draw_map(axes, values, scale.norm)
    ticks = range(0, len(shown), max(1, len(shown) // 4))
    names = [f"row {shown[i] // grid.width}" for i in ticks]
    axes.set_yticks(list(ticks), names)
    axes.set_xticks(list(ticks), names)
    axes.tick_params(length=2.5, labelsize=NOTE)
    axes.set_ylabel("patch that looks, in reading order", fontsize=NOTE, labelpad=1)
    axes.set_xlabel("patch looked at, in reading order", fontsize=NOTE, labelpad=1)
    here = numpy.searchsorted(shown, place.query[0] * grid.width + place.query[1])
    for colour, line in ((EDGE, 2.4), (CHOSEN, 1.0)):
        axes.axhline(here - 0.5, color=colour, linewidth=line, xmax=0.02, zorder=6)
        axes.axhline(here + 0.5, color=colour, linewidth=line, xmax=0.02, zorder=6)
    bar = page.panel(left + PANEL + 0.16, top, BAR, PANEL)
    colour_bar(bar, scale, upright=True, even=panels.even_share[0])
    bar.set_ylabel("share of the row's attention (square-root scale)", fontsize=NOTE, labelpad=2)
    return page.figure


def _short(values: numpy.ndarray, share: float) -> str:
    """The value that this share of the cells, in percent, does not exceed."""
    return percent(float(numpy.percentile(values, share)))
