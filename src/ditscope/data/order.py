"""The order of pictures, and what is drawn at random for one of them: functions of a few numbers.

The random words are the raw output of Philox, which numpy promises never to change; normal numbers
are those of numpy's generator over it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ORDER, _MIRROR, _POSTERIOR = 0, 1, 2  # independent random streams under one seed


def shuffled(seed: int, block: int, count: int) -> NDArray[np.int64]:
    """The numbers 0 to `count - 1` in the order of a block, such as an epoch."""
    return np.argsort(_bits(seed, block, _ORDER).random_raw(count), kind="stable")


def mirrored(seed: int, index: int) -> bool:
    """Whether picture `index` of a training is shown as in a mirror: half of them are."""
    return bool(_bits(seed, index, _MIRROR).random_raw() >> 63)


def posterior_noise(seed: int, index: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Standard normal numbers for the latent of picture `index` of a training."""
    generator = np.random.Generator(_bits(seed, index, _POSTERIOR))
    return generator.standard_normal(tuple(shape), np.float32)


def _bits(seed: int, number: int, stream: int) -> np.random.Philox:
    key = np.array([seed, number], np.uint64)
    return np.random.Philox(key=key, counter=[0, 0, 0, stream])
