"""The configuration of a DiT, found from the shapes of its tensors.

Shapes: N tokens, D width, C channels, p patch.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ditscope.core.variants import published_heads
from ditscope.errors import BadCheckpoint, BadConfig, listed
from ditscope.model.config import DiTConfig
from ditscope.model.layers import position_table

TABLE_TOLERANCE = 1e-3
"""Averaging weights in float32 moves the frozen position table by up to 1.6e-4."""

_DIMENSIONS = {
    "pos_embed": 3,  # (1, N, D)
    "x_embedder.proj.weight": 4,  # (D, C, p, p)
    "y_embedder.embedding_table.weight": 2,  # (classes + 1, D)
    "blocks.0.mlp.fc1.weight": 2,  # (mlp width, D)
    "final_layer.linear.weight": 2,  # (p * p * C_out, D)
}
_BLOCK = re.compile(r"blocks\.([0-9]{1,6})\.")


def infer_config(
    state: Mapping[str, Tensor],
    num_heads: int | None = None,
    *,
    file: str | os.PathLike[str] = "weights",
) -> DiTConfig:
    """The configuration that published weights belong to.

    Two things are not in the tensors. The number of heads is that of the published variant of the
    same width and depth, unless given. The last row of the label table is taken for the null class.

    Raises:
        BadCheckpoint: the tensors are not those of a DiT, or the head count must be given.
    """
    _check_present(state, file)
    patches, labels = state["x_embedder.proj.weight"], state["y_embedder.embedding_table.weight"]
    width, channels, patch = patches.shape[0], patches.shape[1], patches.shape[2]
    depth = len({match[1] for match in map(_BLOCK.match, state) if match})
    heads = num_heads or published_heads(width, depth)
    if heads is None:
        raise BadCheckpoint(
            f"weights do not tell the number of heads, and no published DiT has depth {depth} and "
            f"width {width}",
            file=file,
            fix="give num_heads (--num-heads)",
        )
    out_channels, rest = divmod(state["final_layer.linear.weight"].shape[0], patch * patch)
    if rest or out_channels not in (channels, 2 * channels):
        raise BadCheckpoint(
            f"{state['final_layer.linear.weight'].shape[0]} outputs per token of {patch} x {patch}",
            file=file,
            field="final_layer.linear.weight",
            expected=f"{channels} or {2 * channels} channels for {channels} in",
        )
    rows, columns = _grid(state["pos_embed"], file)
    size = (rows * patch, columns * patch)
    try:
        return DiTConfig(
            input_size=size[0] if rows == columns else size,
            patch_size=patch,
            in_channels=channels,
            hidden_size=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width,
            num_classes=labels.shape[0] - 1,
            learn_sigma=out_channels == 2 * channels,
        )
    except BadConfig as reason:
        raise BadCheckpoint(reason.problem, file=file, field=reason.field) from None


def table_note(config: DiTConfig, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """A sentence if the position table is not the formula's (it is used as it is); else nothing."""
    formula = position_table(*config.grid, config.hidden_size)
    difference = float((state["pos_embed"][0].float() - formula).abs().max())
    if difference <= TABLE_TOLERANCE:
        return ()
    return (f"the position table differs from the formula by up to {difference:.2g}",)


def _check_present(state: Mapping[str, Tensor], file: str | os.PathLike[str]) -> None:
    wrong = [
        name
        for name, dimensions in _DIMENSIONS.items()
        if name not in state or state[name].ndim != dimensions or not state[name].numel()
    ]
    if wrong:
        raise BadCheckpoint(
            f"these are not the weights of a DiT: missing or of another shape: {listed(wrong)}",
            file=file,
        )


def _grid(table: Tensor, file: str | os.PathLike[str]) -> tuple[int, int]:
    """Rows and columns of the token grid.

    As many tokens as there are columns share the row code of the first one. A table that is no
    formula's, since somebody trained it, is believed to be that of a square.
    """
    tokens, width = table.shape[1], table.shape[2]
    row_code = table[0, :, width // 2 :].float()  # the second half of the channels encodes the row
    same_row = (row_code - row_code[0]).abs().amax(dim=1) < 10 * TABLE_TOLERANCE
    columns = max(int(torch.count_nonzero(same_row)), 1)
    if tokens % columns == 0 and width % 4 == 0:
        formula = position_table(tokens // columns, columns, width)
        if (table[0].float() - formula).abs().max() < 100 * TABLE_TOLERANCE:
            return tokens // columns, columns
    side = math.isqrt(tokens)
    if side * side == tokens:
        return side, side
    raise BadCheckpoint(
        f"is not a table of sines and cosines, and {tokens} tokens are no square",
        file=file,
        field="pos_embed",
    )
