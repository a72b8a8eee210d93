"""Every metric of any attention call equals the full matrix in float64, and the limits of that.

The bound is 1e-5, in units of a metric's size, while scores stay below 50. float32 rounds a larger
score by more than 2e-6, and nobody can tell the attention better than its scores.
"""

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ditscope.attention.metrics.plan import plan_of
from ditscope.attention.operands import operands
from ditscope.attention.pairs import compare
from ditscope.attention.seam import AttentionCall
from ditscope.attention.stats import measure
from ditscope.core.sites import TokenGrid, TokenSegment
from ditscope.core.statistics import SINK
from tests.attention.reference import by_hand, qkv
from tests.attention.test_metrics import NAMES, wrong
from tests.attention.test_pairs import METRICS, exact

EXACT_SCORES = 50.0
HIDDEN = -torch.inf


def some(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def masks(draw, queries, keys, seed):
    """As an argument of the call: none, bool, additive, blind queries, per key, causal."""
    kind = draw(st.sampled_from(["none", "bool", "blind", "float", "infinite", "key", "causal"]))
    seen = some((queries, keys), seed) > draw(st.sampled_from([-1.0, 0.5]))
    if kind != "blind":
        seen[:, 0] = True  # every query sees a key
    table = {
        "none": {},
        "bool": {"attn_mask": seen},
        "blind": {"attn_mask": seen},
        "float": {"attn_mask": 3 * some((queries, keys), seed)},
        "infinite": {"attn_mask": some((queries, keys), seed).masked_fill(~seen, HIDDEN)},
        "key": {"attn_mask": seen[:1].expand(1, 1, 1, keys)},
        "causal": {"is_causal": True},
    }
    return table[kind]


@st.composite
def calls(draw):
    """An attention call, the grid of its image tokens and what is around them."""
    seed = draw(st.integers(0, 2**16))
    groups, heads = draw(st.sampled_from([(1, 1), (1, 2), (2, 4), (3, 3)]))
    width = draw(st.sampled_from([1, 8, 72]))
    sides = draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5)))
    before = draw(st.integers(0, 3))
    own = draw(st.booleans())
    grid = TokenGrid(frames=sides[0], height=sides[1], width=sides[2], start=before)
    queries = before + grid.count
    keys = queries if own else draw(st.integers(1, 40))
    q, _, _ = qkv(queries=queries, heads=heads, width=width, seed=seed)
    _, k, v = qkv(queries=1, keys=keys, heads=groups, width=width, seed=seed + 1)
    size = draw(st.sampled_from([0.0, 0.01, 1.0, 6.0, 20.0]))
    k = k * size
    if draw(st.booleans()):
        k = torch.cat([4 * k[..., :1, :], k[..., 1:, :]], dim=-2)  # one key above the others
    text = (TokenSegment(kind="text", start=0, count=before),) if before else ()
    options = draw(masks(queries, keys, seed)) | draw(st.sampled_from([{}, {"scale": 0.3}]))
    call = AttentionCall(q, k, v, enable_gqa=groups < heads, **options)
    return call, grid if own else None, text if own else ()


def largest_score(call):
    finite = by_hand(call).lse
    k = call.k.repeat_interleave(call.q.shape[1] // call.k.shape[1], 1)
    plain = (call.q.double() @ k.double().mT * call.softmax_scale).abs().max().item()
    return max(plain, finite[finite.isfinite()].abs().max().item() if finite.numel() else 0.0)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(calls(), st.booleans())
def test_any_call(case, tokens):
    call, grid, segments = case
    score = largest_score(call)
    share = by_hand(call).p.nanmean(-2)
    assume(((share - SINK / share.shape[-1]).abs() > 1e-4).all())  # is it a sink or not: a tie
    # The shape of a nearly empty cloud is the ratio of two roundings.
    names = [name for name in NAMES if name != "anisotropy"]
    bound = 1e-5 * max(1.0, score / EXACT_SCORES)
    assert wrong(call, grid, segments, names=names, tokens=tokens, bound=bound) == {}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(calls(), st.sampled_from([0.3, 1.0, 1.5]))
def test_any_two_calls(case, factor):
    """Two maps compared: the second looks from changed queries."""
    first = case[0]
    second = AttentionCall(
        factor * first.q.flip(-2), first.k, first.v, first.attn_mask, is_causal=first.is_causal,
        scale=first.scale, enable_gqa=first.enable_gqa,
    )  # fmt: skip
    score = max(largest_score(first), largest_score(second))
    found = compare(operands(first), operands(second), METRICS)
    for name, wanted in exact(first, second).items():
        size = 1e-5 * max(1.0, score / EXACT_SCORES)
        torch.testing.assert_close(
            found[name].double(), wanted, atol=size, rtol=size, equal_nan=True
        )


@pytest.mark.parametrize("number", [3, 5, 37])
def test_numbers_of_keys_and_radii_that_nobody_listed(number):
    call = AttentionCall(*qkv(queries=40, heads=3))
    grid = TokenGrid(height=4, width=10)
    names = (f"top_mass_{number}", f"mass_within_{number}")
    found = measure(operands(call), plan_of(names), grid).heads
    p = by_hand(call).p
    token = torch.arange(40)
    apart = torch.hypot(
        (token[:, None] // 10 - token // 10).double(), (token[:, None] % 10 - token % 10).double()
    )
    top = p.sort(-1, descending=True).values[..., :number].sum(-1).mean(-1)
    near = (p * (apart <= number)).sum(-1).mean(-1)
    torch.testing.assert_close(found[names[0]].double(), top, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found[names[1]].double(), near, atol=1e-6, rtol=1e-6)


OFFSETS = {0: 9e-5, 4: 5e-4, 16: 1e-3, 40: 4e-3}
"""By how far three channels of all keys are from zero: nats of error of a head's mean entropy."""


@pytest.mark.parametrize("offset", OFFSETS)
def test_half_precision_keeps_its_promise(offset):
    """1024 tokens in bfloat16, where fused calls are taken, with keys far from zero."""
    q, k, v = (each.clone() for each in qkv(rows=1, queries=1024, width=72))
    k[..., :3] += offset
    call = AttentionCall(q.bfloat16(), k.bfloat16(), v.bfloat16())
    grid = TokenGrid(height=32, width=32)
    found = measure(operands(call), plan_of(("entropy", "rms_distance", "received_max")), grid)
    wanted = by_hand(call)
    assert (found.heads["entropy"] - wanted.entropy).abs().max() < OFFSETS[offset]
    assert (found.heads["rms_distance"] / wanted.rms_distance(grid) - 1).abs().max() < 1e-3
    assert (found.heads["received_max"] / wanted.received_max - 1).abs().max() < 1e-3
    assert (found.lse - wanted.lse).abs().max() < 1e-4 * max(1.0, math.sqrt(offset))
