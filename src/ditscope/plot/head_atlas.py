"""`heads`: one number for every head of the model; rows are layers, columns are heads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import xarray
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from ditscope.analysis.atlas import HeadAtlas, head_atlas
from ditscope.core.axes import Branch
from ditscope.core.statistics import STATISTICS
from ditscope.plot.marks import draw_map, percent
from ditscope.plot.sheet import BAR, MARGIN, WIDTH, sheet
from ditscope.plot.theme import (
    INK,
    MUTED,
    NOTE,
    PANEL_TITLE,
    STATISTIC_COLOURS,
    Plot,
    themed,
)
from ditscope.plot.words import counted, sentence, step_words, subject_words
from ditscope.runs.reader import Run

LABELS, GAP, BAR_ROOM, HEAD_ROOM = 0.62, 0.12, 2.2, 0.42
"""Inches: left of the table, before the column of means, right of that, above the table."""
CELL_WIDTH, CELL_HEIGHT, BAR_HEIGHT = (0.1, 0.95), (0.27, 0.4), 1.4
VALUE_WIDTH, NUMBER_WIDTH = 0.33, 0.2
"""Inches: least and greatest size of a cell; least height of the colour bar; least width of a cell
for its value, and its number, to be written."""


@dataclass(frozen=True)
class MetricWords:
    """How a statistic is spoken of, and in which unit it is written."""

    title: str
    name: str
    unit: str
    least: str  # what it means to be small, what to be large
    most: str
    factor: float = 1.0  # from the recorded unit to this one
    relative: bool = False  # coloured as a share of its maximum, not of the greatest there is

    def value(self, recorded: float) -> str:
        """A recorded number with its unit."""
        return f"{self.digits(recorded)} {self.unit}".rstrip()

    def digits(self, recorded: float) -> str:
        """A recorded number without its unit."""
        number = recorded * self.factor
        return f"{number:.1f}" if number >= 10 else f"{number:.2f}" if number > 0 else "0"


WORDS = {
    "entropy": MetricWords(
        "How focused each attention head is",
        "entropy of attention",
        "nats",
        "looks at one patch",
        "looks at all patches alike",
        relative=True,
    ),
    "rms_distance": MetricWords(
        "How far each attention head looks",
        "root mean square distance",
        "patches",
        "looks at itself",
        "looks far away",
    ),
    "received_max": MetricWords(
        "Which attention heads have a favourite patch",
        "share of all attention that one patch receives",
        "%",
        "no favourite patch",
        "one favourite patch",
        factor=100.0,
    ),
}
BRANCH_WORDS = {"cond": "conditional branch", "uncond": "unconditional branch"}


def metric_words(metric: str) -> MetricWords:
    """How a statistic is spoken of; one that has no words of its own, by name and unit."""
    if metric in WORDS:
        return WORDS[metric]
    statistic = STATISTICS.get(metric)
    unit = "" if statistic is None or statistic.unit == "1" else statistic.unit
    name = metric if statistic is None else statistic.long_name
    return MetricWords(f"{metric} of each attention head", name, unit, "", "")


@dataclass(frozen=True)
class AtlasColours:
    """What is coloured, from 0 to `high`, and the words beside the colour bar."""

    shown: xarray.DataArray  # (layer, head)
    high: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]
    constant: bool

    @property
    def norm(self) -> Normalize:
        """The scale as matplotlib wants it."""
        return Normalize(0, self.high)


def atlas_colours(atlas: HeadAtlas, words: MetricWords) -> AtlasColours:
    """Entropy is coloured as a share of log N, 0 to 100 %; other statistics from 0 to their top."""
    relative = words.relative and bool((atlas.maximum > 0).all())
    shown = atlas.values / atlas.maximum if relative else atlas.values
    known = shown.values[numpy.isfinite(shown.values)]
    top = float(known.max()) if known.size else 0.0
    high = 1.0 if relative or top <= 0 else top
    ticks = tuple(high * part for part in (0, 0.25, 0.5, 0.75, 1))
    most = float(atlas.maximum[0])
    if not relative:
        labels = tuple(words.value(tick) for tick in ticks)
    elif (atlas.maximum == most).all():
        labels = tuple(f"{percent(tick)} = {words.value(tick * most)}" for tick in ticks)
    else:
        labels = tuple(percent(tick) for tick in ticks)
    constant = known.size > 1 and float(numpy.ptp(known)) <= 1e-6 * top
    return AtlasColours(shown, high, ticks, labels, constant)


@themed
def heads(
    run: Run,
    *,
    metric: str = "entropy",
    step: int | None = None,
    sample: int | None = None,
    branch: Branch = "cond",
    title: str | None = None,
) -> Plot:
    """Figure of one statistic for every head, with its values written in.

    Args:
        run: a recorded run.
        metric: a statistic that the run recorded (`ditscope.core.statistics`).
        step: one step; None: the mean over all.
        sample: one picture; None: the mean over all.
        branch: "cond" or "uncond".
        title: in place of the usual one.

    Raises:
        BadRequest: a statistic or coordinate that is not in the run; the message says what is.
    """
    atlas = head_atlas(run, metric, step=step, sample=sample, branch=branch)
    words = metric_words(metric)
    colours = atlas_colours(atlas, words)
    rows, columns = colours.shown.shape
    room = WIDTH - 2 * MARGIN - LABELS - GAP - BAR_ROOM
    cell = float(numpy.clip(room / (columns + 1), *CELL_WIDTH))
    height = rows * float(numpy.clip(4.0 / rows, *CELL_HEIGHT))
    page = sheet(
        title or words.title,
        _subtitle(run, atlas, words.name),
        _notes(run, atlas, words, constant=colours.constant),
        HEAD_ROOM + max(height, BAR_HEIGHT),
        width=2 * MARGIN + LABELS + (columns + 1) * cell + GAP + BAR_ROOM,
    )
    top, left = page.top + HEAD_ROOM, MARGIN + LABELS
    table = page.panel(left, top, columns * cell, height)
    means = page.panel(left + columns * cell + GAP, top, cell, height)
    for axes, values, shown, names in (
        (table, atlas.values, colours.shown, _numbers(columns, cell)),
        (means, *(v.mean("head", keepdims=True) for v in (atlas.values, colours.shown)), ["mean"]),
    ):
        draw_map(axes, shown.values, colours.norm, STATISTIC_COLOURS)
        axes.set_xticks(range(len(names)), names)
        axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
        if cell >= VALUE_WIDTH:
            _write(axes, values.values, shown.values / colours.high, words)
    table.set_xlabel("head", fontsize=PANEL_TITLE)
    table.xaxis.set_label_position("top")
    table.set_yticks(range(rows), [str(layer) for layer in range(rows)])
    table.set_ylabel("layer", fontsize=PANEL_TITLE)
    for place in atlas.extremes:
        _frame(table, place)
    bar = page.panel(left + (columns + 1) * cell + GAP + 0.3, top, BAR, max(height, BAR_HEIGHT))
    _draw_bar(bar, colours, words)
    return page.figure


def _numbers(count: int, cell: float) -> list[str]:
    """Numbers of columns: all of them, or every fifth where cells are narrow."""
    return [str(i) if cell >= NUMBER_WIDTH or i % 5 == 0 else "" for i in range(count)]


def _draw_bar(axes: Axes, colours: AtlasColours, words: MetricWords) -> None:
    """Draw the colour bar; its ends say what little and much mean."""
    bar = axes.figure.colorbar(  # type: ignore[union-attr]
        ScalarMappable(colours.norm, STATISTIC_COLOURS), cax=axes
    )
    labels = list(colours.labels)
    labels[0], labels[-1] = f"{words.least}\n{labels[0]}", f"{labels[-1]}\n{words.most}"
    bar.set_ticks(list(colours.ticks), labels=labels)
    bar.ax.tick_params(length=2.5, width=0.8, labelsize=NOTE, colors=MUTED, pad=3)
    shown = bar.ax.get_yticklabels()
    shown[0].set_verticalalignment("bottom")
    shown[-1].set_verticalalignment("top")


def _write(axes: Axes, values: numpy.ndarray, places: numpy.ndarray, words: MetricWords) -> None:
    """Write each value on its cell: dark on light colours, light on dark ones."""
    for (y, x), value in numpy.ndenumerate(values):
        if not numpy.isfinite(value):
            continue
        red, green, blue, _ = colormaps[STATISTIC_COLOURS](float(places[y, x]))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        axes.text(
            x,
            y,
            words.digits(value),
            fontsize=NOTE,
            ha="center",
            va="center",
            color="white" if dark else INK,
        )


def _frame(axes: Axes, place: tuple[int, int]) -> None:
    """Frame the cell of one head, white with dark edges."""
    layer, head = place
    for colour, width in ((INK, 3.0), ("white", 1.4)):
        axes.add_patch(
            Rectangle(
                (head - 0.5, layer - 0.5),
                1,
                1,
                fill=False,
                edgecolor=colour,
                linewidth=width,
                clip_on=False,
                zorder=3,
            )
        )


def _subtitle(run: Run, atlas: HeadAtlas, name: str) -> str:
    """What is measured, when, and on what."""
    when, what = counted("mean over", len(run.steps), "step"), BRANCH_WORDS[atlas.branch]
    if atlas.step is not None:
        when = step_words(run, atlas.step)
    if atlas.sample is not None:
        what = subject_words(run, atlas.sample, atlas.branch)
    elif len(run.manifest.labels) > 1:
        what = f"mean over {len(run.manifest.labels)} pictures, {what}"
    return sentence(name, when, what)


def _notes(run: Run, atlas: HeadAtlas, words: MetricWords, *, constant: bool) -> list[str]:
    """The framed heads, what is missing, and where the numbers are."""
    notes = ["Constant: all heads have the same value."] if constant else []
    for (layer, head), which in zip(atlas.extremes, ("lowest", "highest"), strict=False):
        value = float(atlas.values[layer, head])
        note = f"Framed, {which}: layer {layer} head {head}, {words.value(value)}"
        if atlas.metric == "entropy":
            keys = run.manifest.sites[layer].keys
            note += f", as if spread evenly over {numpy.exp(value):.0f} of {keys} patches"
        notes.append(f"{note}.")
    if not numpy.isfinite(atlas.values.values).all():
        notes.append("Hatched: no data.")
    return [*notes, f'Numbers: run.stats["{atlas.metric}"]']
