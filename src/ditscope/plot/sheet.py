"""Layout in inches from the top left corner: header, panels, footer. No solver, so no surprises."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, get_font

from ditscope.plot.theme import DPI, FONT, INK, MUTED, NOTE, PANEL_TITLE, SUBTITLE, TITLE, Plot

WIDTH, LEAST_WIDTH = 10.0, 7.2
MARGIN = 0.32
GAP = 0.18
FOOT = 0.15
LINE = 1.35 / 72
"""Height of a line of text, inches per point."""
TITLE_ROOM = PANEL_TITLE * LINE + 0.04
NOTE_ROOM = NOTE * LINE + 0.07
"""Inches above a panel for its title, below it for one line of small print."""
BAR, BAR_ROOM = 0.14, 1.15
"""Thickness of a colour bar, and what an upright one takes to the right of a map, inches."""


@dataclass(frozen=True)
class Sheet:
    """A figure with its words in place; `top` to `bottom` (inches from the top) is for panels."""

    figure: Plot
    width: float
    height: float
    top: float
    bottom: float

    def panel(self, left: float, top: float, width: float, height: float, title: str = "") -> Axes:
        """Empty axes without ticks at this place, on the raster of saved figures, titled above."""
        left, top, width, height = (round(v * DPI) / DPI for v in (left, top, width, height))
        axes = self.figure.add_axes(
            (
                left / self.width,
                1 - (top + height) / self.height,
                width / self.width,
                height / self.height,
            )
        )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(title, fontsize=PANEL_TITLE, loc="left", pad=4)
        return axes

    def text(
        self, left: float, top: float, words: str, size: float = NOTE, **style: object
    ) -> None:
        """Write `words` with their top left corner (or as `ha`, `va` say) at this place."""
        options: dict[str, Any] = {"color": MUTED, "ha": "left", "va": "top", **style}
        self.figure.text(left / self.width, 1 - top / self.height, words, fontsize=size, **options)


def sheet(title: str, subtitle: str, notes: list[str], body: float, width: float = WIDTH) -> Sheet:
    """A sheet whose free middle is `body` inches high.

    Args:
        title: what is seen, in plain words.
        subtitle: where in the model, and when.
        notes: small print below the panels, one paragraph each.
        body: height of the panels, inches.
        width: of the whole figure, inches; never less than the words need.
    """
    width = round(max(width, LEAST_WIDTH) * DPI) / DPI
    room = width - 2 * MARGIN
    lines = [
        (text, size, weight, colour)
        for words, size, weight, colour in (
            (title, TITLE, "bold", INK),
            (subtitle, SUBTITLE, "normal", MUTED),
        )
        for text in wrapped(words, size, room, weight)
    ]
    small = [line for note in notes for line in wrapped(note, NOTE, room)]
    top = MARGIN * 0.8 + sum(size * LINE for _, size, _, _ in lines) + 0.14
    foot = len(small) * NOTE * LINE + MARGIN * 0.7 + (FOOT if small else 0)
    height = round((top + body + foot) * DPI) / DPI
    figure = Plot(figsize=(width, height))
    made = Sheet(figure, width, height, top, top + body)
    y = MARGIN * 0.8
    for text, size, weight, colour in lines:
        made.text(MARGIN, y, text, size, weight=weight, color=colour)
        y += size * LINE
    for i, text in enumerate(small):
        made.text(MARGIN, top + body + FOOT + i * NOTE * LINE, text, NOTE)
    return made


def wrapped(words: str, size: float, room: float, weight: str = "normal") -> list[str]:
    """`words` in as few lines as fit `room` inches; a word that is too long for one is cut."""
    most = room * 72 / size  # em

    def width(text: str) -> float:
        return sum(_advance(character, weight) for character in text)

    lines: list[str] = []
    for word in words.split():
        while width(word) > most and len(word) > 1:
            word = f"{word[:-2]}…"
        if lines and width(f"{lines[-1]} {word}") <= most:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


@cache
def _advance(character: str, weight: str) -> float:
    """Width of a character in the theme's font, in em."""
    font = get_font(findfont(FontProperties(family=FONT, weight=weight)))
    font.set_size(100, 72)
    return font.load_char(ord(character)).linearHoriAdvance / 65536 / 100


def fitted(shape: tuple[int, ...], width: float, height: float) -> tuple[float, float]:
    """The largest width and height (inches) within these that keep a picture's true aspect."""
    rows, columns = shape[:2]
    scale = min(width / columns, height / rows)
    return columns * scale, rows * scale
