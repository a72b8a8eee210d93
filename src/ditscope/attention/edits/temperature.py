"""Temperature: attention made sharper or flatter."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, Unpack

import torch
from pydantic import Field

from ditscope.attention.edits.base import Edit, Places, chosen
from ditscope.attention.seam import AttentionCall

LIMIT = 1000.0
"""Beyond it, and below its inverse, half precision overflows and the map hardly changes."""


class Temperature(Edit):
    """`softmax(s q k^T / temperature + bias)`, with the model's own softmax scale s = 1 / sqrt(K).

    Above 1 the map gets flatter, below 1 sharper; 1 changes nothing. A mask stays what it is: an
    additive one is not divided. All heads of a layer take the scale argument of the call, which
    costs nothing and rounds nothing. Some heads of a layer get their queries divided: that rounds
    once to the number type of the queries (in bfloat16 by up to 0.2 %, unless the temperature is a
    power of 2), and leaves the other heads the bits they had.
    """

    kind: Literal["temperature"] = "temperature"
    temperature: Annotated[float, Field(ge=1 / LIMIT, le=LIMIT)]

    if TYPE_CHECKING:

        def __init__(self, temperature: float, **places: Unpack[Places]) -> None: ...

    @property
    def neutral(self) -> bool:
        """Whether it is 1."""
        return self.temperature == 1

    def change(self, call: AttentionCall, heads: tuple[int, ...] | None) -> AttentionCall:
        """Divide the scores by the temperature."""
        if heads is None:
            return replace(call, scale=call.softmax_scale / self.temperature)
        mask = chosen(call, heads)
        exact = torch.promote_types(call.q.dtype, torch.float32)
        divisors = torch.ones_like(mask, dtype=exact).masked_fill_(mask, self.temperature)
        return replace(call, q=(call.q / divisors).to(call.q.dtype))
