"""`differences`: what differs between two runs, by statistic, noise level, layer and head."""

from __future__ import annotations

import numpy
import xarray
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from ditscope.analysis.compare import SIGNIFICANT
from ditscope.analysis.coordinates import NOISE_EDGES
from ditscope.plot.chart import axis_words
from ditscope.plot.marks import draw_map
from ditscope.plot.sheet import BAR, BAR_ROOM, MARGIN, TITLE_ROOM, WIDTH, sheet
from ditscope.plot.theme import DIFFERENCE_COLOURS, INK, MUTED, NOTE, Plot, themed
from ditscope.plot.words import counted, sentence

LEFT, GAP, BETWEEN = 0.75, 0.14, 0.34
ROW = (0.08, 0.22)


@themed
def differences(
    comparison: xarray.Dataset,
    *,
    names: tuple[str, str] = ("A", "B"),
    title: str | None = None,
) -> Plot:
    """Figure of a comparison: rows are statistics, columns ranges of noise, noisiest first.

    Args:
        comparison: what `ds.compare` returned.
        names: what the two runs are called.
        title: in place of the usual one.
    """
    shown = comparison.sortby("noise", ascending=False)
    metrics, ranges = shown.sizes["metric"], shown.sizes["noise"]
    layers = shown.sizes["layer"]
    height = layers * float(numpy.clip(1.7 / layers, *ROW))
    width = (WIDTH - 2 * MARGIN - LEFT - BAR_ROOM - (ranges - 1) * GAP) / ranges
    block = TITLE_ROOM + height + BETWEEN
    samples = shown.attrs["samples"]
    page = sheet(
        title or f"What differs in attention: {names[1]} less {names[0]}",
        sentence(
            f"{counted('', samples[0], 'picture').strip()} against {samples[1]}",
            shown.attrs["design"],
            "in units of even attention",
        ),
        _notes(shown, names),
        metrics * block,
    )
    for row in range(metrics):
        values = shown["difference"].isel(metric=row)
        top = page.top + row * block + TITLE_ROOM
        known = numpy.abs(values.values[numpy.isfinite(values.values)])
        most = float(known.max()) if known.size and known.max() > 0 else 1.0
        norm = Normalize(-most, most)
        for column in range(ranges):
            here = shown.isel(metric=row, noise=column).transpose("layer", "head", ...)
            middle, half = float(here["noise"]), (NOISE_EDGES[1] - NOISE_EDGES[0]) / 2
            left = MARGIN + LEFT + column * (width + GAP)
            name = f"noise {middle - half:.2f} to {middle + half:.2f}" if row == 0 else ""
            axes = page.panel(left, top, width, height, name)
            draw_map(axes, here["difference"].values, norm, DIFFERENCE_COLOURS)
            sure = numpy.argwhere((here["p_adjusted"] <= SIGNIFICANT).values)
            axes.plot(sure[:, 1], sure[:, 0], "o", color=INK, markersize=3, linestyle="none")
            if row == metrics - 1:
                axes.set_xlabel("head", fontsize=NOTE)
            if column == 0:
                words = axis_words(str(values["metric"].item()), "")
                axes.set_ylabel(f"{words}\nlayer", fontsize=NOTE)
                _ticks(axes.yaxis, here["layer"].values)
            _ticks(axes.xaxis, here["head"].values, labels=row == metrics - 1)
            axes.tick_params(length=2, width=0.6, labelsize=NOTE, colors=MUTED)
        bar = page.panel(WIDTH - MARGIN - BAR_ROOM + 0.16, top, BAR, height)
        page.figure.colorbar(ScalarMappable(norm, DIFFERENCE_COLOURS), cax=bar)
        bar.tick_params(length=2.5, width=0.8, labelsize=NOTE, colors=MUTED)
        bar.set_ylabel("of even", fontsize=NOTE)
    return page.figure


def _ticks(axis: Axis, values: numpy.ndarray, *, labels: bool = True) -> None:
    """About six ticks with the names of what is there."""
    every = max(1, -(-len(values) // 6))
    chosen = range(0, len(values), every)
    names = [f"{values[i]:.1f}" if values.dtype.kind == "f" else str(values[i]) for i in chosen]
    axis.set_ticks(list(chosen), names if labels else [""] * len(names))


def _notes(shown: xarray.Dataset, names: tuple[str, str]) -> list[str]:
    """What colours and dots mean."""
    sure = int((shown["p_adjusted"] <= SIGNIFICANT).sum())
    tests = int(shown["difference"].notnull().sum())
    notes = [
        f"Orange: larger in {names[1]}. Purple: larger in {names[0]}. White: no difference. A "
        "colour scale for each statistic."
    ]
    if shown["p"].isnull().all():
        return [*notes, "One picture says nothing of chance: more with --num-samples 8."]
    return [*notes, f"Dots: beyond chance, {sure} of {tests} (false discovery rate 5 %)."]
