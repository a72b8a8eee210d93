"""`map_differences`: where in the picture two classes, runs or models differ."""

from __future__ import annotations

import numpy
import xarray
from matplotlib.colors import Normalize

from ditscope.analysis.compare import SIGNIFICANT
from ditscope.plot.map_panels import LEGEND_ROOM, left_of, lying_bar
from ditscope.plot.marks import draw_map
from ditscope.plot.sheet import MARGIN, TITLE_ROOM, fitted, sheet
from ditscope.plot.theme import ATTENTION_COLOURS, DIFFERENCE_COLOURS, INK, Plot, themed
from ditscope.plot.words import counted, sentence

PANEL = 2.95


@themed
def map_differences(
    found: xarray.Dataset, *, names: tuple[str, str] = ("A", "B"), title: str | None = None
) -> Plot:
    """Figure of received attention of both sides, and of its difference.

    Args:
        found: what `analysis.map_difference.map_difference` returned.
        names: what the two sides are called.
        title: in place of the usual one.
    """
    maps = [found[name].values for name in ("mean_a", "mean_b", "difference")]
    width, height = fitted(maps[0].shape, PANEL, PANEL)
    counts = found.attrs["samples"]
    sure = numpy.argwhere((found["p_adjusted"] <= SIGNIFICANT).values)
    page = sheet(
        title or f"Where the picture is attended differently: {names[1]} less {names[0]}",
        sentence(
            f"{counted('', counts[0], 'picture').strip()} against {counts[1]}",
            found.attrs["design"],
            _range("layers from depth", found.attrs["depth"]),
            _range("steps from noise", found.attrs["noise"]),
        ),
        _notes(found, len(sure)),
        TITLE_ROOM + height + 2 * LEGEND_ROOM,
        width=2 * MARGIN + 3 * width + 2 * 0.18,
    )
    both = Normalize(0, max(float(numpy.nanmax(values)) for values in maps[:2]))
    most = float(numpy.abs(maps[2]).max()) or 1.0
    apart = Normalize(-most, most)
    titles = (names[0], names[1], f"{names[1]} less {names[0]}")
    for i, (values, words) in enumerate(zip(maps, titles, strict=True)):
        axes = page.panel(left_of(i, width), page.top + TITLE_ROOM, width, height, words)
        if i < 2:
            draw_map(axes, values, both)
        else:
            draw_map(axes, values, apart, DIFFERENCE_COLOURS)
            axes.plot(sure[:, 1], sure[:, 0], "o", color=INK, markersize=2.4, linestyle="none")
    top = page.top + TITLE_ROOM + height + 0.16
    lying_bar(page, MARGIN, top, both, ATTENTION_COLOURS, "received, in even shares: left, middle")
    lying_bar(
        page,
        MARGIN,
        top + LEGEND_ROOM * 0.8,
        apart,
        DIFFERENCE_COLOURS,
        f"right: difference; orange is more in {names[1]}",
    )
    return page.figure


def _range(words: str, ends: tuple[float, float]) -> str:
    return f"{words} {ends[0]:g} to {ends[1]:g}"


def _notes(found: xarray.Dataset, sure: int) -> list[str]:
    if found["p"].isnull().all():
        return ["One picture says nothing of chance: more with --num-samples 8."]
    return [
        f"Dots: beyond chance, {sure} of {found['difference'].size} patches (false discovery rate "
        "5 %). Objects of two pictures lie in different places: maps of classes mean most over "
        "many pictures."
    ]
