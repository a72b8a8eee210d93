"""The copy of a network that computes: bfloat16, while the weights that learn stay float32.

Against autocast this saves every conversion inside a step, a quarter of its time on a CPU: one
copy of all weights each way replaces a conversion of every operand.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn


class Worker(nn.Module):
    """`network` in the number type of a step. With "fp32" it is the network itself."""

    def __init__(self, network: nn.Module, precision: Literal["bf16", "fp32"]) -> None:
        super().__init__()
        self.lowered = precision == "bf16"
        self.network = copy.deepcopy(network).bfloat16() if self.lowered else network

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """As the network's, from and to float32: (B, C, h, w), (B,), (B,) -> (B, C_out, h, w)."""
        return self.network(x.bfloat16() if self.lowered else x, t, y).float()

    @torch.no_grad()
    def hand_gradients_to(self, network: nn.Module) -> None:
        """Add the gradients so far, in float32, to those of the weights that learn."""
        if not self.lowered:
            return
        for own, learning in zip(self.network.parameters(), network.parameters(), strict=True):
            if own.grad is None:
                continue
            more = own.grad.float()
            learning.grad = more if learning.grad is None else learning.grad.add_(more)
            own.grad = None

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """Take over the weights after they have learned."""
        if self.lowered:
            for own, learned in zip(self.network.parameters(), network.parameters(), strict=True):
                own.copy_(learned)
