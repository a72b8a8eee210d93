"""Which queries of a call are looked at, if not all: two of each stratum, drawn without bias.

Image tokens are ordered along a Z-curve over their grid, the others as they come, and each order is
cut into stretches that differ by at most one token: so neighbours on the picture share a stratum.
Two tokens of each are drawn without replacement. With N_h tokens in stratum h, W_h = N_h / N, and
y_h1, y_h2 the numbers of the two,

    mean      sum_h W_h (y_h1 + y_h2) / 2                            without bias
    variance  sum_h W_h^2 (1 - 2 / N_h) (y_h1 - y_h2)^2 / 4          without bias

Source: Cochran, Sampling Techniques, 3rd edition 1977, sections 5.3 and 5.4, with two units in each
stratum: of one alone the variance cannot be estimated without bias (section 5A.12).

Shapes: N queries of the call, n drawn ones, L strata.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditscope.core.sites import Site


@dataclass(frozen=True)
class Drawn:
    """The queries of one call that are looked at: image tokens first.

    They are tensors, also the numbers of the strata, so that a compiled forward need not be
    compiled anew for every draw.
    """

    queries: Tensor  # (n,) int64: the two of each stratum side by side
    sizes: Tensor  # (L,) float32: tokens of each stratum
    image: int  # strata of image tokens

    def on(self, device: torch.device) -> Drawn:
        """The same on a device."""
        return Drawn(self.queries.to(device), self.sizes.to(device), self.image)

    @property
    def patches(self) -> int:
        """How many of `queries` are image tokens."""
        return 2 * self.image


def draw(site: Site, queries: int, *, seed: int, step: int) -> Drawn | None:
    """The queries of `site` at `step`: a function of its arguments, on any machine.

    Args:
        site: From `census`.
        queries: How many, an even number.
        seed: Of the sampling.
        step: Evaluation of the sampling, or forward.

    Returns:
        At most `queries`, though two of each kind of token; None where that would be all.
    """
    grid = site.grid
    place = (grid.start, grid.frames, grid.height, grid.width) if grid else None
    strata, num_image = _strata(site.queries, place, queries // 2)
    if 2 * len(strata) >= site.queries:
        return None
    random = np.random.PCG64(np.random.SeedSequence([seed, step, site.index]))
    pairs = [_two_of(stratum, random) for stratum in strata]
    sizes = [float(len(stratum)) for stratum in strata]
    return Drawn(torch.tensor(pairs).flatten(), torch.tensor(sizes), num_image)


@lru_cache(maxsize=256)
def _strata(
    queries: int, place: tuple[int, int, int, int] | None, count: int
) -> tuple[list[NDArray[np.intp]], int]:
    """Some `count` strata that cover every query once, and how many of them are of the image.

    `place` is the first image token and the sides of the grid: frames, height, width.
    """
    everyone = np.arange(queries)
    if place is None:
        return _cut(everyone, count), 0
    start, *sides = place
    curve = start + _along_the_curve(tuple(sides))
    others = np.delete(everyone, slice(start, start + len(curve)))
    share = round(count * len(curve) / queries)
    image = _cut(curve, max(1, min(share, count - bool(len(others)))))
    rest = _cut(others, max(1, count - len(image))) if len(others) else []
    return [*image, *rest], len(image)


def _cut(order: NDArray[np.intp], count: int) -> list[NDArray[np.intp]]:
    """Stretches of two tokens or more, if there are as many."""
    return np.array_split(order, min(count, max(1, len(order) // 2)))


def _along_the_curve(sides: tuple[int, ...]) -> NDArray[np.intp]:
    """The patches in the order of a Z-curve (Morton 1966) through their grid."""
    place = np.indices(sides).reshape(len(sides), -1)
    code = np.zeros(place.shape[1], np.int64)
    for bit in range(max(sides).bit_length()):
        for axis, along in enumerate(place[::-1]):
            code |= ((along >> bit) & 1) << (len(sides) * bit + axis)
    return np.argsort(code, kind="stable")


def _two_of(stratum: NDArray[np.intp], random: np.random.PCG64) -> list[int]:
    """Two different tokens, each pair as likely; of a stratum of one token, that one twice.

    From raw numbers of 64 bits: what numpy makes of them may change between its versions.
    """
    size = len(stratum)
    if size == 1:
        return [int(stratum[0])] * 2
    first = int(random.random_raw()) % size
    second = int(random.random_raw()) % (size - 1)
    return [int(stratum[first]), int(stratum[second + (second >= first)])]
