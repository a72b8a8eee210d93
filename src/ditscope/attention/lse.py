"""Fused attention that also returns its log-sum-exp, which the public function keeps to itself.

The operators are private to torch, so each is tried once per device and dtype against plain
arithmetic before its numbers are trusted; one that fails is not used.

Shapes: B rows, H heads, N queries, M keys, K head width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor]]
"""(q, k, v, key bias (B, H, M) float32 or None, scale) -> output, log-sum-exp (B, H, N) float32."""

LOW_PRECISION = (torch.bfloat16, torch.float16)
TOLERANCE = 1e-3  # nats

_trusted: dict[tuple[str, torch.dtype], bool] = {}


def attention_lse(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention and the natural logarithm of each query's softmax denominator.

    Args:
        q: (B, H, N, K).
        k: (B, H, M, K).
        v: (B, H, M, K); unlike in the public function, as wide as the keys.
        bias: (B, H, M) float32, added to the scores of each key; None is none.
        scale: Factor of the scores, before the bias.

    Returns:
        The output (B, H, N, K) in the dtype of q, and the log-sum-exp (B, H, N) in float32.
    """
    return _KERNELS[q.device.type](q, k, v, bias, scale)


def has_fused_lse(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `attention_lse` works here; the first question tests it on a few numbers."""
    key = (device.type, dtype)
    if key not in _trusted:
        _trusted[key] = device.type in _KERNELS and _keeps_its_word(device, dtype)
    return _trusted[key]


def _on_cpu(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    # A bias with gaps between its numbers costs the kernel four times the time.
    mask = None if bias is None else bias.contiguous().unsqueeze(-2)  # (B, H, 1, M)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(q, k, v, 0.0, False, attn_mask=mask, scale=scale)


def _on_cuda(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Flash for two-byte numbers, else memory-efficient. Neither needs a mask for a key bias.

    A bias becomes three more columns of the keys, met by ones in the queries: in bfloat16 one
    column keeps 8 bits of it, three keep all 24.
    """
    width, queries = v.shape[-1], q.shape[-2]
    if bias is not None:
        q = torch.cat([q, q.new_ones(*q.shape[:-1], 3)], dim=-1)
        k = torch.cat([k, _three_parts(bias / scale, k.dtype)], dim=-1)
    padding = -q.shape[-1] % 8
    q, k = F.pad(q, (0, padding)), F.pad(k, (0, padding))
    v = F.pad(v, (0, q.shape[-1] - width))
    if q.dtype in LOW_PRECISION:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        output, lse = flash(q, k, v, 0.0, False, False, scale=scale)[:2]
    else:
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        output, lse = efficient(q, k, v, None, True, 0.0, False, scale=scale)[:2]
    return output[..., :width], lse[..., :queries]  # the log-sum-exp may come padded


def _three_parts(values: Tensor, dtype: torch.dtype) -> Tensor:
    """(...) -> (..., 3) of a coarser dtype, which add up to `values`."""
    first = values.to(dtype)
    second = (values - first.float()).to(dtype)
    third = (values - first.float() - second.float()).to(dtype)
    return torch.stack([first, second, third], dim=-1)


_KERNELS: dict[str, Attention] = {"cpu": _on_cpu, "cuda": _on_cuda}


def _keeps_its_word(device: torch.device, dtype: torch.dtype) -> bool:
    """Compare with a softmax by hand: N not a multiple of a tile, N != M, a bias, an odd width."""
    generator = torch.Generator().manual_seed(0)  # leaves the global generator alone
    q, k = (torch.randn(2, 3, n, 20, generator=generator).to(device, dtype) for n in (37, 41))
    bias = 8 * torch.randn(2, 3, 41, generator=generator).to(device)
    scores = 0.5 * q.double() @ k.double().mT + bias.double().unsqueeze(-2)
    expected = scores.logsumexp(-1)
    try:
        output, lse = attention_lse(q, k, torch.ones_like(k), bias, 0.5)
        off = (lse - expected).abs().max().item()
        off_output = (output.float() - 1).abs().max().item()
    except (RuntimeError, NotImplementedError) as problem:
        reason = str(problem)
    else:
        if off <= TOLERANCE and off_output <= max(TOLERANCE, torch.finfo(dtype).eps):
            return True
        reason = f"its log-sum-exp is off by {off:.1e}, its output by {off_output:.1e}"
    warnings.warn(
        f"the fused attention of {device.type} in {dtype} is not used for statistics, which will "
        f"be slower: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )
    return False
