"""What line charts are made of: axes with ticks, curves with bands, boundaries, diverging maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import xarray
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ditscope.plot.theme import FAINT, INK, LINE_COLOUR, MUTED, NOTE
from ditscope.plot.words import counted

SHORT = {"rms_distance": "distance", "received_max": "top key's share"}
MAX_TICKS = 8


def axis_words(metric: str, unit: str) -> str:
    """What an axis shows, with its unit."""
    name = SHORT.get(metric, metric.replace("_", " "))
    words = "of all attention" if metric == "received_max" else "1 = all" if unit == "1" else unit
    return f"{name}\n({words})" if unit else name


def open_axes(axes: Axes, ylabel: str, xlabel: str = "") -> None:
    """Give axes from a sheet their ticks back, with faint lines behind the data."""
    axes.set_ylabel(ylabel, fontsize=NOTE)
    axes.set_xlabel(xlabel, fontsize=NOTE)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(color=FAINT, linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)
    axes.use_sticky_edges = False
    axes.tick_params(length=2.5, width=0.8, labelsize=NOTE, colors=MUTED)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw_band(axes: Axes, x: NDArray, curve: xarray.Dataset) -> None:
    """A line through `mean`, dots on its values, and the band from `low` to `high` if known."""
    low, high = curve["low"].values, curve["high"].values
    if numpy.isfinite(low).any():
        axes.fill_between(x, low, high, color=LINE_COLOUR, alpha=0.22, linewidth=0)
    size = 3.2 if len(x) <= 60 else 0
    axes.plot(
        x, curve["mean"].values, color=LINE_COLOUR, linewidth=1.6, marker="o", markersize=size
    )


def keep_inner_ticks(axes: Axes) -> None:
    """Leave out ticks beyond the ends of the upright axis, once all data are drawn."""
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= high])
    axes.set_ylim(low, high)


def step_ticks(axes: Axes, steps: NDArray, noise: NDArray, *, labels: bool = True) -> None:
    """Ticks at some steps, the first and the last among them, with their noise level."""
    count = min(MAX_TICKS, len(steps))
    chosen = [round(i) for i in numpy.linspace(0, len(steps) - 1, count)]
    words = [f"{steps[i]}\n{noise[i]:.2f}" for i in chosen]
    axes.set_xticks(steps[chosen], words if labels else [""] * count)
    axes.set_xlim(steps[0] - 0.5, steps[-1] + 0.5)


def draw_boundaries(axes: Axes, starts: Sequence[float]) -> None:
    """Upright dashed lines before the first step of each phase but the first."""
    for start in starts[1:]:
        axes.axvline(start - 0.5, color=INK, linewidth=1.1, linestyle=(0, (4, 3)))


def band_note(samples: int, branch: str) -> str:
    """What the band is, in small print."""
    branch_words = {"cond": "conditional branch", "uncond": "unconditional branch"}[branch]
    over = counted("over", samples, "picture")
    if samples < 2:
        return f"One picture, {branch_words}: no band. More with --num-samples 8."
    return f"Line: mean {over}, {branch_words}. Band: 95 % interval of that mean, by bootstrap."
