"""Random numbers that belong to a sample, not to the batch or the process it is drawn in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ditscope.errors import BadRequest


def sample_seed(seed: int, index: int) -> int:
    """The 63-bit seed of sample `index` of the run with seed `seed`; a pure function of the two.

    Raises:
        BadRequest: if either is negative.
    """
    for name, value in (("seed", seed), ("index", index)):
        if value < 0:
            raise BadRequest(f"found {value}", field=name, expected="an integer >= 0")
    word = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return int(word) >> 1


class SampleNoise:
    """Standard normal noise of which every row comes from its own generator, on the CPU.

    So sample 7 starts from, and is fed, the same numbers whatever the batch size, the number of
    processes or the device.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """The next draw of every sample: (B, ...) float32 on the CPU, B = number of seeds."""
        rows, *rest = shape
        if rows != len(self.generators):
            raise BadRequest(
                f"noise for {rows} rows", field="shape", expected=f"{len(self.generators)} rows"
            )
        return torch.stack([torch.randn(rest, generator=each) for each in self.generators])
