"""`parts`: the parts and the object of each picture, as attention alone tells them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import xarray
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgba

from ditscope.analysis.parts import find_parts
from ditscope.analysis.pictures import finished_picture
from ditscope.analysis.place import checked_sample
from ditscope.core.axes import Branch
from ditscope.plot.map_panels import LEGEND_ROOM, left_of, lying_bar, panel_size
from ditscope.plot.marks import draw_map, draw_picture, outline_region
from ditscope.plot.patch_overlay import grey
from ditscope.plot.sheet import GAP, MARGIN, NOTE_ROOM, TITLE_ROOM, WIDTH, sheet
from ditscope.plot.theme import PART_COLOURS, STATISTIC_COLOURS, Plot, printable, themed
from ditscope.plot.words import counted, sentence
from ditscope.runs.reader import Run

COLUMNS = 6
MOST_LETTERS = 20


@themed
def parts(
    run: Run,
    *,
    samples: Sequence[int] | None = None,
    count: int | None = None,
    layers: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    branch: Branch = "cond",
    title: str | None = None,
) -> Plot:
    """Figure of up to six pictures: the found object outlined, the parts, the score of each patch.

    Args:
        run: a run with stored Q and K.
        samples: which pictures, at most six; None: the first six.
        count: number of parts; None: found for each picture.
        layers: these; None: all that have the first patch grid.
        steps: these; None: the stored ones up to noise level 0.5.
        branch: "cond" or "uncond".
        title: in place of the usual one.

    Raises:
        BadRequest: see `analysis.parts.find_parts`.
    """
    wanted = range(len(run.manifest.labels)) if samples is None else samples
    chosen = [checked_sample(run, sample) for sample in wanted][:COLUMNS]
    found = [
        find_parts(run, sample, count=count, layers=layers, steps=steps, branch=branch)
        for sample in chosen
    ]
    pictures = [finished_picture(run, sample)[0].values for sample in chosen]
    width, height = panel_size(pictures[0], COLUMNS, WIDTH - 2 * MARGIN)
    row = height + NOTE_ROOM
    page = sheet(
        title or "The parts of the picture, from attention alone",
        sentence(
            counted("maps of", len(found[0].attrs["layers"]), "layer"),
            f"{counted('at', len(found[0].attrs['steps']), 'step')} of little noise",
            "no pixel or label is used",
            *([f"{len(chosen)} of {len(wanted)} pictures"] if len(wanted) > len(chosen) else []),
        ),
        [
            "Spectral clustering: patches that attend to one another belong together. White line: "
            "the object, all parts that do not lie at the picture's edge.",
        ],
        TITLE_ROOM + 3 * row + LEGEND_ROOM,
        width=2 * MARGIN + len(chosen) * (width + GAP) - GAP,
    )
    norm = Normalize(0, 1)
    for i, (sample, picture, each) in enumerate(zip(chosen, pictures, found, strict=True)):
        left, top = left_of(i, width), page.top + TITLE_ROOM
        name = printable(run.manifest.labels[sample].name, MOST_LETTERS)
        axes = page.panel(left, top, width, height, name)
        draw_picture(axes, picture, each["part"].shape)
        outline_region(axes, each["object"].values)
        page.text(left, top + height + 0.04, f"object: {_share(each['object'])}")
        axes = page.panel(left, top + row, width, height)
        _draw_parts(axes, picture, each)
        number = int(each["part"].max()) + 1
        page.text(left, top + row + height + 0.04, counted("", number, "part").strip())
        axes = page.panel(left, top + 2 * row, width, height)
        draw_map(axes, each["score"].values, norm, STATISTIC_COLOURS)
        outline_region(axes, each["object"].values)
    words = "share of a patch's attention, given and received, that it has with the object"
    top = page.top + TITLE_ROOM + 3 * row
    lying_bar(page, MARGIN, top, norm, STATISTIC_COLOURS, words)
    return page.figure


def _draw_parts(axes: Axes, picture: numpy.ndarray, found: xarray.Dataset) -> None:
    """Each part in its colour over the picture in grey; those of the background come first."""
    part, inside = found["part"].values, found["object"].values
    draw_picture(axes, grey(picture), part.shape)
    palette = numpy.array([to_rgba(colour, 0.62) for colour in PART_COLOURS])
    height, width = part.shape
    names = [*numpy.unique(part[~inside]), *numpy.unique(part[inside])]
    axes.imshow(
        palette[numpy.argsort(names)[part] % len(palette)],
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="nearest",
        aspect="auto",
    )
    for name in numpy.unique(part):
        outline_region(axes, part == name)


def _share(inside: xarray.DataArray) -> str:
    return f"{100 * float(inside.mean()):.0f} %"
