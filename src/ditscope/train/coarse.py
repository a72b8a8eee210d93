"""Learn large things first: a training may begin with patches twice as large.

A quarter of the tokens makes a step about five times cheaper. The coarse network shares every
block with the fine one; only the patch layers and the position table differ, and each coarse token
stands at the centre of the four fine tokens it covers. When the fine stage begins, the patch
layers are resampled (as in FlexiViT, arXiv:2212.08013, but by pooling) and training goes on. A
training that begins with given weights and learns new classes goes the other way first.

Shapes: D width, C channels, p the coarse patch size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ditscope.model.config import DiTConfig
from ditscope.model.dit import DiT
from ditscope.model.layers import position_table

FACTOR = 2


def coarse_config(fine: DiTConfig) -> DiTConfig:
    """The network of the coarse stage; its positions are not the usual ones of that size."""
    return fine.model_copy(update={"patch_size": fine.patch_size * FACTOR})


def coarse_model(fine: DiTConfig) -> DiT:
    """The same network with patches twice as large, on the same positions."""
    config = coarse_config(fine)
    model = DiT(config)
    with torch.no_grad():
        model.pos_embed.copy_(coarse_positions(fine))
    return model


def coarsen(fine: dict[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """The state of the coarse network that `refine` makes `fine` of; `config` is the fine one.

    A coarse token is the mean of the four fine tokens it covers, and is drawn as each of them.
    """
    state = dict(fine)
    size, channels = config.patch_size, config.out_channels
    read = fine["x_embedder.proj.weight"]  # (D, C, p / 2, p / 2)
    wide = read.repeat_interleave(FACTOR, -1).repeat_interleave(FACTOR, -2)
    state["x_embedder.proj.weight"] = wide / FACTOR**2
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        rows = fine[name].view(size, size, channels, -1)
        rows = rows.repeat_interleave(FACTOR, 0).repeat_interleave(FACTOR, 1)
        state[name] = rows.reshape((size * FACTOR) ** 2 * channels, *fine[name].shape[1:])
    state["pos_embed"] = coarse_positions(config)
    return state


def coarse_positions(fine: DiTConfig) -> Tensor:
    """The position table of the coarse network (1, N / 4, D): each token amid four fine ones."""
    coarse = coarse_config(fine)
    return position_table(*coarse.grid, coarse.hidden_size, stride=FACTOR)[None]


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
