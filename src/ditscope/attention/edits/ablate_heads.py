"""AblateHeads: heads that say nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Unpack

import torch
from torch import Tensor

from ditscope.attention.edits.base import Edit, Places, chosen, num_heads
from ditscope.attention.seam import AttentionCall


class AblateHeads(Edit):
    """Heads whose output is zero: their values are replaced by zeros.

    So the map of an ablated head is still there to be watched, and nobody reads anything through
    it. (Zero, and not the mean over tokens or data.) Where queries share keys and values in groups,
    these are repeated first, so that a head can go without its group.
    """

    kind: Literal["ablate_heads"] = "ablate_heads"

    if TYPE_CHECKING:

        def __init__(self, **places: Unpack[Places]) -> None: ...

    def change(self, call: AttentionCall, heads: tuple[int, ...] | None) -> AttentionCall:
        """Put zeros in the place of the values."""
        if heads is None:
            return replace(call, v=torch.zeros_like(call.v))
        if call.enable_gqa:
            k, v = (_per_query_head(each, num_heads(call)) for each in (call.k, call.v))
            call = replace(call, k=k, v=v, enable_gqa=False)
        return replace(call, v=call.v.masked_fill(chosen(call, heads), 0.0))


def _per_query_head(tensor: Tensor, heads: int) -> Tensor:
    """(B, groups, M, K) -> (B, H, M, K)."""
    return tensor.repeat_interleave(heads // tensor.shape[-3], dim=-3)
