"""`steps`: each statistic from noise to picture, with its band over samples and the phases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import xarray

from ditscope.analysis.phases import phases
from ditscope.analysis.steps import step_curves
from ditscope.core.axes import Branch
from ditscope.plot.chart import (
    axis_words,
    band_note,
    draw_band,
    draw_boundaries,
    keep_inner_ticks,
    open_axes,
    step_ticks,
)
from ditscope.plot.sheet import MARGIN, WIDTH, sheet
from ditscope.plot.theme import NOTE, Plot, themed
from ditscope.plot.words import counted, sentence
from ditscope.runs.reader import Run

LEFT, HEIGHT, BETWEEN, HEAD, FOOT = 0.95, 1.25, 0.16, 0.24, 0.62
"""Inches: room for the labels of an axis, a panel, between panels, for phases, for the steps."""


@themed
def steps(
    run: Run,
    *,
    metrics: Sequence[str] | None = None,
    layers: Iterable[int] | None = None,
    branch: Branch = "cond",
    title: str | None = None,
) -> Plot:
    """Figure of statistics over the steps, one panel each.

    Args:
        run: a recorded run.
        metrics: names of statistics; None: all that the run recorded.
        layers: mean over these; None: over all.
        branch: "cond" or "uncond".
        title: in place of the usual one.

    Raises:
        BadRequest: no statistics, or a metric, layer or branch that is not in the run.
    """
    chosen = None if layers is None else list(layers)
    curves = step_curves(run, metrics=metrics, layers=chosen, branch=branch)
    names = [str(name) for name in curves["metric"].values]
    found = phases(run, metrics=names, layers=chosen, branch=branch)
    count = len(names)
    what = (
        counted("mean over", len(run.manifest.sites), "layer")
        if chosen is None
        else f"mean over layers {', '.join(map(str, chosen))}"
    )
    page = sheet(
        title or "How attention changes from noise to picture",
        sentence(what, counted("", len(run.steps), "step").strip()),
        [band_note(curves.attrs["samples"], branch), *_phase_notes(found)],
        HEAD + count * HEIGHT + (count - 1) * BETWEEN + FOOT,
    )
    x, noise = curves["step"].values, curves["noise_level"].values
    for i in range(count):
        curve = curves.isel(metric=i)
        top = page.top + HEAD + i * (HEIGHT + BETWEEN)
        axes = page.panel(MARGIN + LEFT, top, WIDTH - 2 * MARGIN - LEFT, HEIGHT)
        last = i == count - 1
        open_axes(
            axes,
            axis_words(str(curve["metric"].item()), str(curve["unit"].item())),
            "step, and its noise level" if last else "",
        )
        draw_band(axes, x, curve)
        step_ticks(axes, x, noise, labels=last)
        keep_inner_ticks(axes)
        draw_boundaries(axes, found["first_step"].values.tolist())
        if i == 0:
            for phase in range(found.sizes["phase"]):
                middle = (found["first_step"][phase] + found["last_step"][phase]).item() / 2
                axes.annotate(
                    f"phase {phase + 1}",
                    (middle, 1.04),
                    xycoords=axes.get_xaxis_transform(),
                    ha="center",
                    va="bottom",
                    fontsize=NOTE,
                )
    return page.figure


def _phase_notes(found: xarray.Dataset) -> list[str]:
    """What a phase is, and how sure its beginning is."""
    count = found.sizes["phase"]
    if count == 1:
        return ["One phase: attention changes at one steady rate, or too little to tell."]
    note = (
        f"Dashed: where the rate of change breaks; {100 * found.attrs['explained']:.0f} % of the "
        "variance over steps lies on straight lines between."
    )
    if found.attrs["samples"] > 1:
        spans = [
            f"{int(found['first_least'][i])} to {int(found['first_most'][i])}"
            for i in range(1, count)
        ]
        note += f" Leaving out one picture moves the breaks within steps {', '.join(spans)}."
    return [note]
