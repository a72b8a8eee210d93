import warnings

import pytest
import torch

from ditscope.attention import lse as lse_module
from ditscope.attention.lse import attention_lse, has_fused_lse
from ditscope.attention.seam import AttentionCall
from tests.attention.reference import by_hand, qkv

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_tried(monkeypatch):
    monkeypatch.setattr(lse_module, "_trusted", {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("queries", "keys", "width"), [(24, 24, 16), (37, 5, 72), (1, 1, 8)])
def test_output_and_lse(dtype, queries, keys, width):
    """Sum_j exp(s_ij - l_i) = 1, whatever the base and the layout of the operator."""
    q, k, v = qkv(queries=queries, keys=keys, width=width, dtype=dtype)
    bias = torch.randn(2, 2, keys, generator=torch.Generator().manual_seed(5))
    output, lse = attention_lse(q, k, v, bias, 0.3)
    exact = by_hand(AttentionCall(q, k, v, bias[:, :, None].double(), scale=0.3))
    assert lse.shape == (2, 2, queries) and lse.dtype == torch.float32
    assert (lse - exact.lse).abs().max() < 1e-4
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    assert output.dtype == dtype
    assert (output - exact.p @ v.double()).abs().max() < tolerance


def test_bias_with_gaps_in_memory():
    """The log-sum-exp itself has them: it comes as (B, N, H)."""
    q, k, v = qkv()
    bias = torch.randn(2, 24, 2).transpose(1, 2)
    found, same = attention_lse(q, k, v, bias, 1.0), attention_lse(q, k, v, bias.contiguous(), 1.0)
    assert torch.equal(found[1], same[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_operators_here_keep_their_word(dtype):
    state = torch.random.get_rng_state()
    assert has_fused_lse(CPU, dtype)
    assert torch.equal(state, torch.random.get_rng_state())


LIES = {
    "base 2": lambda output, lse: (output, lse / 0.6931),
    "padded": lambda output, lse: (output, torch.nn.functional.pad(lse, (0, 27))),
    "other axes": lambda output, lse: (output, lse.mT),
    "output": lambda output, lse: (output * 1.02, lse),
    "nothing": lambda output, lse: (output, lse * torch.nan),
}


@pytest.mark.parametrize("lie", LIES)
def test_operator_that_lies_is_not_used(monkeypatch, lie):
    honest = lse_module._KERNELS["cpu"]
    monkeypatch.setitem(lse_module._KERNELS, "cpu", lambda *args: LIES[lie](*honest(*args)))
    with pytest.warns(RuntimeWarning, match="not used for statistics"):
        assert not has_fused_lse(CPU, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not has_fused_lse(CPU, torch.float32)  # tried once, said once


def test_operator_that_is_gone_is_not_used(monkeypatch):
    def gone(*_):
        raise NotImplementedError("no such operator")

    monkeypatch.setitem(lse_module._KERNELS, "cpu", gone)
    with pytest.warns(RuntimeWarning, match="no such operator"):
        assert not has_fused_lse(CPU, torch.float32)


def test_unknown_device_has_none():
    assert not has_fused_lse(torch.device("meta"), torch.float32)


def test_three_parts_keep_a_float32():
    """How a bias gets into bfloat16 keys on a GPU."""
    values = torch.randn(100, generator=torch.Generator().manual_seed(0)) * 300
    for dtype in (torch.bfloat16, torch.float16):
        parts = lse_module._three_parts(values, dtype)
        assert parts.dtype == dtype and parts.shape == (100, 3)
        assert ((parts.double().sum(-1) - values) / values).abs().max() < 1e-7
