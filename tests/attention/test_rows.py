import pytest
import torch

from ditscope.attention.operands import operands
from ditscope.attention.rows import attention_columns, attention_rows
from ditscope.attention.seam import AttentionCall
from ditscope.attention.stats import statistics_and_lse
from ditscope.errors import BadRequest
from tests.attention.reference import by_hand, qkv
from tests.attention.test_stats import masks

CALLS = {
    "plain": lambda q, k, v: AttentionCall(q, k, v),
    "scale": lambda q, k, v: AttentionCall(q, k, v, scale=2.0),
    "causal": lambda q, k, v: AttentionCall(q, k, v, is_causal=True),
    **{
        name: lambda q, k, v, mask=mask: AttentionCall(q, k, v, mask)
        for name, mask in masks().items()
    },
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact(call, dtype):
    call = CALLS[call](*qkv(dtype=dtype))
    attention, exact = operands(call), by_hand(call)
    lse = statistics_and_lse(attention, None, ())[1]
    rows, columns = (
        attention_rows(attention, lse, [23, 0, 5]),
        attention_columns(attention, lse, [7]),
    )
    assert rows.dtype == torch.float32
    assert (rows - exact.p[:, :, [23, 0, 5]]).abs().max() < 2e-6
    assert (rows.sum(-1) - 1).abs().max() < 1e-5
    assert (columns - exact.p[..., [7]]).abs().max() < 2e-6


def test_blind_query_is_nan():
    mask = torch.ones(24, 24, dtype=torch.bool)
    mask[4] = False
    attention = operands(AttentionCall(*qkv(), mask))
    lse = statistics_and_lse(attention, None, ())[1]
    rows = attention_rows(attention, lse, [4, 5])
    assert rows[:, :, 0].isnan().all() and rows[:, :, 1].isfinite().all()


@pytest.mark.parametrize("token", [-1, 24])
def test_no_such_token(token):
    attention = operands(AttentionCall(*qkv()))
    lse = statistics_and_lse(attention, None, ())[1]
    with pytest.raises(BadRequest, match=f"query: there is no token {token}; expected 0 to 23"):
        attention_rows(attention, lse, [0, token])
    with pytest.raises(BadRequest, match=f"key: there is no token {token}; expected 0 to 23"):
        attention_columns(attention, lse, [token])
