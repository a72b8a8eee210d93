"""Figures of a recorded run: each is `f(run, *, title=None, ...) -> matplotlib Figure`.

Names are loaded on first use, so that importing the package does not import matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ditscope.plot.difference_map import differences
    from ditscope.plot.finding_card import finding
    from ditscope.plot.flow_curves import flow
    from ditscope.plot.head_atlas import heads
    from ditscope.plot.head_matrix import matrix
    from ditscope.plot.kind_atlas import kinds
    from ditscope.plot.layer_profiles import depth
    from ditscope.plot.layer_row import layers
    from ditscope.plot.link_path import continuity
    from ditscope.plot.moving import film, save_film
    from ditscope.plot.parts_panel import parts
    from ditscope.plot.patch_overlay import overlay
    from ditscope.plot.phase_map import phases
    from ditscope.plot.picture_grid import image_grid
    from ditscope.plot.place_differences import map_differences
    from ditscope.plot.received_map import received
    from ditscope.plot.relevance_row import relevance
    from ditscope.plot.single_head import head_map
    from ditscope.plot.step_curves import steps
    from ditscope.plot.step_row import timesteps
    from ditscope.plot.symmetry_panel import symmetry
    from ditscope.plot.theme import save_figure

__all__ = [
    "continuity",
    "depth",
    "differences",
    "film",
    "finding",
    "flow",
    "head_map",
    "heads",
    "image_grid",
    "kinds",
    "layers",
    "map_differences",
    "matrix",
    "overlay",
    "parts",
    "phases",
    "received",
    "relevance",
    "save_figure",
    "save_film",
    "steps",
    "symmetry",
    "timesteps",
]

_HOMES = {
    "continuity": "link_path",
    "depth": "layer_profiles",
    "differences": "difference_map",
    "film": "moving",
    "finding": "finding_card",
    "flow": "flow_curves",
    "head_map": "single_head",
    "heads": "head_atlas",
    "image_grid": "picture_grid",
    "kinds": "kind_atlas",
    "layers": "layer_row",
    "map_differences": "place_differences",
    "matrix": "head_matrix",
    "overlay": "patch_overlay",
    "parts": "parts_panel",
    "phases": "phase_map",
    "received": "received_map",
    "relevance": "relevance_row",
    "save_figure": "theme",
    "save_film": "moving",
    "steps": "step_curves",
    "symmetry": "symmetry_panel",
    "timesteps": "step_row",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
