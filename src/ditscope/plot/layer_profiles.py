"""`depth`: each statistic layer by layer, with its interval over samples and the range of heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy
import xarray

from ditscope.analysis.layers import layer_profile
from ditscope.core.axes import Branch
from ditscope.plot.chart import axis_words, band_note, draw_band, keep_inner_ticks, open_axes
from ditscope.plot.sheet import MARGIN, NOTE_ROOM, WIDTH, sheet
from ditscope.plot.theme import FAINT, Plot, themed
from ditscope.plot.words import counted, sentence, step_words
from ditscope.runs.reader import Run

LEFT, HEIGHT, FOOT = 0.95, 1.35, 0.42
WEAK = 0.3
"""Rank correlation below which a trend is a weak one."""
MANY = 16
"""Layers from which not every one gets its number."""


@themed
def depth(
    run: Run,
    *,
    metrics: Sequence[str] | None = None,
    layers: Iterable[int] | None = None,
    step: int | None = None,
    branch: Branch = "cond",
    title: str | None = None,
) -> Plot:
    """Figure of statistics over the layers, one panel each.

    Args:
        run: a recorded run.
        metrics: names of statistics; None: all that the run recorded.
        layers: these; None: all.
        step: at this step; None: the mean over all.
        branch: "cond" or "uncond".
        title: in place of the usual one.

    Raises:
        BadRequest: no statistics, or a metric, layer, step or branch that is not in the run.
    """
    profile = layer_profile(run, metrics=metrics, layers=layers, step=step, branch=branch)
    count = profile.sizes["metric"]
    when = counted("mean over", len(run.steps), "step") if step is None else step_words(run, step)
    block = HEIGHT + NOTE_ROOM + 0.13
    page = sheet(
        title or "How attention changes with depth",
        sentence(when, "mean over heads"),
        [
            band_note(profile.attrs["samples"], branch),
            "Grey bars: from the lowest head to the highest.",
        ],
        count * block + FOOT,
    )
    layer = profile["layer"].values
    places = numpy.arange(len(layer))
    for i in range(count):
        curve = profile.isel(metric=i)
        top = page.top + i * block
        axes = page.panel(MARGIN + LEFT, top, WIDTH - 2 * MARGIN - LEFT, HEIGHT)
        last = i == count - 1
        words = axis_words(str(curve["metric"].item()), str(curve["unit"].item()))
        open_axes(axes, words, "layer" if last else "")
        least, most = curve["head_least"].values, curve["head_most"].values
        axes.bar(places, most - least, 0.5, bottom=least, color=FAINT, zorder=0.8)
        draw_band(axes, places, curve)
        keep_inner_ticks(axes)
        every = 1 if len(layer) <= MANY else 4
        names = [str(n) if n % every == 0 else "" for n in layer.tolist()]
        axes.set_xticks(places, names if last else [""] * len(layer))
        axes.set_xlim(-0.5, len(layer) - 0.5)
        below = top + HEIGHT + (FOOT if last else 0.06)
        page.text(MARGIN + LEFT, below, trend_words(curve))
    return page.figure


def trend_words(curve: xarray.Dataset) -> str:
    """Whether a statistic rises or falls with depth, and how sure that is."""
    trend, low, high = (float(curve[name]) for name in ("trend", "trend_low", "trend_high"))
    if not numpy.isfinite(trend):
        return "too few layers to tell a trend, or all alike"
    number = f"rank correlation {trend:+.2f}"
    if not numpy.isfinite(low):
        return f"{number}, from one picture"
    how = " a little" if abs(trend) < WEAK else ""
    way = f"rises{how} with depth" if low > 0 else f"falls{how} with depth"
    way = way if low > 0 or high < 0 else "no clear trend"
    return f"{way}: {number} ({low:+.2f} to {high:+.2f} over pictures)"
