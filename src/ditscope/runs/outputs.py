"""What a run keeps of the network's outputs, so that a replay can be held against the recording.

Of every evaluation, branch and sample: a digest, and a few numbers of the output, 144 bytes. The
digest tells whether a replay gave the same bits. That is the right thing to compare for every
sampler: the next latent is made of this output and, with solvers of several steps, of earlier ones,
so of all that a replay can get wrong it holds nothing more. The numbers tell how far a replay on
another machine, whose kernels round differently, is from the recording.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIGEST_WORDS = 8
"""The first 16 bytes of SHA-256, as words of 16 bits."""

NUMBERS = 32
"""Numbers of an output that are kept, evenly spread over it."""

ROUNDING = {"float32": 0.01, "float16": 0.25, "bfloat16": 0.25}
"""Share of the largest number by which an output may differ on another machine, by compute type.
Wide: a step with another latent, label or edit differs by about the whole of it."""


@dataclass(frozen=True)
class Agreement:
    """How the outputs of a replay compare with the recorded ones."""

    exact: bool  # every bit
    difference: float  # largest, of the numbers that are kept
    largest: float  # largest of these numbers themselves
    elsewhere: str = ""  # where it was recorded and replayed, if not on the same kind of machine

    def within_rounding(self, dtype: str) -> bool:
        """Whether it is the recorded step, computed in `dtype`."""
        return self.exact or self.difference <= ROUNDING[dtype] * self.largest

    def __str__(self) -> str:
        if self.exact:
            return "bit for bit"
        text = f"within {self.difference:.1e} of outputs up to {self.largest:.2g}"
        return f"{text} ({self.elsewhere})" if self.elsewhere else text


NOT_KEPT = "not checked: the run keeps no digest of the network's outputs"


def words_of(output: NDArray[np.float32], count: int) -> NDArray[np.uint16]:
    """What is kept of one output (C, h, w): its digest and `count` of its numbers, as words."""
    flat = np.ascontiguousarray(output, dtype="<f4").reshape(-1)
    digest = np.frombuffer(hashlib.sha256(flat.tobytes()).digest()[: 2 * DIGEST_WORDS], "<u2")
    return np.concatenate([digest, flat[_places(flat.size, count)].view("<u2")]).astype(np.uint16)


def agreement(kept: NDArray[Any], output: NDArray[np.float32], elsewhere: str = "") -> Agreement:
    """How `output` (C, h, w) compares with what was kept of the recorded one."""
    again = words_of(output, (len(kept) - DIGEST_WORDS) // 2)
    was, now = (
        np.ascontiguousarray(words[DIGEST_WORDS:], "<u2").view("<f4").astype(np.float64)
        for words in (kept, again)
    )
    return Agreement(
        exact=np.array_equal(kept, again),
        difference=float(np.abs(now - was).max()),
        largest=float(np.abs(was).max()),
        elsewhere=elsewhere,
    )


def worst(found: Iterable[Agreement]) -> Agreement | None:
    """The one that agrees least; None of none."""
    return max(found, key=lambda each: (not each.exact, each.difference), default=None)


def _places(size: int, count: int) -> NDArray[np.intp]:
    return np.linspace(0, size - 1, count).round().astype(np.intp)
