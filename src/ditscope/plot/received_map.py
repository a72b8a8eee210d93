"""`received`: what every patch receives from the whole picture, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.colors import PowerNorm

from ditscope.analysis.maps import usual_layers
from ditscope.analysis.pictures import finished_picture
from ditscope.analysis.place import checked_sample
from ditscope.analysis.received import received_maps
from ditscope.core.axes import Branch
from ditscope.plot.map_panels import LEGEND_ROOM, left_of, lying_bar, panel_size
from ditscope.plot.marks import draw_grid, draw_map, draw_picture
from ditscope.plot.sheet import GAP, MARGIN, NOTE_ROOM, TITLE_ROOM, WIDTH, sheet
from ditscope.plot.theme import ATTENTION_COLOURS, Plot, themed
from ditscope.plot.words import counted, sentence, subject_words
from ditscope.runs.reader import Run

COLUMNS = 7


@themed
def received(
    run: Run,
    *,
    layers: Sequence[int] | None = None,
    head: int | None = None,
    steps: Sequence[int] | None = None,
    sample: int = 0,
    branch: Branch = "cond",
    title: str | None = None,
) -> Plot:
    """Figure of received attention, beside the picture, on one colour scale.

    Args:
        run: a run with stored Q and K.
        layers: which layers; None: 2, 8, 14, 18, 22 and 24 of 28, or the same relative depths.
        head: one head of each layer; None: the mean over its heads.
        steps: mean over these stored steps; None: all of them.
        sample: index of the sample.
        branch: "cond" or "uncond".
        title: in place of the usual one.

    Raises:
        BadRequest: no Q and K stored, or a coordinate that is not in the run.
    """
    sample = checked_sample(run, sample)
    chosen = usual_layers(run) if layers is None else list(layers)
    found = received_maps(
        run, layers=chosen, head=head, steps=steps, samples=[sample], branch=branch
    )[0]
    picture, name = finished_picture(run, sample)
    width, height = panel_size(picture.values, COLUMNS, WIDTH - 2 * MARGIN)
    rows = -(-(len(chosen) + 1) // COLUMNS)
    step = TITLE_ROOM + height + NOTE_ROOM
    high = float(found.max())
    page = sheet(
        title or "Which patches receive attention, layer by layer",
        sentence(
            "mean over heads" if head is None else f"head {head}",
            counted("mean over", len(found.attrs["steps"]), "stored step"),
            subject_words(run, sample, branch),
        ),
        ["Dark is not nothing: 1 is an even share, what a patch gets when all get the same."],
        rows * step + LEGEND_ROOM,
        width=max(2 * MARGIN + (len(chosen) + 1) * (width + GAP) - GAP, 1.0),
    )
    norm = PowerNorm(0.5, 0, max(high, 1.0))
    axes = page.panel(MARGIN, page.top + TITLE_ROOM, width, height, name)
    draw_picture(axes, picture.values, found.shape[1:])
    draw_grid(axes, found.shape[1:])
    for i, layer in enumerate(chosen):
        row, column = divmod(i + 1, COLUMNS)
        top, left = page.top + row * step + TITLE_ROOM, left_of(column, width)
        values = found.values[i]
        draw_map(page.panel(left, top, width, height, f"layer {layer}"), values, norm)
        page.text(left, top + height + 0.05, f"{values.min():.2g} to {values.max():.2g}")
    words = "attention a patch receives, in even shares (square-root scale)"
    lying_bar(page, MARGIN, page.top + rows * step + 0.12, norm, ATTENTION_COLOURS, words)
    return page.figure
