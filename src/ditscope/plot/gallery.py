"""The pictures that say what a recorded run did: the samples, and five views of its attention."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ditscope.analysis.place import patch_layers
from ditscope.plot.head_atlas import heads
from ditscope.plot.layer_row import layers
from ditscope.plot.patch_overlay import overlay
from ditscope.plot.picture_grid import image_grid
from ditscope.plot.single_head import head_map
from ditscope.plot.step_row import timesteps
from ditscope.plot.theme import save_figure
from ditscope.runs.reader import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID = "grid.png"


def save_gallery(run: Run, folder: str | os.PathLike[str]) -> list[tuple[Path, str]]:
    """Draw every picture that the run can give into `folder`; path and meaning of each.

    Without recorded statistics that is the samples alone. Raises ResourceError if the folder
    cannot be written.
    """
    place = Path(folder)
    return [(save_figure(figure, place / name), meaning) for name, meaning, figure in _figures(run)]


def _figures(run: Run) -> Iterator[tuple[str, str, Figure]]:
    names = [label.name for label in run.manifest.labels]
    yield GRID, "the pictures", image_grid(run.images.values, names)
    if not run.stats or not patch_layers(run):
        return
    yield "head.png", "one head: where one patch looks", head_map(run)
    yield "layers.png", "six layers, from early to late", layers(run)
    yield "timesteps.png", "five steps, from noise to picture", timesteps(run)
    yield "patch.png", "what one patch attends to, over the picture", overlay(run)
    yield "heads.png", "all heads, coloured by entropy", heads(run)
