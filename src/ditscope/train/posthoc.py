"""Averages of any length after a training, from snapshots of two: Karras et al. 2024, section 3.

(arXiv:2312.02696.) A power-function average of exponent g weighs the weights of time s, of all
times up to t, by (g + 1) s^g / t^(g + 1). It is kept by one update a step, `decay` telling how much
of the old average stays. Its length is the standard deviation of that weight, as a share of t: 0.10
looks back over about a tenth of the training. Any other average is fitted by least squares as a sum
of the snapshots that were kept (appendix C of the paper).

Shapes: S snapshots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ditscope.errors import BadRequest

LENGTHS = (0.05, 0.10)
"""Of the two averages that are kept during a training, as in the paper."""

SHORTEST, LONGEST = 0.01, 0.28
"""What may be asked for; the mean over all steps has a length of 1 / sqrt(12) = 0.289."""


@dataclass(frozen=True)
class Fit:
    """How much of each snapshot makes an average, and how near that comes to it."""

    shares: NDArray[np.float64]  # (S,), they sum to 1: what does not move stays
    error: float  # 0: exactly; 1: nothing of it; of the weights over time, in the L2 norm


def exponent(length: float) -> float:
    """The exponent of the average of a length: the largest root of equation 16 of the paper.

    Raises BadRequest for a length that is not between `SHORTEST` and `LONGEST`.
    """
    if not SHORTEST <= length <= LONGEST:
        raise BadRequest(
            f"found {length:g}", field="ema-length", expected=f"{SHORTEST} to {LONGEST}"
        )
    # (g + 1) = length^2 (g + 2)^2 (g + 3)
    inverse = length**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def decay(step: int, power: float) -> float:
    """The share of the old average that stays after `step` (from 0); 0 at the first."""
    return float((step / (step + 1)) ** (power + 1))


def fit(times: Sequence[int], powers: Sequence[float], time: int, power: float) -> Fit:
    """What makes the average of exponent `power` at step `time` out of snapshots.

    Args:
        times: Steps of the snapshots (S,), from 1.
        powers: Their exponents (S,).
        time: Step of the average.
        power: Its exponent.
    """
    t, g = np.asarray(times, np.float64), np.asarray(powers, np.float64)
    products = _overlap(t[:, None], g[:, None], t[None, :], g[None, :])  # (S, S)
    wanted = _overlap(t, g, np.float64(time), np.float64(power))  # (S,)
    # Snapshots differ in scale by what they weigh at most: equal scales keep the system solvable.
    scale = 1 / np.sqrt(np.diag(products))
    shares = scale * np.linalg.lstsq(scale[:, None] * products * scale, scale * wanted)[0]
    shares /= shares.sum()
    whole = float(_overlap(*(np.float64(x) for x in (time, power, time, power))))
    left = whole - 2 * shares @ wanted + shares @ products @ shares
    return Fit(shares, math.sqrt(max(left, 0.0) / whole))


def _overlap(
    t: NDArray[np.float64] | np.float64,
    g: NDArray[np.float64] | np.float64,
    u: NDArray[np.float64] | np.float64,
    h: NDArray[np.float64] | np.float64,
) -> NDArray[np.float64]:
    """Integral over all times of the product of two weights: exponent g at t, and h at u."""
    first = np.minimum(t, u)
    ends = (g + 1) * np.log(first / t) + (h + 1) * np.log(first / u)  # no power of a large number
    return np.asarray((g + 1) * (h + 1) / (g + h + 1) / first * np.exp(ends))
