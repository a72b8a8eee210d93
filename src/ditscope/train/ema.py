"""Slow copies of the weights: the one that draws, and those of which others are made later."""

from __future__ import annotations

import torch
from torch import nn

from ditscope.train.posthoc import decay as power_decay

RAMP = 10
"""With a ramp the average looks back over at most a tenth of the steps, and forgets the start."""


def update_ema(
    slow: nn.Module, fast: nn.Module, step: int, decay: float, *, ramp: bool = True
) -> None:
    """Move `slow` towards `fast` after `step` (from 0). Frozen tensors are left alone."""
    if ramp:
        decay = min(decay, (1 + step) / (RAMP + step))
    _move(slow, fast, 1 - decay)


def update_power(slow: nn.Module, fast: nn.Module, step: int, exponent: float) -> None:
    """Move a power-function average towards `fast` after `step` (from 0); at the first, onto it.

    Called also after a step that was left out, whose weights count as any others.
    """
    _move(slow, fast, 1 - power_decay(step, exponent))


@torch.no_grad()
def _move(slow: nn.Module, fast: nn.Module, share: float) -> None:
    both = zip(slow.parameters(), fast.parameters(), strict=True)
    for ours, theirs in both:
        if theirs.requires_grad:
            ours.lerp_(theirs, share)
