"""Muon in the number type that a training computes in.

`torch.optim.Muon` always orthogonalises in bfloat16. A processor without instructions for such
products takes eighty times as long for them as in float32: more than the rest of a step.

Shapes: m rows, n columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

RMS_OF_ADAMW = 0.2
"""Size of an update of AdamW, to which those of Muon are matched (arXiv:2502.16982, eq. 4)."""


class Float32Muon(torch.optim.Muon):
    """As `torch.optim.Muon` with `match_rms_adamw`, in float32 throughout."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of every matrix that has a gradient; its state is that of torch's Muon."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._move(matrix, matrix.grad, group)
        return loss

    def _move(self, matrix: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(average, group["momentum"])  # Nesterov
        update = orthogonalised(ahead, group["ns_coefficients"], group["ns_steps"], group["eps"])
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(update, alpha=-group["lr"] * RMS_OF_ADAMW * max(matrix.shape) ** 0.5)


def orthogonalised(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, least_norm: float
) -> Tensor:
    """About U V^T of a matrix U S V^T: (m, n) -> (m, n), its singular values 0.7 to 1.2.

    A quintic Newton-Schulz iteration (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp(min=least_norm)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
