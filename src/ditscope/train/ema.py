"""A slow copy of the weights: the one that draws."""

from __future__ import annotations

import torch
from torch import nn

RAMP = 10
"""The average looks back over at most a tenth of the steps so far, so that it forgets the start."""


@torch.no_grad()
def update_ema(slow: nn.Module, fast: nn.Module, step: int, decay: float) -> None:
    """Move `slow` towards `fast` after `step` (from 0). Frozen tensors are left alone."""
    decay = min(decay, (1 + step) / (RAMP + step))
    ours = [p for p in slow.parameters()]
    pairs = [(s, f) for s, f in zip(ours, fast.parameters(), strict=True) if f.requires_grad]
    torch._foreach_lerp_([s for s, _ in pairs], [f for _, f in pairs], 1 - decay)
