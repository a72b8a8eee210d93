"""`finding`: one finding of a diagnosis as a card: the picture, the evidence, and what to try."""

from __future__ import annotations

import numpy
from matplotlib.axes import Axes

from ditscope.analysis.diagnose.finding import Finding
from ditscope.analysis.pictures import finished_picture
from ditscope.plot.chart import keep_inner_ticks, open_axes, step_ticks
from ditscope.plot.marks import draw_picture
from ditscope.plot.sheet import MARGIN, NOTE_ROOM, TITLE_ROOM, WIDTH, fitted, sheet
from ditscope.plot.theme import INK, LINE_COLOUR, NOTE, Plot, printable, themed
from ditscope.plot.words import sentence, subject_words
from ditscope.runs.reader import Run

PICTURE, LEFT, HEIGHT, FOOT = 2.3, 0.95, 2.3, 0.5
"""Inches: side of the picture, room for the upright axis, height of the chart, below it."""
FAULTY = "#d55e00"
"""What is beyond the threshold; told apart from the line also in grey print."""


@themed
def finding(run: Run, found: Finding, *, title: str | None = None) -> Plot:
    """Figure of a finding: what was measured, against its threshold, and the advice.

    Args:
        run: the run that was diagnosed.
        found: one of the findings of its diagnosis.
        title: in place of what is wrong.
    """
    picture, name = finished_picture(run, 0)
    threshold = found.threshold
    shaded = "" if found.curve is None or found.steps is None else " Shaded: steps of the finding."
    page = sheet(
        printable(title or found.message[:1].upper() + found.message[1:], 300),
        sentence(found.severity, f"rule {found.rule}", found.place()),
        [
            f"A finding from {threshold.words()}. {threshold.origin[:1].upper()}"
            f"{threshold.origin[1:]}.{shaded}",
            f"What to do: {printable(found.advice, 600)}",
            f"Try: {printable(found.command, 1000)}",
        ],
        TITLE_ROOM + HEIGHT + FOOT,
    )
    top = page.top + TITLE_ROOM
    width, height = fitted(picture.shape, PICTURE, HEIGHT)
    shown = page.panel(MARGIN, top, width, height, name)
    draw_picture(shown, picture.values, (picture.shape[0], picture.shape[1]))
    page.text(MARGIN, top + height + 0.05, subject_words(run, 0, found.branch or "cond"))
    left = MARGIN + PICTURE + LEFT
    axes = page.panel(left, top, WIDTH - MARGIN - left, HEIGHT, _measured(found))
    if found.curve is None:
        _draw_bar(axes, found)
        page.text(left, top + HEIGHT + NOTE_ROOM, "dashed: threshold")
    else:
        _draw_curve(axes, run, found)
    return page.figure


def _measured(found: Finding) -> str:
    """The number, with its interval, as a title."""
    words = f"measured {found.measured:.4g} {found.threshold.unit}".rstrip()
    if found.low is not None and found.high is not None:
        words += f" ({found.low:.3g} to {found.high:.3g} over pictures)"
    return words


def _draw_curve(axes: Axes, run: Run, found: Finding) -> None:
    """The measurement over steps, its threshold, and the steps of the finding shaded."""
    assert found.curve is not None
    steps, values = numpy.array(found.curve.steps), numpy.array(found.curve.values)
    noise = numpy.array([run.manifest.steps[step].noise_level for step in steps])
    open_axes(axes, printable(found.threshold.unit, 40) or "measured", "step, and its noise level")
    if found.steps is not None:
        first, last = found.steps
        axes.axvspan(first - 0.5, last + 0.5, color=FAULTY, alpha=0.12, linewidth=0)
    axes.plot(steps, values, color=LINE_COLOUR, linewidth=1.6, marker="o", markersize=3.5)
    sides = {found.threshold.value}
    if numpy.nanmin(values) < 0 < found.threshold.value:  # a departure may be to either side
        sides.add(-found.threshold.value)
    for side in sides:
        axes.axhline(side, color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
    axes.annotate(
        "threshold",
        (steps[-1] + 0.45, found.threshold.value),
        (0, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=NOTE,
    )
    step_ticks(axes, steps, noise)
    keep_inner_ticks(axes)


def _draw_bar(axes: Axes, found: Finding) -> None:
    """The measurement of the whole run beside its threshold."""
    open_axes(axes, "", printable(found.threshold.unit, 60) or "measured")
    axes.barh([0], [found.measured], height=0.5, color=FAULTY)
    axes.axvline(found.threshold.value, color=INK, linewidth=1.4, linestyle=(0, (4, 3)))
    axes.set_yticks([])
    axes.set_ylim(-0.7, 0.7)
    largest = max(found.measured, found.threshold.value)
    axes.set_xlim(0, 1.1 * largest if largest > 0 else 1)
