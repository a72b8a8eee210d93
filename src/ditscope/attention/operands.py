"""What determines an attention map: queries, keys, bias and scale, in one layout.

Shapes: B rows, H heads, N queries, M keys, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ditscope.attention.seam import AttentionCall


@dataclass(frozen=True)
class Operands:
    """`softmax(scale * q k^T + bias)`, before any dropout. Grouped keys are repeated."""

    q: Tensor  # (B, H, N, K)
    k: Tensor  # (B, H, M, K)
    scale: float
    mask: Tensor | None = None  # bool or additive, broadcasts to (B, H, N, M)
    causal: bool = False

    @property
    def plain(self) -> bool:
        """Whether every query sees every key without bias."""
        return self.mask is None and not self.causal

    def bias(self, rows: slice | list[int] | Tensor) -> Tensor | None:
        """What is added to the scores of some queries: float32, broadcasts to (B, H, rows, M)."""
        bias = None
        if self.mask is not None:
            mask = self.mask if self.mask.shape[-2] == 1 else self.mask[..., rows, :]
            bias = _hidden(~mask) if mask.dtype == torch.bool else mask.float()
        if self.causal:  # aligned top left, also where N differs from M
            query = torch.arange(self.q.shape[-2], device=self.q.device)[rows]
            later = torch.arange(self.k.shape[-2], device=self.q.device) > query[:, None]
            bias = _hidden(later) if bias is None else bias + _hidden(later)
        return bias


def operands(call: AttentionCall) -> Operands:
    """The operands of a call. Two leading axes are (B, H); one is B; of more, the last is H."""
    q, k = call.q, call.k
    if call.enable_gqa:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)
    if q.shape[:-2] != k.shape[:-2]:
        shared = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2])
        q, k = q.expand(*shared, *q.shape[-2:]), k.expand(*shared, *k.shape[-2:])
    mask = call.attn_mask
    if mask is not None:
        mask = mask.reshape((1,) * (2 - mask.dim()) + mask.shape)
        if q.dim() != 4:
            mask = _four(mask.expand(*q.shape[:-2], *mask.shape[-2:]))
        else:
            mask = mask.reshape((1,) * (4 - mask.dim()) + mask.shape)
    return Operands(_four(q), _four(k), call.softmax_scale, mask, call.is_causal)


def values_and_output(call: AttentionCall, output: Tensor) -> tuple[Tensor, Tensor]:
    """The values of a call and what it returned, in the layout of its `operands`."""
    v = call.v
    if call.enable_gqa:
        v = v.repeat_interleave(call.q.shape[-3] // v.shape[-3], dim=-3)
    return _four(v.expand(*output.shape[:-2], *v.shape[-2:])), _four(output)


def _four(tensor: Tensor) -> Tensor:
    if tensor.dim() == 4:
        return tensor
    if tensor.dim() < 4:
        return tensor.reshape((1,) * (3 - tensor.dim()) + tensor.shape).unsqueeze(1)
    return tensor.flatten(0, -4)


def _hidden(where: Tensor) -> Tensor:
    zeros = torch.zeros(where.shape, dtype=torch.float32, device=where.device)
    return zeros.masked_fill_(where, -torch.inf)
