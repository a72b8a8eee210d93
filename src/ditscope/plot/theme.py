"""The one look of all figures, and how a figure is saved.

Colours are safe for colour-blind readers and keep their order in grey print: attention is drawn
in magma (dark is little), statistics in viridis. The outline of the chosen patch is a light blue
that neither map contains, with a dark edge that shows on light pictures. Nothing here, and nothing
in a plot, touches pyplot: figures belong to the caller, and no window or global figure list exists.
"""

from __future__ import annotations

import io
import os
from functools import cache
from pathlib import Path

from matplotlib import font_manager, style
from matplotlib.figure import Figure

from ditscope.core.atomic import new_file
from ditscope.errors import MAX_FOREIGN_TEXT, BadRequest, foreign

DPI = 144
"""Dots per inch of a saved figure; panel edges are laid on this raster."""

ATTENTION_COLOURS = "magma"
STATISTIC_COLOURS = "viridis"
DIFFERENCE_COLOURS = "PuOr_r"
PART_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7b3294",
    "#5a5f66",
)
"""Of parts and regions, after Okabe and Ito (2008)."""
LINE_COLOUR = "#31688e"
INK, MUTED, FAINT = "#1b1c1e", "#5a5f66", "#c9cdd2"
CHOSEN, EDGE = "#4fe3ff", "#10222b"
NO_DATA, NO_DATA_HATCH = "#eceef0", "////"

TITLE, SUBTITLE, PANEL_TITLE, NOTE = 15.0, 10.5, 10.0, 8.5
"""Text sizes in points."""

FORMATS = {"png": ("Software",), "svg": ("Date",), "pdf": ("CreationDate",)}
"""File formats, and what must not be written into them: it would differ each time."""

FONT = "DejaVu Sans"
"""Ships with matplotlib: the same letters on every machine."""

RC = {
    "figure.facecolor": "white",
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "font.family": FONT,
    "font.size": PANEL_TITLE,
    "text.color": INK,
    "text.parse_math": False,  # labels may hold a dollar sign
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.unicode_minus": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": NOTE,
    "ytick.labelsize": NOTE,
    "hatch.color": "#9aa0a6",
    "hatch.linewidth": 0.8,
    "svg.hashsalt": "ditscope",  # the same figure gives the same bytes
}

themed = style.context(RC, after_reset=True)
"""Decorator: draw under this theme, whatever the user's own matplotlib settings are."""


class Plot(Figure):
    """A matplotlib figure that shows itself in a notebook, with no pyplot and no backend set up."""

    def _repr_png_(self) -> bytes:
        return _bytes(self, "png", DPI)


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = DPI) -> Path:
    """Write `figure` to `path`, whole or not at all; the same figure gives the same bytes.

    Args:
        figure: what to save.
        path: a name ending in .png, .svg or .pdf, which says the format.
        dpi: dots per inch of a PNG.

    Raises:
        BadRequest: another ending.
        ResourceError: the folder is missing or cannot be written.
    """
    target = checked_target(path)
    data = _bytes(figure, target.suffix.lower()[1:], dpi)
    with new_file(target) as part:
        part.write_bytes(data)
    return target


def checked_target(path: str | os.PathLike[str]) -> Path:
    """The file to save to; BadRequest if its name does not end in a format that we write."""
    target = Path(path)
    if target.suffix.lower()[1:] not in FORMATS:
        raise BadRequest(
            "figures are not saved in this format",
            file=target,
            expected="a name ending in .png, .svg or .pdf",
        )
    return target


def printable(text: object, limit: int = MAX_FOREIGN_TEXT) -> str:
    """Foreign text, with what the theme's font cannot draw shown by its code point."""
    return "".join(
        character if ord(character) in _glyphs() else f"\\u{ord(character):04x}"
        for character in foreign(text, limit)
    )


@themed
def _bytes(figure: Figure, kind: str, dpi: int) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=dpi, metadata=dict.fromkeys(FORMATS[kind]))
    return buffer.getvalue()


@cache
def _glyphs() -> frozenset[int]:
    font = font_manager.get_font(font_manager.findfont(FONT))
    return frozenset(font.get_charmap())
