"""The Diffusion Transformer (Peebles and Xie, arXiv:2212.09748), read top to bottom.

Shapes: B rows, N tokens, D width, C channels, h and w the latent grid, p patch size.

Written from the paper and from the published tensor names and shapes. The names of the parameters
are the published ones, so published weights load with `strict=True`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ditscope.core.variants import variant
from ditscope.errors import BadRequest
from ditscope.model.config import DiTConfig
from ditscope.model.layers import (
    Attention,
    LabelEmbedder,
    Mlp,
    PatchEmbed,
    TimestepEmbedder,
    modulate,
    position_table,
)

NORM_EPS = 1e-6


class DiTBlock(nn.Module):
    """A transformer block shifted, scaled and gated by the condition (adaLN-Zero)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS, elementwise_affine=False)
        self.attn = Attention(dim, config.num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=config.mlp_norm_eps, elementwise_affine=False)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (B, N, D) under condition (B, D) -> (B, N, D)."""
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(
            c
        ).chunk(6, dim=1)
        x = x + gate_msa[:, None] * self.attn(modulate(self.norm1(x), shift_msa, scale_msa))
        return x + gate_mlp[:, None] * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    """Modulated norm, then every token's patch: (B, N, D) -> (B, N, p * p * C_out)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.norm_final = nn.LayerNorm(dim, eps=NORM_EPS, elementwise_affine=False)
        self.linear = nn.Linear(dim, config.patch_size**2 * config.out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (B, N, D) under condition (B, D) -> patches (B, N, p * p * C_out)."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """Noisy latents, timesteps and labels in; predicted noise (and variance) out.

    An untrained model returns exactly zero: every block starts as the identity.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.grad_checkpoint = False  # compute each block again in the backward pass
        dim = config.hidden_size
        self.x_embedder = PatchEmbed(config.patch_size, config.in_channels, dim)
        self.t_embedder = TimestepEmbedder(dim, config.frequency_shift)
        self.y_embedder = LabelEmbedder(config.num_classes, dim, config.class_dropout_prob)
        self.pos_embed = nn.Parameter(torch.empty(1, config.num_tokens, dim), requires_grad=False)
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)
        self.initialize_weights()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict from a noisy latent.

        Args:
            x: (B, C, h, w), the noisy latent, in the weights' dtype.
            t: (B,), what the noise process tells the network, any real number.
            y: (B,) int64 labels; `config.null_label` is the unconditional branch.

        Returns:
            (B, C_out, h, w): noise (or velocity, or picture), then variance values if learned.

        Raises:
            BadRequest: if x is not of the size the position table was made for.
        """
        if x.shape[1:] != (
            self.config.in_channels,
            self.config.input_height,
            self.config.input_width,
        ):
            expected = (self.config.in_channels, self.config.input_height, self.config.input_width)
            raise BadRequest(
                f"latent has shape {tuple(x.shape)}", field="x", expected=f"(B, {expected})"
            )
        tokens = self.x_embedder(x) + self.pos_embed  # (B, N, D)
        c = self.t_embedder(t) + self.y_embedder(y)  # (B, D)
        for block in self.blocks:
            if self.grad_checkpoint and torch.is_grad_enabled():
                tokens = cast(Tensor, checkpoint(block, tokens, c, use_reentrant=False))
            else:
                tokens = block(tokens, c)  # (B, N, D)
        return self.unpatchify(self.final_layer(tokens, c))  # (B, C_out, h, w)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Put patches back on the grid: (B, N, p * p * C_out) -> (B, C_out, h, w)."""
        (rows, columns), p = self.config.grid, self.config.patch_size
        grid = patches.view(-1, rows, columns, p, p, self.config.out_channels)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(
            -1, self.config.out_channels, rows * p, columns * p
        )

    def initialize_weights(self) -> None:
        """Published initialisation: Xavier linears, small embeddings, zero gates and output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        patches = self.x_embedder.proj
        nn.init.xavier_uniform_(patches.weight.view(patches.weight.shape[0], -1))
        nn.init.zeros_(cast(Tensor, patches.bias))
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(cast(nn.Linear, layer).weight, std=0.02)
        gates = [part for name, part in self.named_modules() if name.endswith("adaLN_modulation.1")]
        for layer in (*gates, self.final_layer.linear):
            nn.init.zeros_(cast(nn.Linear, layer).weight)
            nn.init.zeros_(cast(nn.Linear, layer).bias)
        table = position_table(*self.config.grid, self.config.hidden_size)
        with torch.no_grad():
            self.pos_embed.copy_(table[None])


def build(name: str, **settings: object) -> DiT:
    """A freshly initialised published variant, e.g. `build("DiT-XL/2", num_classes=10)`.

    `settings` are further `DiTConfig` fields. Raises BadRequest for an unknown name.
    """
    found = variant(name)
    sizes = {
        "hidden_size": found.hidden_size,
        "depth": found.depth,
        "num_heads": found.num_heads,
        "patch_size": found.patch_size,
    }
    return DiT(DiTConfig(**{**sizes, **settings}))
