"""The fast backward pass of attention against float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ditscope.train import attention
from ditscope.train.attention import FastBackward

generator = torch.Generator().manual_seed(0)


def operands(queries=40, keys=40, size=1.0, dtype=torch.bfloat16):
    shapes = ((2, 3, queries, 16), (2, 3, keys, 16), (2, 3, keys, 16))
    return [torch.randn(s, generator=generator).mul(size).to(dtype) for s in shapes]


def gradients(qkv: list[Tensor], dtype: torch.dtype, **options) -> list[Tensor]:
    """Of a weighted sum of the output."""
    leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in qkv]
    output = F.scaled_dot_product_attention(*leaves, **options)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    output.backward(weights.to(torch.bfloat16).to(dtype))
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"attn_mask": None, "is_causal": False}])
@pytest.mark.parametrize("keys", [40, 23])
@pytest.mark.parametrize("tile", [2**21, 1])
def test_gradients_equal_float64(keys, options, tile, monkeypatch):
    monkeypatch.setattr(attention, "TILE_ELEMENTS", tile)
    qkv = operands(keys=keys)
    with FastBackward():
        found = gradients(qkv, torch.bfloat16, **options)
    exact = gradients(qkv, torch.float64, **options)
    for mine, wanted in zip(found, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        error = (mine.double() - wanted).norm() / wanted.norm()
        assert error < 2**-7  # the rounding of scores, map and sums to 8 bits


def test_no_less_exact_than_the_fused_kernel():
    qkv = operands(queries=128, keys=128, size=2.0)
    exact = gradients(qkv, torch.float64)
    with FastBackward():
        fast = gradients(qkv, torch.bfloat16)
    fused = gradients(qkv, torch.bfloat16)
    for mine, theirs, wanted in zip(fast, fused, exact, strict=True):
        mine, theirs = ((each.double() - wanted).norm() for each in (mine, theirs))
        assert mine < 3 * theirs


def test_the_output_keeps_its_bits():
    q, k, v = operands()
    plain = F.scaled_dot_product_attention(q, k, v)
    with FastBackward():
        assert torch.equal(F.scaled_dot_product_attention(q.requires_grad_(), k, v), plain)


@pytest.mark.parametrize(
    "options",
    [{"is_causal": True}, {"attn_mask": torch.ones(40, 40, dtype=torch.bool).tril()}],
)
def test_other_calls_keep_their_gradient(options):
    qkv = operands()
    with FastBackward():
        found = gradients(qkv, torch.bfloat16, **options)
    for mine, own in zip(found, gradients(qkv, torch.bfloat16, **options), strict=True):
        assert torch.equal(mine, own)


def test_float32_keeps_its_gradient():
    qkv = operands(dtype=torch.float32)
    with FastBackward():
        found = gradients(qkv, torch.float32)
    for mine, own in zip(found, gradients(qkv, torch.float32), strict=True):
        assert torch.equal(mine, own)


def test_nothing_happens_without_gradients():
    q, k, v = operands()
    with FastBackward(), torch.no_grad():
        assert not F.scaled_dot_product_attention(q, k, v).requires_grad
