"""Two maps compared, against both of them in float64."""

import math
from dataclasses import replace

import pytest
import torch

from ditscope.attention import tiles
from ditscope.attention.metrics.plan import plan_of
from ditscope.attention.metrics.sampling import explain
from ditscope.attention.operands import operands
from ditscope.attention.pairs import compare, other_branch, taken
from ditscope.attention.seam import AttentionCall
from ditscope.attention.watch import watch
from ditscope.errors import BadRequest
from tests.attention.reference import Plain, by_hand, qkv

NAMES = ("overlap", "bhattacharyya", "kl")
METRICS = plan_of([f"step_{name}" for name in NAMES]).steps


def exact(first, second):
    one, two = by_hand(first), by_hand(second)
    apart = one.p * (one.log_p - two.log_p)  # by logarithms: p may be zero in float64 too
    return {
        "step_overlap": torch.minimum(one.p, two.p).sum(-1).nanmean(-1),
        "step_bhattacharyya": (one.p * two.p).sqrt().sum(-1).nanmean(-1),
        "step_kl": apart.masked_fill(one.p == 0, 0.0).sum(-1).nanmean(-1),
    }


def check(first, second, rtol=1e-5):
    found = compare(operands(first), operands(second), METRICS)
    for name, wanted in exact(first, second).items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(
            found[name].double(), wanted, atol=1e-5, rtol=rtol, equal_nan=True
        )


@pytest.mark.parametrize("size", [0.0, 0.01, 1.0, 3.0])
@pytest.mark.parametrize("shape", [(24, 24, 72), (1, 1, 16), (24, 7, 16), (150, 150, 8)])
def test_likeness_equals_the_full_matrices(size, shape):
    queries, keys, width = shape
    sizes = {"queries": queries, "keys": keys, "width": width, "size": size, "heads": 3}
    check(AttentionCall(*qkv(**sizes)), AttentionCall(*qkv(seed=1, **sizes)))


def test_huge_logits():
    """Scores of some thousand, which float32 rounds by 1e-4."""
    check(AttentionCall(*qkv(size=30.0)), AttentionCall(*qkv(size=30.0, seed=1)), rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(dtype):
    check(AttentionCall(*qkv(dtype=dtype)), AttentionCall(*qkv(dtype=dtype, seed=1)))


@pytest.mark.parametrize("elements", [1, 24 * 64, 10**9])
def test_tiles_of_any_size(monkeypatch, elements):
    monkeypatch.setitem(tiles.TILE_ELEMENTS, "cpu", elements)
    check(AttentionCall(*qkv(queries=150)), AttentionCall(*qkv(queries=150, seed=1)))


def test_masks_and_causal():
    hidden = torch.rand(24, 24, generator=torch.Generator().manual_seed(1)) > 0.4
    hidden[3] = False
    first, second = qkv(), qkv(seed=1)
    added = torch.randn(2, 2, 24, 24, generator=torch.Generator().manual_seed(2))
    for options in ({"attn_mask": hidden}, {"attn_mask": added}, {"is_causal": True}):
        check(AttentionCall(*first, **options), AttentionCall(*second, **options))
    nothing = {"attn_mask": torch.zeros(24, 24, dtype=torch.bool)}
    check(AttentionCall(*first, **nothing), AttentionCall(*second, **nothing))


def test_a_key_that_the_other_map_hides():
    """It is common to nothing, and the divergence is infinite."""
    call = AttentionCall(*qkv())
    seen = torch.ones(24, 24, dtype=torch.bool)
    seen[:, 5] = False
    found = compare(operands(call), operands(replace(call, attn_mask=seen)), METRICS)
    assert (found["step_kl"] == math.inf).all()
    assert (found["step_overlap"] < 1).all()
    back = compare(operands(replace(call, attn_mask=seen)), operands(call), METRICS)
    assert back["step_kl"].isfinite().all()


def test_a_map_and_itself():
    attention = operands(AttentionCall(*qkv()))
    found = compare(attention, attention, METRICS)
    for name, value in {"step_overlap": 1, "step_bhattacharyya": 1, "step_kl": 0}.items():
        assert found[name].flatten().tolist() == pytest.approx([value] * 4, abs=1e-6)


def test_nan_stays_nan():
    q, k, v = (each.clone() for each in qkv())
    k[0, 0, 3] = torch.nan
    for value in compare(
        operands(AttentionCall(q, k, v)), operands(AttentionCall(*qkv())), METRICS
    ).values():
        assert value[0, 0].isnan() and value[1].isfinite().all()


def test_rows_are_taken_with_their_masks():
    q, k, v = qkv(rows=4)
    mask = torch.rand(4, 1, 24, 24, generator=torch.Generator().manual_seed(1)) > 0.4
    whole = operands(AttentionCall(q, k, v, mask))
    swapped = other_branch(whole)
    assert torch.equal(swapped.q, q[[2, 3, 0, 1]]) and torch.equal(swapped.mask, mask[[2, 3, 0, 1]])
    q.zero_()
    assert taken(whole, [1]).q.abs().max() == 0 and swapped.q.abs().max() > 0  # it is a copy


def test_the_plan_says_so():
    text = explain(["step_kl", "step_overlap", "branch_kl"])
    assert "with the step before:\n  reduced per query: step_kl, step_overlap\n" in text
    assert text.endswith("with the other branch:\n  reduced per query: branch_kl")


def test_a_watch_does_not_know_steps():
    with pytest.raises(BadRequest, match=r"metrics: step_kl: a forward does not say(?s:.*)record="):
        watch(Plain(), metrics=["entropy", "step_kl"])
