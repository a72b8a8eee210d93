"""Exact rows and columns of an attention map, from queries, keys and log-sum-exp.

Shapes: B rows, H heads, N queries, M keys, Q asked queries or keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ditscope.attention.operands import Operands
from ditscope.errors import BadRequest, foreign


def attention_rows(attention: Operands, lse: Tensor, queries: Sequence[int]) -> Tensor:
    """Where some queries look: `exp(scale q k^T + bias - lse)` in float32.

    Args:
        attention: What makes the map.
        lse: (B, H, N) float32, found when the call was seen: that a row sums to 1 checks them all.
        queries: Token indices.

    Returns:
        (B, H, Q, M); a row is NaN if a mask hides every key from its query.

    Raises:
        BadRequest: a query is not a token of the sequence.
    """
    index = _tokens(queries, attention.q.shape[-2], "query")
    scores = attention.scale * (attention.q[:, :, index].float() @ attention.k.float().mT)
    return _shares(scores, attention.bias(index), lse[:, :, index])


def attention_columns(attention: Operands, lse: Tensor, keys: Sequence[int]) -> Tensor:
    """Who looks at some keys: (B, H, N, Q), the share of each query's attention they receive.

    Arguments and errors as for `attention_rows`.
    """
    index = _tokens(keys, attention.k.shape[-2], "key")
    scores = attention.scale * (attention.q.float() @ attention.k[:, :, index].float().mT)
    bias = attention.bias(slice(None))
    return _shares(scores, None if bias is None else bias[..., index], lse)


def rows_lse(attention: Operands, rows: slice, queries: list[int]) -> Tensor:
    """Log-sum-exp of some queries of some rows of the batch, (b, H, n) float32."""
    q, k = attention.q[rows][:, :, queries], attention.k[rows]
    scores = attention.scale * (q.float() @ k.float().mT)
    bias = attention.bias(queries)
    if bias is not None:
        scores = scores + (bias[rows] if bias.dim() == 4 and len(bias) > 1 else bias)
    return scores.logsumexp(-1)


def _shares(scores: Tensor, bias: Tensor | None, lse: Tensor) -> Tensor:
    scores = scores if bias is None else scores + bias
    return (scores - lse.masked_fill(lse == -torch.inf, torch.nan).unsqueeze(-1)).exp()


def _tokens(asked: Sequence[int], count: int, field: str) -> list[int]:
    for token in asked:
        if not 0 <= token < count:
            raise BadRequest(
                f"there is no token {foreign(token)}", field=field, expected=f"0 to {count - 1}"
            )
    return list(asked)
