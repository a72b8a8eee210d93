"""Muon in float32 against its definition in float64, and against torch's own."""

from __future__ import annotations

import pytest
import torch

from ditscope.train.muon import Float32Muon, orthogonalised

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_singular_values_pass_through_the_polynomial_and_vectors_stay(
    shape: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    a, b, c = COEFFICIENTS
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    expected = u @ torch.diag(s) @ v
    found = orthogonalised(matrix, COEFFICIENTS, 5, 1e-7)
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=0)


def test_a_gradient_of_zeros_moves_nothing() -> None:
    assert not orthogonalised(torch.zeros(3, 5), COEFFICIENTS, 5, 1e-7).any()


def test_it_takes_the_steps_of_torchs_muon_but_for_rounding_in_bfloat16() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(24, 64), torch.randn(4, 24, 64)
    settings = {"lr": 0.1, "weight_decay": 0.2, "adjust_lr_fn": "match_rms_adamw"}
    both = {kind: torch.nn.Parameter(start.clone()) for kind in (torch.optim.Muon, Float32Muon)}
    made = {kind: kind([matrix], **settings) for kind, matrix in both.items()}
    for gradient in gradients:
        for kind, matrix in both.items():
            matrix.grad = gradient.clone()
            made[kind].step()
    theirs, ours = both.values()
    moved = (theirs - start).norm()
    assert (theirs - ours).norm() < 1e-2 * moved
    buffers = [made[kind].state[matrix]["momentum_buffer"] for kind, matrix in both.items()]
    assert torch.equal(*buffers)
