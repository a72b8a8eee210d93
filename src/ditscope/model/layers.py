"""The parts of a DiT.

Shapes: B rows, N tokens, D width, H heads, K head width, C channels, h and w the latent grid.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SINUSOID_WIDTH = 256
SINUSOID_PERIOD = 10_000.0


def timestep_sinusoid(t: Tensor, *, frequency_shift: int = 0) -> Tensor:
    """Cosines then sines of `t` at geometric frequencies, in float32: (B,) -> (B, 256).

    `frequency_shift` 0 divides the exponent by half the width, as the published model does; 1
    divides by one less, as diffusers does. In this order and in float32 both are reproduced
    bit for bit.
    """
    half = SINUSOID_WIDTH // 2
    order = torch.arange(half, dtype=torch.float32, device=t.device)
    exponents = -math.log(SINUSOID_PERIOD) * order / (half - frequency_shift)
    angles = t.float()[:, None] * torch.exp(exponents)  # (B, half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)  # (B, 256)


def position_table(height: int, width: int, dim: int, *, stride: int = 1) -> Tensor:
    """Fixed 2-D sine-cosine positions of a row-major grid: (height * width, dim), float32.

    The first half of the channels encodes the column, the second the row (the published weights
    were trained so); within a half, sines come before cosines. Computed in float64.
    With `stride` s, each token stands at the centre of s x s tokens of an s times finer grid.
    """
    quarter = dim // 4
    frequencies = SINUSOID_PERIOD ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    centre = (stride - 1) / 2
    columns = torch.arange(width, dtype=torch.float64).repeat(height) * stride + centre
    rows = torch.arange(height, dtype=torch.float64).repeat_interleave(width) * stride + centre
    parts = []
    for coordinate in (columns, rows):
        angles = coordinate[:, None] * frequencies  # (N, dim / 4)
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=1).float()  # (N, dim)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm's affine part: (B, N, D) with (B, D) shift and scale."""
    return x * (1 + scale[:, None]) + shift[:, None]


class PatchEmbed(nn.Module):
    """Pictures to tokens: (B, C, h, w) -> (B, N, D), row-major."""

    def __init__(self, patch_size: int, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Embed every patch."""
        return self.proj(x).flatten(2).transpose(1, 2)  # (B, N, D)


class TimestepEmbedder(nn.Module):
    """Timesteps to conditioning vectors: (B,) -> (B, D)."""

    def __init__(self, dim: int, frequency_shift: int) -> None:
        super().__init__()
        self.frequency_shift = frequency_shift
        self.mlp = nn.Sequential(nn.Linear(SINUSOID_WIDTH, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        """Embed timesteps; the sinusoid is float32, the rest in the weights' dtype."""
        sinusoid = timestep_sinusoid(t, frequency_shift=self.frequency_shift)
        return self.mlp(sinusoid.to(cast(nn.Linear, self.mlp[0]).weight.dtype))


class LabelEmbedder(nn.Module):
    """Classes to conditioning vectors, with the dropout that classifier-free guidance needs.

    Row `num_classes` of the table is the null class; it exists only when `dropout_prob` > 0.
    """

    def __init__(self, num_classes: int, dim: int, dropout_prob: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dropout_prob = dropout_prob
        self.embedding_table = nn.Embedding(num_classes + (dropout_prob > 0), dim)

    def drop(self, y: Tensor, forced: Tensor | None = None) -> Tensor:
        """Labels with some replaced by the null class: at random, or where `forced` is 1."""
        dropped = (
            torch.rand(y.shape, device=y.device) < self.dropout_prob
            if forced is None
            else forced == 1
        )
        return torch.where(dropped, self.num_classes, y)

    def forward(self, y: Tensor, force_drop_ids: Tensor | None = None) -> Tensor:
        """(B,) -> (B, D). Random dropout happens in training mode only."""
        if force_drop_ids is not None or (self.training and self.dropout_prob > 0):
            y = self.drop(y, force_drop_ids)
        return self.embedding_table(y)


class Attention(nn.Module):
    """Multi-head self-attention: a projection in, one fused attention call, a projection out."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        rows, tokens, dim = x.shape
        qkv = self.qkv(x).view(rows, tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, K)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, H, N, K)
        return self.proj(mixed.transpose(1, 2).reshape(rows, tokens, dim))


class Mlp(nn.Module):
    """Two linear layers around a tanh-approximated GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.fc2(self.act(self.fc1(x)))
