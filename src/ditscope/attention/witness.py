"""What a kernel's values and output look like along one fixed direction: proof at little price.

Shapes: B rows, H heads, M keys, K head width, Q proven queries.
"""

from __future__ import annotations

import torch
from torch import Tensor


def projected(values: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Values (B, H, M, K) and outputs (B, H, Q, K) along r: (B, H, M) and (B, H, Q), float32.

    r is a vector of random signs over sqrt(K), the same for every call, so that a difference in any
    channel moves the projection.
    """
    r = _direction(values.shape[-1]).to(values.device)
    # Not as a matrix product: that may round what it multiplies to TF32.
    return (values.float() * r).sum(-1), (outputs.float() * r).sum(-1)


def _direction(width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)  # leaves the global generator alone
    signs = torch.randint(0, 2, (width,), generator=generator) * 2.0 - 1
    return signs / width**0.5
