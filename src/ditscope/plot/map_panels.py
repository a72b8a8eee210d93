"""Maps beside pictures: what the figures of regions, parts and differences are made of."""

from __future__ import annotations

import numpy
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from ditscope.plot.chart import MAX_TICKS
from ditscope.plot.sheet import BAR, GAP, MARGIN, Sheet, wrapped
from ditscope.plot.theme import MUTED, NOTE

LEGEND_LENGTH, LEGEND_ROOM = 3.4, 0.62
"""Inches: length of a lying colour bar, and what it takes with its words."""


def panel_size(picture: numpy.ndarray, columns: int, room: float) -> tuple[float, float]:
    """Width and height (inches) of pictures of which `columns` fill `room` side by side."""
    width = (room - (columns - 1) * GAP) / columns
    return width, width * picture.shape[0] / picture.shape[1]


def left_of(column: int, width: float) -> float:
    """Left edge (inches) of a panel in a row that begins at the margin."""
    return MARGIN + column * (width + GAP)


def lying_bar(
    page: Sheet, left: float, top: float, norm: Normalize, colours: str, words: str
) -> None:
    """A colour bar with its meaning and unit beside it."""
    axes = page.panel(left, top, LEGEND_LENGTH, BAR)
    bar = page.figure.colorbar(ScalarMappable(norm, colours), cax=axes, orientation="horizontal")
    bar.ax.tick_params(length=2.5, width=0.8, labelsize=NOTE, colors=MUTED, pad=2)
    bar.ax.minorticks_off()
    beside = left + LEGEND_LENGTH + 0.35
    lines = wrapped(words, NOTE, page.width - MARGIN - beside)
    page.text(beside, top - 0.01, "\n".join(lines))


def number_ticks(axes: Axes, rows: list[str], columns: list[str]) -> None:
    """Names of rows and columns of a table of cells, at most a few of them."""
    for names, place in ((rows, axes.set_yticks), (columns, axes.set_xticks)):
        every = max(1, -(-len(names) // MAX_TICKS))
        chosen = list(range(0, len(names), every))
        place(chosen, [names[i] for i in chosen])
    axes.tick_params(length=2, width=0.6, labelsize=NOTE, colors=MUTED)
