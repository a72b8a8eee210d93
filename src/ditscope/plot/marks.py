"""What figures are made of: pictures, maps, outlines, colour bars."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.image import AxesImage
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.patheffects import withStroke

from ditscope.plot.theme import (
    ATTENTION_COLOURS,
    CHOSEN,
    EDGE,
    MUTED,
    NO_DATA,
    NO_DATA_HATCH,
    NOTE,
)

OUTLINE_RIM = 1.5
"""How far the frame of a patch is outside it, at most, in points."""


@dataclass(frozen=True)
class Scale:
    """Which share of attention gets which colour: 0 to `high`, by its square root.

    The square root keeps both a spike of 30 % and a band of 1 % visible on one scale. `constant`
    is the one value that all data have, if so (nothing stands out), else None.
    """

    high: float
    constant: float | None = None

    @property
    def norm(self) -> Normalize:
        """The scale as matplotlib wants it."""
        return PowerNorm(0.5, 0, self.high)

    def place(self, share: float) -> float:
        """Where a share is along the colour bar, 0 to 1."""
        return math.sqrt(share / self.high)

    def words(self) -> str:
        """What the colours mean, for beside the colour bar."""
        if self.constant is not None:
            return f"constant, {percent(self.constant)} on every patch"
        return "share of the outlined patch's attention (square-root scale)"


def scale_of(maps: numpy.ndarray) -> Scale:
    """The scale on which maps (any shape, none negative, NaN allowed) are drawn together.

    One value throughout is drawn in the middle of the scale, so far as shares go to 100 %.
    """
    known = maps[numpy.isfinite(maps)]
    if not known.size:
        return Scale(1.0)
    low, high = float(known.min()), float(known.max())
    if high - low <= 1e-6 * high:
        return Scale(min(4 * high, max(1.0, high)) if high > 0 else 1.0, constant=high)
    return Scale(high)


def draw_map(
    axes: Axes,
    values: numpy.ndarray,
    norm: Normalize,
    colours: str = ATTENTION_COLOURS,
    alpha: numpy.ndarray | None = None,
) -> AxesImage:
    """Draw (y, x) values as coloured cells, opaque by `alpha`, hatched where not finite."""
    known = numpy.isfinite(values)
    image = axes.imshow(
        numpy.ma.array(values, mask=~known),
        cmap=colours,
        norm=norm,
        interpolation="nearest",
        aspect="auto",
        alpha=alpha,
        zorder=1,
    )
    if not known.all():
        corners = numpy.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5)])
        cells = [Path(corners + cell[::-1], closed=True) for cell in numpy.argwhere(~known)]
        axes.add_patch(
            PathPatch(
                Path.make_compound_path(*cells),
                facecolor=NO_DATA,
                hatch=NO_DATA_HATCH,
                linewidth=0,
                zorder=2,
            )
        )
    _hold(axes, values.shape)
    return image


def draw_picture(axes: Axes, picture: numpy.ndarray, grid: tuple[int, ...]) -> AxesImage:
    """Draw (y, x, channel) uint8 in patch coordinates: patch (r, c) is centred on y=r, x=c."""
    height, width = grid
    image = axes.imshow(
        picture,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="nearest",
        aspect="auto",
    )
    _hold(axes, grid)
    return image


def _hold(axes: Axes, grid: tuple[int, ...]) -> None:
    """Keep the axes on the grid, whatever is drawn across its edge later."""
    axes.set_xlim(-0.5, grid[1] - 0.5)
    axes.set_ylim(grid[0] - 0.5, -0.5)


def draw_grid(axes: Axes, grid: tuple[int, ...]) -> None:
    """Thin lines between patches, pale with a dark edge so that they show on any picture."""
    height, width = grid
    lines = [[(x - 0.5, -0.5), (x - 0.5, height - 0.5)] for x in range(1, width)]
    lines += [[(-0.5, y - 0.5), (width - 0.5, y - 0.5)] for y in range(1, height)]
    axes.add_collection(LineCollection(lines, colors="white", linewidths=0.4, alpha=0.45))


def outline_patch(axes: Axes, query: tuple[int, int]) -> None:
    """Frame the chosen patch, just outside it so that its own colour stays visible."""
    cell = axes.get_window_extent().width / abs(numpy.diff(axes.get_xlim()).item())  # pixels
    rim = min(0.12, OUTLINE_RIM / 72 * axes.figure.dpi / cell)
    axes.add_patch(
        Rectangle(
            (query[1] - 0.5 - rim, query[0] - 0.5 - rim),
            1 + 2 * rim,
            1 + 2 * rim,
            fill=False,
            edgecolor=CHOSEN,
            linewidth=1.6,
            joinstyle="miter",
            path_effects=[withStroke(linewidth=3.2, foreground=EDGE)],
            clip_on=False,
            zorder=5,
        )
    )


def outline_region(axes: Axes, region: numpy.ndarray, colour: str = "white") -> None:
    """Draw the border of a boolean (y, x) region along patch edges."""
    padded = numpy.pad(region.astype(bool), 1)
    lines = []
    for y, x in numpy.argwhere(padded[1:] != padded[:-1]):  # an edge below padded row y
        lines.append([(x - 1.5, y - 0.5), (x - 0.5, y - 0.5)])
    for y, x in numpy.argwhere(padded[:, 1:] != padded[:, :-1]):
        lines.append([(x - 0.5, y - 1.5), (x - 0.5, y - 0.5)])
    for ink, width in ((EDGE, 2.6), (colour, 1.3)):
        axes.add_collection(
            LineCollection(lines, colors=ink, linewidths=width, capstyle="projecting", zorder=4)
        )


def colour_bar(
    axes: Axes, scale: Scale, *, upright: bool = False, ends: bool = False, even: float = 0.0
) -> None:
    """Fill `axes` with the attention colours of `scale`, with ticks in percent.

    Args:
        axes: empty axes of the size of the bar.
        scale: what the colours mean.
        upright: vertical with ticks to the right; else horizontal with ticks below.
        ends: ticks at the two ends only.
        even: share of each key under even attention, marked on the bar if above 0.
    """
    marked = 0 < even < scale.high
    labels = {even: f"{percent(even)} (even)"} if marked and upright else {}
    size = axes.get_window_extent()
    inches = (size.height if upright else size.width) / axes.figure.dpi
    near = (0.18 if upright else 0.5) / inches
    for tick in (0.0, scale.high, *(() if ends else round_values(scale))):
        if ends or all(abs(scale.place(tick) - scale.place(kept)) > near for kept in labels):
            labels[tick] = percent(tick)
    bar = axes.figure.colorbar(  # type: ignore[union-attr]
        ScalarMappable(scale.norm, ATTENTION_COLOURS),
        cax=axes,
        orientation="vertical" if upright else "horizontal",
    )
    bar.set_ticks(list(labels), labels=list(labels.values()))
    bar.ax.tick_params(length=2.5, width=0.8, labelsize=NOTE, colors=MUTED, pad=2)
    bar.ax.minorticks_off()
    if not upright:  # the labels at the ends stay within the bar
        for tick, text in zip(labels, bar.ax.get_xticklabels(), strict=True):
            if tick in (0.0, scale.high):
                text.set_horizontalalignment("left" if tick == 0.0 else "right")
    if marked:
        edge = withStroke(linewidth=2.8, foreground=EDGE)
        draw = axes.axhline if upright else axes.axvline
        draw(even, color="white", linewidth=1.4, path_effects=[edge])
    if marked and not upright:
        axes.annotate(
            f"{percent(even)} (even)",
            (even, 1),
            (0, 2),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="left" if scale.place(even) < 0.5 else "right",
            va="bottom",
            fontsize=NOTE,
            color=MUTED,
        )


def round_values(scale: Scale) -> list[float]:
    """Round values below the top of the scale, about evenly far apart on the bar."""
    values = []
    for place in (0.75, 0.5, 0.25):
        value = scale.high * place**2
        unit = 10.0 ** math.floor(math.log10(value))
        values.append(max(n for n in (1, 2, 3, 4, 5) if n * unit <= value * (1 + 1e-9)) * unit)
    return values


def percent(share: float) -> str:
    """A share as text with two digits: 0.0039 is '0.39 %'."""
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.2g} %"
