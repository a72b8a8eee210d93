"""Attention maps side by side: what `layers` and `timesteps` are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy

from ditscope.analysis.maps import AttentionPanels
from ditscope.errors import BadRequest
from ditscope.plot.marks import Scale, colour_bar, draw_map, outline_patch, scale_of
from ditscope.plot.sheet import BAR, GAP, LINE, NOTE_ROOM, TITLE_ROOM, Sheet
from ditscope.plot.theme import INK, NOTE
from ditscope.plot.words import spread_words

ScaleChoice = Literal["shared", "panel"]

OWN_BAR_ROOM, SHARED_BAR_ROOM, SHARED_BAR_LENGTH = 0.34, 0.6, 3.4
"""Inches: below each row for bars of their own; below all rows for a shared bar, and its length."""

OWN_SCALE_NOTE = (
    "Colour: share of the outlined patch's attention, on a square-root scale of its own for each "
    "panel: compare shapes, not colours."
)


@dataclass(frozen=True)
class MapRow:
    """The panels, the colour scale of each, and how large they are drawn (inches)."""

    panels: AttentionPanels
    scales: tuple[Scale, ...]
    shared: bool
    width: float
    height: float

    @property
    def row_height(self) -> float:
        """From the top of a row's titles to the top of the next row."""
        return TITLE_ROOM + self.height + NOTE_ROOM + (0.0 if self.shared else OWN_BAR_ROOM)

    @property
    def foot_height(self) -> float:
        """Below the last row: the shared colour bar, or the line that says that there is none."""
        return SHARED_BAR_ROOM if self.shared else NOTE_ROOM

    def draw(self, sheet: Sheet, i: int, left: float, top: float, title: str = "") -> None:
        """Draw panel `i` with its title, its note and, if scales are not shared, its bar."""
        scale, below = self.scales[i], top + TITLE_ROOM + self.height + 0.05
        axes = sheet.panel(left, top + TITLE_ROOM, self.width, self.height, title)
        draw_map(axes, self.panels.weights.values[i], scale.norm)
        outline_patch(axes, self.panels.query)
        sheet.text(left, below, spread_words(self.panels, i))
        if not self.shared and numpy.isfinite(self.panels.weights.values[i]).any():
            colour_bar(sheet.panel(left, below + NOTE_ROOM, self.width, 0.09), scale, ends=True)

    def draw_foot(self, sheet: Sheet, left: float, top: float) -> None:
        """Draw the shared colour bar and say what the colours mean."""
        if not self.shared:
            sheet.text(left, top + 0.05, OWN_SCALE_NOTE)
            return
        beside = left + SHARED_BAR_LENGTH + 0.35
        bar = sheet.panel(left, top + 0.22, SHARED_BAR_LENGTH, BAR)
        evens = set(self.panels.even_share)
        colour_bar(bar, self.scales[0], even=evens.pop() if len(evens) == 1 else 0.0)
        sheet.text(beside, top + 0.19, self.scales[0].words(), color=INK)
        sheet.text(beside, top + 0.19 + NOTE * LINE, "one colour scale for all panels")


def map_row(panels: AttentionPanels, scale: ScaleChoice, columns: int, room: float) -> MapRow:
    """Panels sized so that `columns` of them fill `room` inches, on one scale or one each.

    Raises:
        BadRequest: a scale other than "shared" and "panel".
    """
    if scale not in ("shared", "panel"):
        raise BadRequest(
            f"{scale!r} is not a way to scale colours",
            field="scale",
            expected='"shared" or "panel"',
        )
    maps = panels.weights.values
    shared = scale == "shared"
    scales = [scale_of(maps)] * len(maps) if shared else [scale_of(values) for values in maps]
    width = (room - (columns - 1) * GAP) / columns
    rows, cells = panels.picture.shape[:2]
    return MapRow(panels, tuple(scales), shared, width, width * rows / cells)
