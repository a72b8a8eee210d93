"""Flow matching on straight lines between pictures and noise (Lipman et al., arXiv:2210.02747).

Shapes: B rows, C channels, h and w the latent grid.

    x_s = (1 - s) * x0 + s * noise        s = 0 is the picture, s = 1 is pure noise
    velocity = dx_s / ds = noise - x0
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

SMALLEST_DIVISOR = 0.05
"""Noise level below which training no longer divides by the level (arXiv:2511.13720)."""


class FlowProcess(BaseModel):
    """The straight-line process, and how the network speaks about it.

    With `prediction="x"` the network returns the picture and the velocity is derived from it.
    The network is told `s * time_scale`, since its sinusoid was made for timesteps up to 1000.
    `shift` > 1 spends more of the sampling steps at high noise (arXiv:2403.03206, eq. 23).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["flow"] = "flow"
    prediction: Literal["velocity", "x"] = "velocity"
    time_scale: float = Field(default=1000.0, gt=0)
    shift: float = Field(default=1.0, gt=0)

    def noise_levels(self, steps: int) -> Tensor:
        """Shifted noise levels from 1 down to 0: (steps + 1,), float64."""
        even = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
        return self.shift * even / (1 + (self.shift - 1) * even)

    def velocity(self, output: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """Velocity (B, C, h, w) from the network's output at x_s; `level` is (B,) or a scalar."""
        if self.prediction == "velocity":
            return output
        return (x - output) / level.clamp_min(SMALLEST_DIVISOR).view(-1, 1, 1, 1)

    def add_noise(self, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """x_s for levels (B,): (B, C, h, w)."""
        s = level.view(-1, 1, 1, 1)
        return (1 - s) * x0 + s * noise
