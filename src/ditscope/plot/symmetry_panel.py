"""`symmetry`: whether both sides of an axis are attended alike, and by which heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import xarray
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patheffects import withStroke

from ditscope.analysis.pictures import finished_picture
from ditscope.analysis.place import checked_sample
from ditscope.analysis.received import received_maps
from ditscope.analysis.regions import Region
from ditscope.analysis.symmetry import Axis
from ditscope.analysis.symmetry import symmetry as measured
from ditscope.core.axes import Branch
from ditscope.plot.map_panels import number_ticks
from ditscope.plot.marks import draw_map, draw_picture, outline_region
from ditscope.plot.sheet import BAR, MARGIN, TITLE_ROOM, Sheet, fitted, sheet
from ditscope.plot.theme import (
    ATTENTION_COLOURS,
    CHOSEN,
    DIFFERENCE_COLOURS,
    EDGE,
    MUTED,
    NOTE,
    STATISTIC_COLOURS,
    Plot,
    themed,
)
from ditscope.plot.words import counted, sentence, subject_words
from ditscope.runs.reader import Run

PANEL, TABLE, ROOM = 2.35, 1.75, 1.2
"""Inches: a picture, a table, and what a colour bar takes beside either."""


@themed
def symmetry(
    run: Run,
    region: Region | None = None,
    *,
    axis: Axis = "vertical",
    at: float | None = None,
    steps: Sequence[int] | None = None,
    sample: int = 0,
    branch: Branch = "cond",
    title: str | None = None,
) -> Plot:
    """Figure of the two sides, of what they receive, and of both measures for every head.

    Args:
        run: a run with stored Q and K.
        region: one of the two sides, a box or mask; None: the half before the axis.
        axis: "vertical" or "horizontal".
        at: column or row of the axis; None: the middle.
        steps: mean over these stored steps; None: all of them.
        sample: index of the sample.
        branch: "cond" or "uncond".
        title: in place of the usual one.

    Raises:
        BadRequest: see `analysis.symmetry.symmetry`.
    """
    sample = checked_sample(run, sample)
    found = measured(run, region, axis=axis, at=at, steps=steps, samples=[sample], branch=branch)
    heads = found.sel(sample=sample).mean("step", skipna=True)
    density = received_maps(run, steps=steps, samples=[sample], branch=branch)[0].mean("layer")
    picture, name = finished_picture(run, sample)
    width, height = fitted(picture.shape, PANEL, PANEL)
    balance = float(found["balance"].sel(sample=sample).mean())
    page = sheet(
        title or f"Are both sides of a {axis} axis attended alike?",
        sentence(
            counted("mean over", found.sizes["step"], "stored step"),
            subject_words(run, sample, branch),
        ),
        [
            f"On average {_balance_words(balance, axis)} Balance: difference over sum of what a "
            "patch of either side receives, 0 if alike. Like its mirror image: share of a head's "
            "attention that its map and the mirror image have in common; where only position "
            "counts it is high, whatever is shown."
        ],
        TITLE_ROOM + max(height, TABLE) + 0.35,
        width=2 * MARGIN + 2 * width + 0.2 + ROOM + 2 * (TABLE + ROOM) + 0.5,
    )
    top = page.top + TITLE_ROOM
    axes = page.panel(MARGIN, top, width, height, name)
    draw_picture(axes, picture.values, density.shape)
    sides = found["mask_region"].values | found["mask_mirror"].values
    _draw_axis(axes, found.attrs["axis"], found.attrs["at"])
    outline_region(axes, sides)
    left = MARGIN + width + 0.2
    norm = Normalize(0, float(density.max()))
    axes = page.panel(left, top, width, height, "what patches receive")
    draw_map(axes, density.values, norm)
    _draw_axis(axes, found.attrs["axis"], found.attrs["at"])
    _bar(page, left + width, top, height, norm, ATTENTION_COLOURS, "even shares")
    left += width + ROOM + 0.3
    most = float(numpy.nanmax(numpy.abs(heads["balance"].values), initial=0.05))
    for measure, words, limits, colours, unit in (
        ("balance", "balance, by head", Normalize(-most, most), DIFFERENCE_COLOURS, _ends(axis)),
        ("mirrored", "like its mirror image", Normalize(0, 1), STATISTIC_COLOURS, "share"),
    ):
        values = heads[measure].transpose("layer", "head")
        _table(page.panel(left, top, TABLE, TABLE, words), values, limits, colours)
        _bar(page, left + TABLE, top, TABLE, limits, colours, unit)
        left += TABLE + ROOM + 0.1
    return page.figure


def _table(axes: Axes, values: xarray.DataArray, limits: Normalize, colours: str) -> None:
    """A number for every head; rows are layers."""
    draw_map(axes, values.values, limits, colours)
    number_ticks(axes, _texts(values["layer"]), _texts(values["head"]))
    axes.set_xlabel("head", fontsize=NOTE, labelpad=1)
    axes.set_ylabel("layer", fontsize=NOTE, labelpad=1)


def _bar(
    page: Sheet, right: float, top: float, length: float, limits: Normalize, colours: str, unit: str
) -> None:
    """The colour bar of a panel that ends at `right`."""
    bar = page.panel(right + 0.1, top, BAR, length)
    page.figure.colorbar(ScalarMappable(limits, colours), cax=bar)
    bar.tick_params(length=2.5, width=0.8, labelsize=NOTE, colors=MUTED, pad=2)
    bar.set_ylabel(unit, fontsize=NOTE, labelpad=2)


def _texts(values: object) -> list[str]:
    return [str(value) for value in numpy.asarray(values).tolist()]


def _ends(axis: Axis) -> str:
    return "left  <  0  <  right" if axis == "vertical" else "above  <  0  <  below"


def _balance_words(balance: float, axis: Axis) -> str:
    """Which side receives more, as a sentence."""
    if not numpy.isfinite(balance):
        return "neither side receives anything."
    sides = ("left", "right") if axis == "vertical" else ("upper", "lower")
    more = (1 + abs(balance)) / (1 - abs(balance)) - 1 if abs(balance) < 1 else numpy.inf
    if more < 0.01:
        return "both sides receive the same within 1 %."
    return f"a patch of the {sides[balance > 0]} side receives {100 * more:.0f} % more."


def _draw_axis(axes: Axes, axis: Axis, at: float) -> None:
    draw = axes.axvline if axis == "vertical" else axes.axhline
    edge = withStroke(linewidth=3.0, foreground=EDGE)
    draw(at, color=CHOSEN, linewidth=1.5, linestyle=(0, (4, 2)), path_effects=[edge], zorder=5)
