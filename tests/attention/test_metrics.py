import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditscope.attention import stats, tiles
from ditscope.attention.kernels import cpu
from ditscope.attention.metrics.plan import plan_of
from ditscope.attention.metrics.registry import BRANCHES, OUTPUT, STEPS, find
from ditscope.attention.metrics.sampling import explain
from ditscope.attention.operands import operands
from ditscope.attention.seam import AttentionCall
from ditscope.attention.stats import measure
from ditscope.core.sites import Site, TokenGrid, TokenSegment
from ditscope.core.statistics import STATISTICS
from tests.attention.exact import exact_metrics
from tests.attention.reference import qkv

NAMES = tuple(name for name in STATISTICS if find(name).needs not in (STEPS, BRANCHES, OUTPUT))
GRID = TokenGrid(height=4, width=6)
JOINT = TokenGrid(height=4, width=6, start=5)
SEGMENTS = (
    TokenSegment(kind="class", start=0, count=1),
    TokenSegment(kind="register", start=1, count=4),
    TokenSegment(kind="text", start=29, count=3),
)
UNITS = {"patches": 10.0, "keys": 30.0}  # errors are relative to the size of such numbers


def wrong(call, grid=None, segments=(), *, names=NAMES, tokens=False, bound=1e-5):
    """Metrics that are not within `bound` of the reference, or missing where it is not."""
    heads, each = exact_metrics(call, grid, segments)
    found = measure(operands(call), plan_of(names, "tokens" if tokens else "heads"), grid, segments)
    pairs = [(name, found.heads[name], heads[name]) for name in names]
    if tokens:
        with_tokens = [name for name in names if STATISTICS[name].axis]
        assert set(found.tokens) == set(with_tokens)
        pairs += [(f"{name} of tokens", found.tokens[name], each[name]) for name in with_tokens]
    bad = {}
    for name, value, wanted in pairs:
        assert value.dtype == torch.float32 and value.shape == wanted.shape, name
        size = UNITS.get(STATISTICS[name.split()[0]].unit, 1.0)
        error = (value - wanted).abs().nan_to_num(0.0).max().item() / size
        if not error <= bound or not torch.equal(value.isnan(), wanted.isnan()):
            bad[name] = error
    return bad


@pytest.mark.parametrize("width", [16, 72])
@pytest.mark.parametrize(
    "grid",
    [
        GRID,
        TokenGrid(height=2, width=8),
        TokenGrid(height=1, width=7),
        TokenGrid(height=16, width=16),
        TokenGrid(frames=3, height=2, width=5),
    ],
)
@pytest.mark.parametrize("tokens", [False, True])
def test_every_metric_equals_the_full_matrix(grid, width, tokens):
    call = AttentionCall(*qkv(queries=grid.count, width=width, heads=3))
    assert wrong(call, grid, tokens=tokens) == {}


@pytest.mark.parametrize("size", [0.0, 0.01, 3.0])
def test_even_and_peaked_attention(size):
    call = AttentionCall(*qkv(size=size, heads=3))
    assert wrong(call, GRID, tokens=True) == {}


def test_huge_logits():
    """Scores of some thousand: float32 rounds them by 1e-4, and no better can be had from them."""
    names = tuple(name for name in NAMES if name != "anisotropy")  # of covariances near zero
    call = AttentionCall(*qkv(size=30.0, heads=3))
    assert wrong(call, GRID, names=names, bound=2e-4) == {}


def masks():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.rand(24, 24, generator=generator) > 0.4
    hidden |= torch.eye(24, dtype=torch.bool)
    blind = hidden.clone()
    blind[[0, 7]] = False
    return {
        "bool": {"attn_mask": hidden},
        "blind queries": {"attn_mask": blind},
        "all blind": {"attn_mask": torch.zeros(24, 24, dtype=torch.bool)},
        "additive": {"attn_mask": torch.randn(2, 3, 24, 24, generator=generator)},
        "minus infinity": {"attn_mask": torch.zeros(24, 24).masked_fill(~hidden, -torch.inf)},
        "causal": {"is_causal": True},
    }


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("tokens", [False, True])
def test_masks(mask, tokens):
    names = NAMES if mask != "causal" else tuple(name for name in NAMES if name != "anisotropy")
    call = AttentionCall(*qkv(heads=3), **masks()[mask])
    assert wrong(call, GRID, names=names, tokens=tokens) == {}


@pytest.mark.parametrize("tokens", [False, True])
def test_segments(tokens):
    call = AttentionCall(*qkv(queries=32, heads=3))
    assert wrong(call, JOINT, SEGMENTS, tokens=tokens) == {}
    found = measure(operands(call), plan_of(NAMES), JOINT, SEGMENTS).heads
    total = sum(found[f"mass_{kind}"] for kind in ("image", "text", "class", "register"))
    torch.testing.assert_close(total, torch.ones(2, 3))


@pytest.mark.parametrize("keys", [1, 7, 40])
def test_cross_attention(keys):
    call = AttentionCall(*qkv(queries=24, keys=keys, heads=3))
    text = (TokenSegment(kind="text", start=0, count=keys),)
    assert wrong(call, None, text) == {}


def test_one_token_and_one_head():
    call = AttentionCall(*qkv(queries=1, heads=1))
    assert wrong(call, TokenGrid(height=1, width=1), tokens=True) == {}


def test_grouped_queries():
    q, _, _ = qkv(heads=4)
    _, k, v = qkv(heads=2)
    assert wrong(AttentionCall(q, k, v, enable_gqa=True), GRID) == {}


@pytest.mark.parametrize("elements", [1, 24 * 64, 24 * 130, 10**9])
def test_tiles_of_any_size_agree(monkeypatch, elements):
    monkeypatch.setitem(tiles.TILE_ELEMENTS, "cpu", elements)
    grid = TokenGrid(height=7, width=19, start=9)
    q, k, v = qkv(rows=3, queries=150, heads=2)
    mask = torch.rand(150, 150, generator=torch.Generator().manual_seed(3)) > 0.5
    for tokens in (False, True):
        assert wrong(AttentionCall(q, k, v), grid, tokens=tokens) == {}
        assert wrong(AttentionCall(q, k, v, mask), grid, tokens=tokens) == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_tiles_is_as_good(dtype):
    """Their numbers are widened, so that the map of the very q and k is found."""
    call = AttentionCall(*qkv(dtype=dtype, width=72, heads=3))
    assert wrong(call, GRID, tokens=True) == {}


FUSED = tuple(name for name in NAMES if plan_of([name]).fusable)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-3)])
def test_fused_calls_serve_what_follows_from_theirs(monkeypatch, dtype, bound):
    """In bfloat16 within the bounds of a kernel that rounds its output to 8 bits."""
    monkeypatch.setattr(stats, "way", lambda *_: "fused")
    assert {"effective_keys", "sink_mass", "mass_text", "high_frequency"} < set(FUSED)
    call = AttentionCall(*qkv(queries=32, dtype=dtype, width=64))
    assert wrong(call, JOINT, SEGMENTS, names=FUSED, bound=bound) == {}


ROWS = tuple(name for name in NAMES if plan_of([name]).one_pass)


@pytest.mark.parametrize(("way", "names"), [("tiles", NAMES), ("rows", ROWS)])
def test_a_metric_does_not_depend_on_the_others_that_are_asked_for(monkeypatch, way, names):
    """Not on one bit, as long as all are made in one way."""
    if way == "rows" and not cpu.available():
        pytest.skip("no C++ compiler here")
    monkeypatch.setattr(stats, "way", lambda *_: way)
    call = AttentionCall(*qkv(heads=3))
    everything = measure(operands(call), plan_of(names), GRID).heads
    for name in names:
        alone = measure(operands(call), plan_of([name]), GRID).heads
        assert list(alone) == [name]
        assert torch.equal(alone[name].nan_to_num(-1), everything[name].nan_to_num(-1)), name


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_nan(name):
    q, k, v = (each.clone() for each in qkv(queries=32, heads=1))
    k[0, 0, 7] = torch.nan
    found = measure(operands(AttentionCall(q, k, v)), plan_of([name]), JOINT, SEGMENTS).heads[name]
    assert found[0, 0].isnan()
    assert found[1, 0].isfinite() or name == "head_similarity"


def test_reference_values():
    """Even attention on 16 x 16: MAD 8.326, log 256, 256 keys; the identity: all on itself."""
    grid = TokenGrid(height=16, width=16)
    one = torch.eye(256).expand(1, 2, 256, 256)
    even = measure(operands(AttentionCall(0 * one, one, one)), plan_of(NAMES), grid).heads
    wanted = {
        "mean_distance": 8.326,
        "effective_keys": 256,
        "participation": 256,
        "entropy_share": 1,
        "top_mass_16": 16 / 256,
        "largest_probability": 1 / 256,
        "anisotropy": 0,
        "head_similarity": 1,
        "sink_tokens": 0,
        "high_frequency": 0,
        "mass_image": 1,
    }
    for name, value in wanted.items():
        assert even[name].tolist()[0] == pytest.approx([value] * 2, rel=1e-4, abs=1e-5), name
    itself = measure(operands(AttentionCall(1e4 * one, one, one)), plan_of(NAMES), grid).heads
    for name, value in {"mean_distance": 0, "participation": 1, "mass_within_1": 1}.items():
        assert itself[name].tolist()[0] == pytest.approx([value] * 2, abs=1e-5), name
    assert itself["anisotropy"].isnan().all()


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5)),
    st.sampled_from([0.01, 1.0, 4.0, 20.0]),
    st.integers(0, 9),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_every_metric_is_within_its_bounds(shape, size, others, heads, seed):
    grid = TokenGrid(frames=shape[0], height=shape[1], width=shape[2])
    tokens = grid.count + others
    text = (TokenSegment(kind="text", start=grid.count, count=others),) if others else ()
    call = AttentionCall(*qkv(queries=tokens, heads=heads, width=8, size=size, seed=seed))
    site = Site(
        index=0,
        name="attn",
        heads=heads,
        queries=tokens,
        keys=tokens,
        head_width=8,
        grid=grid,
        segments=text,
    )
    for name, value in measure(operands(call), plan_of(NAMES), grid, text).heads.items():
        low, high = STATISTICS[name].minimum(site), STATISTICS[name].maximum(site)
        if math.isnan(high):
            assert value.isnan().all(), name
        else:
            slack = 1e-4 * max(1.0, high)
            inside = (value >= low - slack) & (value <= high + slack)
            assert (inside | (value.isnan() & STATISTICS[name].gaps)).all(), name


def test_the_plan_says_what_is_shared():
    text = explain(["effective_keys", "mean_distance", "mass_text", "sink_mass"])
    assert text == (
        "without a mask, where there is a kernel, one pass over scores that are not kept,\n"
        "for all of this; else:\n"
        "one pass over tiles of scores, softmax and log-sum-exp of each:\n"
        "  reduced per query: entropy\n"
        "  reduced per image query: mean_distance\n"
        "  summed over queries: sink_mass\n"
        "  expected from the sums over queries: mass_text\n"
        "effective_keys follows from entropy"
    )
