"""`overlay`: what one patch looks at, drawn over the picture that came out."""

from __future__ import annotations

from typing import Unpack

import numpy

from ditscope.analysis.maps import map_at, most_attended
from ditscope.analysis.place import Where
from ditscope.plot.marks import (
    Scale,
    colour_bar,
    draw_map,
    draw_picture,
    outline_patch,
    outline_region,
    percent,
    scale_of,
)
from ditscope.plot.sheet import (
    BAR,
    BAR_ROOM,
    MARGIN,
    TITLE_ROOM,
    fitted,
    sheet,
    wrapped,
)
from ditscope.plot.theme import INK, SUBTITLE, Plot, themed
from ditscope.plot.words import closing_notes, panel_words
from ditscope.runs.reader import Run

PANEL, SMALL, BETWEEN = 4.8, 2.5, 0.3


@themed
def overlay(run: Run, *, title: str | None = None, **where: Unpack[Where]) -> Plot:
    """Figure of one attention row over the finished picture, in its true proportions.

    The picture is shown in grey; the more of the patch's attention a place receives, the more it
    is covered by its colour. A white line surrounds the fewest patches that together
    receive half of it.

    Args:
        run: a recorded run.
        title: in place of the usual one.
        **where: layer, head, step, query (row, column), sample, branch; what is left out is
            chosen as `analysis.place.locate` says.

    Raises:
        BadRequest: a coordinate that is not in the run; the message gives the range.
    """
    panels = map_at(run, **where)
    weights, scale = panels.weights[0], scale_of(panels.weights.values)
    region = most_attended(weights)
    width, height = fitted(panels.picture.shape, PANEL, PANEL)
    small = fitted(panels.picture.shape, SMALL, SMALL)
    page = sheet(
        title or "What the outlined patch looks at",
        panel_words(run, panels),
        [f"Colour: {scale.words()}.", *closing_notes(panels)],
        TITLE_ROOM + max(height, small[1] + 0.8),
        width=2 * MARGIN + width + BAR_ROOM + BETWEEN + SMALL,
    )
    top, right = page.top + TITLE_ROOM, MARGIN + width + BAR_ROOM + BETWEEN
    axes = page.panel(MARGIN, top, width, height, f"its attention, over {panels.picture_name}")
    draw_picture(axes, grey(panels.picture.values), region.shape)
    draw_map(axes, weights.values, scale.norm, alpha=cover(weights.values, scale))
    if scale.constant is None:
        outline_region(axes, region.values)
    outline_patch(axes, panels.query)
    bar = page.panel(MARGIN + width + 0.16, top, BAR, height)
    colour_bar(bar, scale, upright=True, even=panels.even_share[0])
    plain = page.panel(right, top, *small, panels.picture_name)
    draw_picture(plain, panels.picture.values, region.shape)
    outline_patch(plain, panels.query)
    lines = wrapped(half_words(weights.values, region.values, scale), SUBTITLE, SMALL)
    page.text(right, top + small[1] + 0.18, "\n".join(lines), SUBTITLE, color=INK, linespacing=1.4)
    return page.figure


def half_words(weights: numpy.ndarray, region: numpy.ndarray, scale: Scale) -> str:
    """What the white line says, in a sentence."""
    if not numpy.isfinite(weights).any():
        return "There is no data here."
    if scale.constant is not None:
        return "Its attention is constant: the same on every patch."
    share = float(weights[region].sum() / numpy.nansum(weights))
    return (
        f"{percent(share)} of its attention goes to {region.sum()} of {region.size} patches, "
        "inside the white line."
    )


def cover(weights: numpy.ndarray, scale: Scale) -> numpy.ndarray:
    """How opaque each patch's colour is (y, x), 0.1 to 0.9, along the colour scale."""
    return 0.1 + 0.8 * numpy.asarray(scale.norm(numpy.nan_to_num(weights))).clip(0, 1)


def grey(picture: numpy.ndarray) -> numpy.ndarray:
    """The picture in pale greys, (y, x, 3) uint8, so that colour means attention only."""
    luminance = picture[..., :3].astype(float) @ (0.299, 0.587, 0.114)
    return numpy.repeat((80 + luminance * 0.65)[..., None], 3, axis=-1).round().astype("uint8")
