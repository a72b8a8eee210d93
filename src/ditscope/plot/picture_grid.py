"""`image_grid`: finished pictures with the names of their classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
import xarray

from ditscope.errors import BadRequest
from ditscope.plot.sheet import GAP, LINE, MARGIN, WIDTH, fitted, sheet, wrapped
from ditscope.plot.theme import DPI, INK, PANEL_TITLE, Plot, printable, themed

COLUMNS = 4


@themed
def image_grid(
    images: numpy.ndarray | xarray.DataArray, labels: Sequence[str], *, title: str | None = None
) -> Plot:
    """Figure of pictures in rows of four, each with its name below.

    Args:
        images: (sample, y, x, channel) uint8, as `run.images`.
        labels: a name for each picture.
        title: heading; None: no heading.

    Raises:
        BadRequest: no pictures, another shape or type, or not one label for each.
    """
    pictures = numpy.asarray(images)
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or not pictures.size:
        raise BadRequest(
            f"the shape is {pictures.shape}",
            field="images",
            expected="(sample, y, x, 3), not empty",
        )
    if pictures.dtype != numpy.uint8:
        raise BadRequest(f"the type is {pictures.dtype}", field="images", expected="uint8")
    if len(labels) != len(pictures):
        raise BadRequest(
            f"{len(labels)} labels for {len(pictures)} pictures",
            field="labels",
            expected="one for each picture",
        )
    columns = min(COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    width, height = _crisp(pictures.shape[1:], (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS)
    names = [_name(label, width) for label in labels]
    below = max(name.count("\n") + 1 for name in names) * PANEL_TITLE * LINE + 0.14
    page = sheet(
        title or "",
        "",
        [],
        rows * (height + below) - 0.14,
        width=2 * MARGIN + columns * width + (columns - 1) * GAP,
    )
    for i, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        left = MARGIN + (i % columns) * (width + GAP)
        top = page.top + (i // columns) * (height + below)
        axes = page.panel(left, top, width, height)
        axes.imshow(picture, interpolation="nearest", aspect="auto")
        page.text(left + width / 2, top + height + 0.05, name, PANEL_TITLE, color=INK, ha="center")
    return page.figure


def _name(label: str, width: float) -> str:
    """A label in at most two lines that fit below a picture of this width (inches)."""
    lines = wrapped(printable(label), PANEL_TITLE, width)
    return "\n".join([*lines[:1], *(f"{line} …" if lines[2:] else line for line in lines[1:2])])


def _crisp(shape: tuple[int, ...], room: float) -> tuple[float, float]:
    """Width and height (inches) within `room`, a whole number of dots for each pixel."""
    width, height = fitted(shape, room, room)
    dots = int(width * DPI) // shape[1]
    return (shape[1] * dots / DPI, shape[0] * dots / DPI) if dots else (width, height)
