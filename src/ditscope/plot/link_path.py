"""`continuity`: where attention holds a thing together, and where it breaks."""

from __future__ import annotations

import numpy
import xarray
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.patheffects import withStroke

from ditscope.analysis.pictures import finished_picture
from ditscope.plot.chart import MAX_TICKS, keep_inner_ticks, open_axes
from ditscope.plot.marks import draw_grid, draw_picture
from ditscope.plot.patch_overlay import grey
from ditscope.plot.sheet import BAR, MARGIN, TITLE_ROOM, WIDTH, fitted, sheet
from ditscope.plot.theme import (
    CHOSEN,
    EDGE,
    LINE_COLOUR,
    MUTED,
    NOTE,
    STATISTIC_COLOURS,
    Plot,
    themed,
)
from ditscope.plot.words import sentence, subject_words
from ditscope.runs.reader import Run

PICTURE, LEFT, HEIGHT = 3.2, 1.75, 1.9


@themed
def continuity(run: Run, found: xarray.Dataset, *, title: str | None = None) -> Plot:
    """Figure of links along a curve, or on the best way between two regions.

    Args:
        run: the run that was looked at.
        found: what `continuity_along` or `continuity_between` of `analysis.continuity` returned.
        title: in place of the usual one.
    """
    sample, branch = found.attrs["sample"], found.attrs["branch"]
    picture, name = finished_picture(run, sample)
    width, height = fitted(picture.shape, PICTURE, PICTURE)
    strength, weakest = found["strength"].values, found.attrs["weakest"]
    y, x = (int(found[axis][weakest]) for axis in ("y0", "x0"))
    page = sheet(
        title or "Does attention hold this together?",
        sentence(f"{len(strength)} links", subject_words(run, sample, branch)),
        [
            f"Weakest link: beside patch ({y}, {x}), strength {strength[weakest]:.2f}, stronger "
            f"than {100 * float(found['rank'][weakest]):.0f} % of the picture's links in its "
            "direction. Strength 1: what neighbours in that direction have on average."
        ],
        TITLE_ROOM + max(height, HEIGHT + 0.5),
        width=WIDTH,
    )
    top = page.top + TITLE_ROOM
    axes = page.panel(MARGIN, top, width, height, f"the way, over {name}")
    grid = (found.attrs["grid"][0], found.attrs["grid"][1])
    draw_picture(axes, grey(picture.values), grid)
    draw_grid(axes, grid)
    norm = Normalize(0, max(float(strength.max()), 1.0))
    ends = numpy.stack([numpy.stack([found[f"x{i}"], found[f"y{i}"]], -1) for i in (0, 1)], 1)
    axes.add_collection(LineCollection(list(ends), colors=EDGE, linewidths=5.5, capstyle="round"))
    axes.add_collection(
        LineCollection(
            list(ends),
            array=strength,
            cmap=STATISTIC_COLOURS,
            norm=norm,
            linewidths=3.6,
            capstyle="round",
        )
    )
    _mark(axes, *ends[weakest].mean(0))
    bar = page.panel(MARGIN + width + 0.16, top, BAR, height)
    page.figure.colorbar(ScalarMappable(norm, STATISTIC_COLOURS), cax=bar)
    bar.tick_params(length=2.5, width=0.8, labelsize=NOTE, colors=MUTED, pad=2)
    bar.set_ylabel("strength of a link (1: average neighbours)", fontsize=NOTE, labelpad=2)
    left = MARGIN + width + LEFT
    axes = page.panel(left, top, WIDTH - MARGIN - left, HEIGHT, "from its start to its end")
    open_axes(axes, "strength\n(1: average neighbours)", "link, from the start")
    axes.plot(strength, color=LINE_COLOUR, linewidth=1.6, marker="o", markersize=3.2)
    axes.axhline(1, color=EDGE, linewidth=0.8, linestyle=(0, (4, 3)))
    _mark(axes, weakest, float(strength[weakest]))
    axes.set_ylim(0, max(float(strength.max()) * 1.1, 1.2))
    every = -(-len(strength) // MAX_TICKS)
    numbers = list(range(0, len(strength), every))
    axes.set_xticks(numbers, [str(number + 1) for number in numbers])
    keep_inner_ticks(axes)
    return page.figure


def _mark(axes: Axes, x: float, y: float) -> None:
    """A ring around the weakest link."""
    edge = withStroke(linewidth=3.4, foreground=EDGE)
    axes.plot(
        [x],
        [y],
        "o",
        markersize=13,
        markerfacecolor="none",
        markeredgecolor=CHOSEN,
        markeredgewidth=1.7,
        path_effects=[edge],
        zorder=6,
    )
