"""`phases`: one statistic of every layer at every step, with the phases marked."""

from __future__ import annotations

import numpy
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patheffects import withStroke

from ditscope.analysis.phases import phases as found_phases
from ditscope.analysis.recorded import recorded, valued
from ditscope.core.axes import Branch
from ditscope.plot.chart import axis_words, step_ticks
from ditscope.plot.marks import draw_map
from ditscope.plot.sheet import BAR, BAR_ROOM, MARGIN, WIDTH, sheet
from ditscope.plot.theme import EDGE, MUTED, NOTE, STATISTIC_COLOURS, Plot, themed
from ditscope.plot.words import counted, sentence
from ditscope.runs.reader import Run

LEFT, HEAD, FOOT = 0.55, 0.24, 0.62
ROW = (0.14, 0.32)
"""Inches: least and greatest height of a layer."""


@themed
def phases(
    run: Run, *, metric: str = "entropy", branch: Branch = "cond", title: str | None = None
) -> Plot:
    """Figure of a statistic by layer and step, mean over heads and samples.

    Raises:
        BadRequest: a statistic or branch that is not in the run, or a statistic without a value.
    """
    values = valued(recorded(run, metrics=[metric], branch=branch), named=True)
    shown = (
        values.isel(metric=0).mean("head", skipna=True).mean("sample").transpose("layer", "step")
    )
    found = found_phases(run, branch=branch)
    rows = shown.sizes["layer"]
    height = rows * float(numpy.clip(3.2 / rows, *ROW))
    words = axis_words(metric, str(values["unit"].values[0])).replace("\n", " ")
    steps, starts = shown["step"].values, found["first_step"].values.tolist()
    count = found.sizes["phase"]
    page = sheet(
        title or "Where in the network, and when, attention changes",
        sentence(
            words,
            counted("mean over heads and", values.sizes["sample"], "picture"),
            {"cond": "conditional branch", "uncond": "unconditional branch"}[branch],
        ),
        [
            f"{count} phases, over all statistics and layers: white lines."
            if count > 1
            else "One phase: attention changes at one steady rate, or too little to tell."
        ],
        HEAD + height + FOOT,
    )
    width = WIDTH - 2 * MARGIN - LEFT - BAR_ROOM
    axes = page.panel(MARGIN + LEFT, page.top + HEAD, width, height)
    known = shown.values[numpy.isfinite(shown.values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    norm = Normalize(low, high if high > low else low + 1)
    draw_map(axes, shown.values, norm, STATISTIC_COLOURS)
    places = numpy.arange(len(steps))
    step_ticks(axes, places, shown["noise_level"].values)
    for tick, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True):
        label.set_text(f"{steps[int(tick)]}\n{shown['noise_level'].values[int(tick)]:.2f}")
    axes.set_xticks(axes.get_xticks(), [label.get_text() for label in axes.get_xticklabels()])
    every = max(1, rows // 14)
    axes.set_yticks(range(0, rows, every), [str(i) for i in range(0, rows, every)])
    axes.tick_params(length=2.5, width=0.8, labelsize=NOTE, colors=MUTED)
    axes.set_ylabel("layer", fontsize=NOTE)
    axes.set_xlabel("step, and its noise level", fontsize=NOTE)
    _mark(axes, [int(numpy.flatnonzero(steps == start)[0]) for start in starts], len(steps))
    bar = page.panel(MARGIN + LEFT + width + 0.16, page.top + HEAD, BAR, height)
    page.figure.colorbar(ScalarMappable(norm, STATISTIC_COLOURS), cax=bar).set_label(
        words, fontsize=NOTE
    )
    bar.tick_params(length=2.5, width=0.8, labelsize=NOTE, colors=MUTED)
    return page.figure


def _mark(axes: Axes, starts: list[int], end: int) -> None:
    """White lines between the phases, and their numbers above."""
    for i, (start, stop) in enumerate(zip(starts, [*starts[1:], end], strict=True)):
        if i:
            edge = withStroke(linewidth=3.0, foreground=EDGE)
            axes.axvline(start - 0.5, color="white", linewidth=1.5, path_effects=[edge])
        axes.annotate(
            f"phase {i + 1}",
            ((start + stop - 1) / 2, 1.02),
            xycoords=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=NOTE,
        )
