"""Simple landscapes to put objects in: a sky, a ground, sometimes a sun and a hill.

Smooth and of few colours on purpose: a small network spends its effort on the object. Only
arithmetic that IEEE 754 rounds exactly is used (no sine, no exponential), so that the same numbers
give the same pixels on every machine.

Shapes: h, w are pixels of a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Uniform = Callable[[float, float], float]

SUN_RADIUS = 0.08  # of the side of the picture


class Mood(NamedTuple):
    """Colours (RGB, 0-255) of the sky and the ground, far from and near to the horizon."""

    sky_top: Colour
    sky_low: Colour
    ground_far: Colour
    ground_near: Colour
    sun: Colour


MOODS = {
    "meadow": Mood(
        (92, 162, 232), (204, 230, 246), (150, 198, 110), (98, 158, 80), (255, 236, 150)
    ),
    "desert": Mood(
        (116, 178, 226), (250, 228, 188), (234, 202, 142), (208, 166, 108), (255, 250, 214)
    ),
    "sea": Mood((118, 186, 238), (222, 240, 248), (72, 152, 196), (40, 106, 164), (255, 244, 190)),
    "snow": Mood(
        (142, 178, 214), (228, 236, 244), (246, 249, 252), (206, 220, 236), (255, 252, 232)
    ),
    "autumn": Mood(
        (158, 174, 190), (226, 218, 204), (204, 160, 98), (152, 108, 68), (252, 232, 186)
    ),
    "dawn": Mood(
        (148, 164, 222), (252, 214, 216), (176, 182, 150), (126, 142, 114), (255, 240, 220)
    ),
    "sunset": Mood((98, 86, 160), (252, 176, 124), (164, 112, 104), (108, 72, 88), (255, 220, 130)),
    "night": Mood((34, 42, 92), (92, 104, 160), (70, 92, 98), (44, 60, 72), (240, 240, 214)),
}


def landscape(size: int, uniform: Uniform) -> NDArray[np.float32]:
    """A landscape, (size, size, 3) float32 RGB in 0-255.

    Args:
        size: height and width in pixels.
        uniform: `uniform(low, high)` gives the next random number; it is always asked 12 times.
    """
    mood = list(MOODS.values())[int(uniform(0, len(MOODS)))]
    tint = [uniform(-10, 10) for _ in range(3)]
    colours = np.clip(np.array(mood, np.float32) + np.array(tint, np.float32), 0, 255)
    sky_top, sky_low, ground_far, ground_near, sun = colours
    horizon = uniform(0.45, 0.8) * size
    has_sun, sun_x, sun_y = uniform(0, 1) < 0.5, uniform(0.1, 0.9) * size, uniform(0.15, 0.7)
    has_hill, hill_x, half_width = uniform(0, 1) < 0.5, uniform(0, 1) * size, uniform(0.35, 0.9)
    hill_height = uniform(0.08, 0.25) * size

    edges = np.arange(1, size + 1, dtype=np.float32)  # the far edge of each row or column
    middles = edges - np.float32(0.5)
    sky = _mix(sky_top, sky_low, _covered(middles / np.float32(horizon))[:, None, None])
    picture = np.repeat(sky, size, axis=1)

    if has_sun:
        radius, centre_y = SUN_RADIUS * size, sun_y * horizon
        rows, columns = _window(centre_y, radius, size), _window(sun_x, radius, size)
        down, across = middles[rows, None] - centre_y, middles[columns] - sun_x
        disc = _covered(np.float32(radius + 0.5) - np.sqrt(down**2 + across**2))
        picture[rows, columns] = _mix(picture[rows, columns], sun, disc[..., None])

    if has_hill:
        rows = slice(int(horizon - hill_height), int(horizon) + 1)
        across = (middles - hill_x) / np.float32(half_width * size)
        top = horizon - np.maximum(np.float32(0), hill_height * (1 - across**2))
        silhouette = _covered(edges[rows, None] - top)
        far_hill = _mix(ground_far, sky_low, np.float32(0.4))
        picture[rows] = _mix(picture[rows], far_hill, silhouette[..., None])

    rows = slice(int(horizon), size)
    depth = _covered((middles[rows] - horizon) / np.float32(size - horizon))
    ground = _mix(ground_far, ground_near, depth[:, None, None])
    # A horizon between two rows covers part of one, so that it moves smoothly.
    picture[rows] = _mix(picture[rows], ground, _covered(edges[rows] - horizon)[:, None, None])
    return picture


def _window(middle: float, radius: float, size: int) -> slice:
    """The pixels that a disc can touch."""
    return slice(max(0, int(middle - radius - 1)), min(size, int(middle + radius + 2)))


def _covered(amount: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.clip(amount, 0, 1).astype(np.float32, copy=False)


def _mix(
    below: NDArray[np.float32],
    above: NDArray[np.float32],
    coverage: NDArray[np.float32] | np.float32,
) -> NDArray[np.float32]:
    return np.add(below, (above - below) * coverage, dtype=np.float32)
