"""A slow copy of the weights: the one that draws."""

from __future__ import annotations

import torch
from torch import nn

RAMP = 10
"""With a ramp the average looks back over at most a tenth of the steps, and forgets the start."""


@torch.no_grad()
def update_ema(
    slow: nn.Module, fast: nn.Module, step: int, decay: float, *, ramp: bool = True
) -> None:
    """Move `slow` towards `fast` after `step` (from 0). Frozen tensors are left alone."""
    if ramp:
        decay = min(decay, (1 + step) / (RAMP + step))
    both = zip(slow.parameters(), fast.parameters(), strict=True)
    for ours, theirs in both:
        if theirs.requires_grad:
            ours.lerp_(theirs, 1 - decay)
