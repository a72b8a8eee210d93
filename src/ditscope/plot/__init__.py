"""Figures of a recorded run: each is `f(run, *, title=None, ...) -> matplotlib Figure`.

Names are loaded on first use, so that importing the package does not import matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ditscope.plot.difference_map import differences
    from ditscope.plot.head_atlas import heads
    from ditscope.plot.kind_atlas import kinds
    from ditscope.plot.layer_profiles import depth
    from ditscope.plot.layer_row import layers
    from ditscope.plot.patch_overlay import overlay
    from ditscope.plot.phase_map import phases
    from ditscope.plot.picture_grid import image_grid
    from ditscope.plot.single_head import head_map
    from ditscope.plot.step_curves import steps
    from ditscope.plot.step_row import timesteps
    from ditscope.plot.theme import save_figure

__all__ = [
    "depth",
    "differences",
    "head_map",
    "heads",
    "image_grid",
    "kinds",
    "layers",
    "overlay",
    "phases",
    "save_figure",
    "steps",
    "timesteps",
]

_HOMES = {
    "depth": "layer_profiles",
    "differences": "difference_map",
    "kinds": "kind_atlas",
    "phases": "phase_map",
    "steps": "step_curves",
    "head_map": "single_head",
    "heads": "head_atlas",
    "image_grid": "picture_grid",
    "layers": "layer_row",
    "overlay": "patch_overlay",
    "save_figure": "theme",
    "timesteps": "step_row",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
