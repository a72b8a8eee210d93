"""`film`: the picture and the attention of one patch, step after step, as a moving picture."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy
from matplotlib.backends.backend_agg import FigureCanvasAgg
from numpy.typing import NDArray
from PIL import Image

from ditscope.analysis.maps import AttentionPanels, maps_by_step
from ditscope.analysis.pictures import latent_picture
from ditscope.analysis.place import Where, stored_steps
from ditscope.core.atomic import new_file
from ditscope.errors import BadRequest, missing_package
from ditscope.plot.marks import (
    colour_bar,
    draw_grid,
    draw_map,
    draw_picture,
    outline_patch,
    scale_of,
)
from ditscope.plot.sheet import BAR, BAR_ROOM, MARGIN, NOTE_ROOM, TITLE_ROOM, fitted, sheet
from ditscope.plot.theme import DPI, LINE_COLOUR, Plot, themed
from ditscope.plot.words import closing_notes, panel_words, spread_words
from ditscope.runs.reader import Run

PANEL, BETWEEN, PROGRESS = 3.4, 0.3, 0.07
FORMATS = (".gif", ".webp", ".apng", ".mp4")
RATES = (0.5, 60.0)
"""Least and greatest pictures a second."""


def film(
    run: Run,
    *,
    steps: Sequence[int] | None = None,
    title: str | None = None,
    **where: Unpack[Where],
) -> Iterator[Plot]:
    """A figure for each step, noisiest first: what the network saw, and where one patch looked.

    All share one colour scale. A figure is made when it is asked for.

    Args:
        run: a recorded run.
        steps: which steps; None: all whose Q and K are stored, or all if none are.
        title: in place of the usual one.
        **where: layer, head, query (row, column), sample, branch; what is left out is chosen as
            `analysis.place.locate` says.

    Raises:
        BadRequest: a coordinate that is not in the run; the message gives the range.
    """
    branch = where.get("branch") or "cond"
    panels = maps_by_step(run, stored_steps(run, branch) if steps is None else steps, **where)
    return (_frame(run, panels, i, title) for i in range(len(panels.places)))


def save_film(
    frames: Iterator[Plot], path: str | os.PathLike[str], *, rate: float = 6.0, dpi: int = DPI
) -> Path:
    """Write figures as one moving picture, whole or not at all.

    Args:
        frames: figures of one size, such as `film` makes.
        path: a name ending in .gif, .webp, .apng (Pillow) or .mp4 (the extra `video`).
        rate: pictures a second, 0.5 to 60.
        dpi: dots per inch.

    Raises:
        BadRequest: another format or rate, or no figure.
        ResourceError: the folder cannot be written, or imageio is not installed for .mp4.
    """
    target = checked_film(path, rate)
    pictures = [_pixels(frame, dpi) for frame in frames]
    if not pictures:
        raise BadRequest("a film of no pictures", field="frames")
    kind = target.suffix.lower()
    data = _mp4(pictures, rate) if kind == ".mp4" else _pillow(pictures, kind, rate)
    with new_file(target) as part:
        part.write_bytes(data)
    return target


def checked_film(path: str | os.PathLike[str], rate: float = 6.0) -> Path:
    """The file to save to; BadRequest for a format or a rate that no film has."""
    target = Path(path)
    if target.suffix.lower() not in FORMATS:
        raise BadRequest(
            "films are not saved in this format",
            file=target,
            expected=f"a name ending in {', '.join(FORMATS)}",
        )
    if not RATES[0] <= rate <= RATES[1]:
        raise BadRequest(
            f"found {rate:g}", field="rate", expected=f"{RATES[0]:g} to {RATES[1]:g} a second"
        )
    return target


@themed
def _frame(run: Run, panels: AttentionPanels, i: int, title: str | None) -> Plot:
    """The figure of step number `i` of the panels."""
    place, values = panels.places[i], panels.weights.values[i]
    scale = scale_of(panels.weights.values)
    width, height = fitted(panels.picture.shape, PANEL, PANEL)
    page = sheet(
        title or "Where the outlined patch looks, as the picture forms",
        panel_words(run, panels, step=False),
        [f"Colour: {scale.words()}, one scale for all steps.", *closing_notes(panels)],
        TITLE_ROOM + height + NOTE_ROOM + PROGRESS + 0.1,
        width=2 * (MARGIN + width) + BETWEEN + BAR_ROOM,
    )
    top, right = page.top + TITLE_ROOM, MARGIN + width + BETWEEN
    axes = page.panel(MARGIN, top, width, height, "what the network sees")
    draw_picture(axes, latent_picture(run, place.sample, place.step).values, values.shape)
    draw_grid(axes, values.shape)
    outline_patch(axes, panels.query)
    axes = page.panel(right, top, width, height, "where the patch looks")
    draw_map(axes, values, scale.norm)
    outline_patch(axes, panels.query)
    page.text(right, top + height + 0.05, spread_words(panels, i))
    page.text(MARGIN, top + height + 0.05, f"step {place.step}, noise {panels.noise_levels[i]:.2f}")
    bar = page.panel(right + width + 0.16, top, BAR, height)
    colour_bar(bar, scale, upright=True, even=panels.even_share[0])
    line = page.panel(MARGIN, top + height + NOTE_ROOM + 0.06, right + width - MARGIN, PROGRESS)
    line.set_xlim(0, len(panels.places))
    line.axvspan(0, i + 1, color=LINE_COLOUR)
    return page.figure


@themed
def _pixels(figure: Plot, dpi: int) -> NDArray[numpy.uint8]:
    """(height, width, 3), both even, as video wants them."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = numpy.asarray(canvas.buffer_rgba())[..., :3]
    return pixels[: len(pixels) // 2 * 2, : pixels.shape[1] // 2 * 2].copy()


def _pillow(pictures: list[NDArray[numpy.uint8]], kind: str, rate: float) -> bytes:
    buffer = io.BytesIO()
    first, *others = (Image.fromarray(picture) for picture in pictures)
    options: dict[str, Any] = {"save_all": True, "duration": round(1000 / rate), "loop": 0}
    options |= {".webp": {"quality": 85, "method": 4}, ".apng": {}, ".gif": {"optimize": False}}[
        kind
    ]
    name = {".gif": "GIF", ".webp": "WEBP", ".apng": "PNG"}[kind]
    first.save(buffer, name, append_images=others, **options)
    return buffer.getvalue()


def _mp4(pictures: list[NDArray[numpy.uint8]], rate: float) -> bytes:
    try:
        import imageio.v3 as imageio  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as reason:
        raise missing_package(reason, "an .mp4 film") from None
    stacked = numpy.stack(pictures)
    options: dict[str, Any] = {"fps": rate, "codec": "libx264", "macro_block_size": 2}
    return imageio.imwrite("<bytes>", stacked, extension=".mp4", **options)
