"""Learn large things first: a training may begin with patches twice as large.

A quarter of the tokens makes a step about five times cheaper. The coarse network shares every
block with the fine one; only the patch layers and the position table differ, and each coarse token
stands at the centre of the four fine tokens it covers. When the fine stage begins, the patch
layers are resampled (as in FlexiViT, arXiv:2212.08013, but by pooling) and training goes on.

Shapes: D width, C channels, p the coarse patch size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ditscope.model.config import DiTConfig
from ditscope.model.dit import DiT
from ditscope.model.layers import position_table

FACTOR = 2


def coarse_model(fine: DiTConfig) -> DiT:
    """The same network with patches twice as large, on the same positions."""
    config = fine.model_copy(update={"patch_size": fine.patch_size * FACTOR})
    model = DiT(config)
    with torch.no_grad():
        table = position_table(*config.grid, config.hidden_size, stride=FACTOR)
        model.pos_embed.copy_(table[None])
    return model


def refine(coarse: dict[str, Tensor], fine: DiTConfig) -> dict[str, Tensor]:
    """The state of the fine network that sees and draws smooth pictures as the coarse one does."""
    state = dict(coarse)
    size, channels = fine.patch_size, fine.out_channels
    read = coarse["x_embedder.proj.weight"]  # (D, C, p, p)
    state["x_embedder.proj.weight"] = torch.nn.functional.avg_pool2d(read, FACTOR) * FACTOR**2
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        rows = coarse[name].view(size, FACTOR, size, FACTOR, channels, -1)  # p rows, p columns
        state[name] = rows.mean(dim=(1, 3)).reshape(size * size * channels, *coarse[name].shape[1:])
    table = position_table(*fine.grid, fine.hidden_size)
    state["pos_embed"] = table[None]
    return state
