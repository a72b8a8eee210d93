"""`flow`: how much attention goes from region to region, from noise to picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy
from matplotlib.axes import Axes

from ditscope.analysis.mass_flow import mass_flow
from ditscope.analysis.pictures import finished_picture
from ditscope.analysis.place import checked_sample
from ditscope.analysis.regions import Region, region_masks
from ditscope.core.axes import Branch
from ditscope.plot.chart import keep_inner_ticks, open_axes, step_ticks
from ditscope.plot.marks import draw_picture, outline_region
from ditscope.plot.sheet import MARGIN, TITLE_ROOM, fitted, sheet
from ditscope.plot.theme import EDGE, INK, NOTE, PART_COLOURS, Plot, printable, themed
from ditscope.plot.words import counted, sentence, subject_words
from ditscope.runs.reader import Run

PICTURE, LEFT, HEIGHT, BETWEEN, FOOT = 2.4, 0.85, 1.35, 0.34, 0.55


@themed
def flow(
    run: Run,
    regions: Mapping[str, Region],
    *,
    layers: Iterable[int] | None = None,
    sample: int = 0,
    branch: Branch = "cond",
    title: str | None = None,
) -> Plot:
    """Figure of `analysis.mass_flow`: a panel for each region that looks, a line for each it sees.

    Args:
        run: a run with stored Q and K.
        regions: name to box or mask, see `analysis.regions.Region`.
        layers: mean over these; None: over all.
        sample: index of the sample.
        branch: "cond" or "uncond".
        title: in place of the usual one.

    Raises:
        BadRequest: see `analysis.mass_flow.mass_flow`.
    """
    sample = checked_sample(run, sample)
    chosen = None if layers is None else list(layers)
    found = mass_flow(run, regions, layers=chosen, samples=[sample], branch=branch)
    lift = found["lift"].sel(sample=sample).mean(["layer", "head"], skipna=True)
    names = found["source"].values.tolist()
    picture, words = finished_picture(run, sample)
    width, height = fitted(picture.shape, PICTURE, PICTURE)
    rows = len(names) * HEIGHT + (len(names) - 1) * BETWEEN
    page = sheet(
        title or "Where attention flows between parts of the picture",
        sentence(
            "mean over layers and heads" if chosen is None else f"layers {chosen}",
            counted("", found.sizes["step"], "stored step").strip(),
            subject_words(run, sample, branch),
        ),
        ["1 (dashed) is what the region gets when all patches get the same."],
        TITLE_ROOM + max(rows + FOOT, height + 0.2 * len(names) + 0.2),
    )
    top = page.top + TITLE_ROOM
    grid = run.manifest.sites[int(found["layer"][0])].grid
    assert grid is not None
    masks = region_masks(regions, grid)
    axes = page.panel(MARGIN, top, width, height, words)
    draw_picture(axes, picture.values, (grid.height, grid.width))
    for i, name in enumerate(names):
        if name in regions:
            outline_region(axes, masks[name], PART_COLOURS[i % len(PART_COLOURS)])
        y = top + height + 0.12 + i * 0.2
        page.panel(MARGIN, y + 0.02, 0.2, 0.11).set_facecolor(PART_COLOURS[i % len(PART_COLOURS)])
        page.text(
            MARGIN + 0.28, y, f"{printable(name, 24)}, {masks[name].sum()} patches", color=INK
        )
    left = MARGIN + width + LEFT
    high = float(numpy.nanmax(lift.values)) * 1.08
    for i, name in enumerate(names):
        last = i == len(names) - 1
        panel = page.panel(
            left,
            top + i * (HEIGHT + BETWEEN),
            page.width - MARGIN - left,
            HEIGHT,
            f"{printable(name, 24)} looks at",
        )
        _draw_lines(panel, lift.sel(source=name), last, max(high, 1.1))
    return page.figure


def _draw_lines(axes: Axes, lift, last: bool, high: float) -> None:
    """What one region looks at, in even shares over the steps."""
    open_axes(axes, "even shares", "step, and its noise level" if last else "")
    axes.axhline(1, color=EDGE, linewidth=0.8, linestyle=(0, (4, 3)))
    x = lift["step"].values
    for i, target in enumerate(lift["target"].values.tolist()):
        axes.plot(
            x,
            lift.sel(target=target).values,
            color=PART_COLOURS[i % len(PART_COLOURS)],
            linewidth=1.8,
            marker="o",
            markersize=3.2,
        )
    axes.set_ylim(0, high)
    step_ticks(axes, x, lift["noise_level"].values, labels=last)
    keep_inner_ticks(axes)
    axes.tick_params(labelsize=NOTE)
