"""Attention by hand in float64, and small networks to watch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ditscope.core.sites import TokenGrid
from ditscope.model.config import DiTConfig
from ditscope.model.dit import DiT


@dataclass(frozen=True)
class ByHand:
    """A map (B, H, N, M) and what is to be found of it; a blind query has a NaN row."""

    p: torch.Tensor
    lse: torch.Tensor
    log_p: torch.Tensor

    @property
    def entropy(self):
        return -torch.special.xlogy(self.p, self.p).sum(-1).nanmean(-1)

    @property
    def received_max(self):
        return self.p.nanmean(-2).amax(-1)

    def rms_distance(self, grid):
        image = slice(grid.start, grid.start + grid.count)
        among = self.p[..., image, image]
        among = among / among.sum(-1, keepdim=True)
        token = torch.arange(grid.count)
        y, x = token // grid.width, token % grid.width
        apart = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
        return (among * apart).sum(-1).nanmean(-1).sqrt()


def by_hand(call):
    """The map of a call from its definition, without our code."""
    q, k = call.q.double(), call.k.double()
    if call.enable_gqa:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if call.scale is None else call.scale)
    mask = call.attn_mask
    if mask is not None:
        hidden = torch.zeros((), dtype=torch.double)
        scores = scores + (
            torch.where(mask, hidden, -torch.inf) if mask.dtype == torch.bool else mask
        )
    if call.is_causal:
        scores = scores.masked_fill(~torch.ones_like(scores).tril().bool(), -torch.inf)
    return ByHand(scores.softmax(-1), scores.logsumexp(-1), scores.log_softmax(-1))


def qkv(*, rows=2, heads=2, queries=24, keys=None, width=16, dtype=torch.float32, seed=0, size=1.0):
    """Random operands (B, H, N, K), laid out in memory as one projection makes them."""
    generator = torch.Generator().manual_seed(seed)

    def some(tokens):
        x = torch.randn(rows, tokens, heads, width, generator=generator) * size
        return x.to(dtype).transpose(1, 2)

    keys = keys or queries
    return some(queries), some(keys), some(keys)


def tiny_dit(dtype=torch.float32, **config):
    """Our DiT on 4 x 6 patches with random weights (a new one has zero gates); its arguments."""
    torch.manual_seed(0)
    sizes = {
        "input_size": (8, 12),
        "hidden_size": 32,
        "depth": 3,
        "num_heads": 2,
        "num_classes": 10,
    }
    model = DiT(DiTConfig(**{**sizes, **config}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    inputs = (
        torch.randn(2, 4, 8, 12, dtype=dtype),
        torch.tensor([3.0, 900.0]),
        torch.tensor([1, 10]),
    )
    return model.eval().to(dtype), inputs


DIT_GRID = TokenGrid(height=4, width=6)


class Heads(nn.Module):
    """Self-attention with a public call of SDPA."""

    def __init__(self, width=16, heads=2, **arguments):
        super().__init__()
        self.qkv, self.heads, self.arguments = nn.Linear(width, 3 * width), heads, arguments

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:-1], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, **self.arguments).transpose(1, 2).flatten(2)


class Plain(nn.Module):
    """Two attention modules in a row; nothing says on which grid their tokens are."""

    def __init__(self, **arguments):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = Heads(**arguments), Heads(**arguments)

    def forward(self, x):
        return self.second(x + self.first(x))


class HandWrittenAttention(nn.Module):
    def forward(self, x):
        return (x @ x.mT).softmax(-1) @ x
