import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditscope.attention import stats, tiles
from ditscope.attention.kernels import cpu
from ditscope.attention.operands import operands
from ditscope.attention.seam import AttentionCall
from ditscope.attention.stats import head_statistics, statistics_and_lse
from ditscope.core.sites import Site, TokenGrid
from ditscope.core.statistics import DEFAULT_METRICS, STATISTICS
from tests.attention.reference import by_hand, qkv

NAMES = DEFAULT_METRICS
GRID = TokenGrid(height=4, width=6)


@pytest.fixture(params=["tiles", "fused", "rows"])
def path(request, monkeypatch):
    """All ways to a statistic, on shapes for which only one would be taken."""
    if request.param == "rows" and not cpu.available():
        pytest.skip("no C++ compiler here")
    take(monkeypatch, request.param)
    return request.param


def take(monkeypatch, way):
    monkeypatch.setattr(stats, "way", lambda *_: way)


def errors(call, grid, names=NAMES):
    """Largest error of each statistic, and of the log-sum-exp."""
    exact = by_hand(call)
    found, lse = statistics_and_lse(operands(call), grid, names)
    for value in found.values():
        assert value.dtype == torch.float32 and value.shape == exact.p.shape[:2]
    wanted = {
        "entropy": exact.entropy,
        "rms_distance": exact.rms_distance(grid) if grid else None,
        "received_max": exact.received_max,
    }
    differences = {name: (found[name] - wanted[name]).abs().max().item() for name in names}
    return differences | {"lse": (lse - exact.lse).nan_to_num().abs().max().item()}


def within(found, **bounds):
    assert {name: error for name, error in found.items() if not error <= bounds[name]} == {}


@pytest.mark.parametrize(
    ("grid", "width"), [((16, 16), 72), ((4, 6), 64), ((3, 20), 16), ((1, 1), 32), ((1, 7), 32)]
)
def test_float32_is_exact(path, grid, width):
    """3 x 20 has 23 grid lines and 16 channels: they do not fit into one call."""
    grid = TokenGrid(height=grid[0], width=grid[1])
    q, k, v = qkv(queries=grid.count, width=width)
    found = errors(AttentionCall(q, k, v), grid)
    within(found, entropy=1e-5, rms_distance=2e-5, received_max=1e-6, lse=1e-5)


# Bounds are about twice what was measured. Tiles are float32 whatever the model computes in.
HARD = {
    "large logits": (dict(size=3.0), dict(entropy=8e-3, rms_distance=2e-3, received_max=1e-4)),
    "huge logits": (dict(size=8.0), dict(entropy=6e-2, rms_distance=2e-3, received_max=1e-4)),
    "uniform": (dict(size=0.01), dict(entropy=1e-4, rms_distance=2e-3, received_max=1e-6)),
    "usual": (dict(size=1.0), dict(entropy=4e-4, rms_distance=1e-3, received_max=1e-5)),
}


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("width", [32, 64, 72])
def test_bfloat16(path, case, width):
    how, bounds = HARD[case]
    q, k, v = qkv(queries=96, width=width, dtype=torch.bfloat16, **how)
    if path != "fused":
        bounds = dict(entropy=1e-4, rms_distance=2e-5, received_max=1e-5)
    found = errors(AttentionCall(q, k, v), TokenGrid(height=8, width=12))
    within(found, **bounds, lse=3e-4)


@pytest.mark.parametrize(
    ("offset_k", "offset_q", "bound"), [(16, 0, 4e-4), (40, 0, 4e-4), (40, 4, 1e-3), (0, 16, 4e-3)]
)
def test_common_offset_costs_no_precision(path, offset_k, offset_q, bound):
    """A few channels in which all keys, or all queries, are far from zero, as in trained models."""
    q, k, v = (each.clone() for each in qkv(queries=96, width=72))
    q[..., :3] += offset_q
    k[..., :3] += offset_k
    call = AttentionCall(q.bfloat16(), k.bfloat16(), v.bfloat16())
    within(
        errors(call, TokenGrid(height=8, width=12)),
        entropy=bound,
        rms_distance=4e-3,
        received_max=1e-4,
        lse=3e-4,
    )


def test_offset_would_cost_precision(monkeypatch):
    """The test above is one: without the centre of the keys the error is many times larger."""
    q, k, v = qkv(queries=96, width=72)
    k = k + 40 * torch.eye(72)[0]
    call = AttentionCall(q.bfloat16(), k.bfloat16(), v.bfloat16())
    take(monkeypatch, "fused")
    centred = errors(call, None, ("entropy",))["entropy"]
    monkeypatch.setattr(stats, "_common_offset", lambda k: k.new_zeros(1, 1, 1, k.shape[-1]))
    assert errors(call, None, ("entropy",))["entropy"] > 3 * centred


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_many_tokens(dtype):
    """As it is chosen: fused in low precision, several tiles per head in float32."""
    grid = TokenGrid(height=32, width=33)
    q, k, v = qkv(rows=1, queries=grid.count, width=16, dtype=dtype)
    assert stats._fused_pays(operands(AttentionCall(q, k, v))) == (dtype != torch.float32)
    fine = dtype == torch.float32
    bounds = dict(entropy=1e-5 if fine else 4e-4, rms_distance=1e-4 if fine else 2e-3)
    within(errors(AttentionCall(q, k, v), grid), **bounds, received_max=1e-5, lse=1e-4)


def test_identity_and_uniform_attention(path):
    """Reference values: log M, 1/M, sqrt(((h^2 - 1) + (w^2 - 1)) / 6); and zero."""
    one = torch.eye(64).expand(1, 2, 64, 64)
    grid = TokenGrid(height=8, width=8)
    uniform = head_statistics(AttentionCall(0 * one, one, one), grid)
    assert uniform["entropy"].tolist()[0] == pytest.approx([math.log(64)] * 2, abs=1e-5)
    assert uniform["rms_distance"].tolist()[0] == pytest.approx([math.sqrt(21)] * 2, abs=1e-5)
    assert uniform["received_max"].tolist()[0] == pytest.approx([1 / 64] * 2, abs=1e-7)
    itself = head_statistics(AttentionCall(1000 * one, one, one), grid)
    assert itself["entropy"].abs().max() < 1e-4
    assert itself["rms_distance"].abs().max() == 0
    assert itself["received_max"].tolist()[0] == pytest.approx([1 / 64] * 2, abs=1e-6)
    sink = 1000 * one[:, :, :1].expand_as(one)
    assert head_statistics(AttentionCall(sink, one, one), grid)["received_max"].min() > 0.9999


@pytest.mark.parametrize("grid", [None, TokenGrid(height=3, width=4, start=5), GRID])
def test_image_tokens_among_others(path, grid):
    """Distance is over image queries and image keys alone, renormalised; the rest is over all."""
    q, k, v = qkv(queries=29, width=24)
    names = NAMES if grid else ("entropy", "received_max")
    found = errors(AttentionCall(q, k, v), grid, names)
    within(found, entropy=1e-5, rms_distance=2e-5, received_max=1e-6, lse=1e-5)
    if grid is None:
        assert head_statistics(AttentionCall(q, k, v), None)["rms_distance"].isnan().all()


@pytest.mark.parametrize(
    "names", [(), ("entropy",), ("received_max",), ("rms_distance", "entropy")]
)
def test_only_what_is_asked_for(path, names):
    q, k, v = qkv()
    call = AttentionCall(q, k, v)
    some, everything = head_statistics(call, GRID, names), head_statistics(call, GRID)
    assert list(some) == list(names)
    assert all(torch.equal(some[name], everything[name]) for name in names)


def test_cross_attention(path):
    q, k, v = qkv(queries=24, keys=7)
    found = errors(AttentionCall(q, k, v), None, ("entropy", "received_max"))
    within(found, entropy=1e-5, received_max=1e-6, lse=1e-5)


def masks():
    generator = torch.Generator().manual_seed(1)
    some = torch.rand(24, 24, generator=generator) > 0.4
    return {
        "bool": some,
        "bool per row": torch.stack([some, some.flip(0)])[:, None],
        "keys": some[0][None, None, None].expand(2, 1, 1, 24),
        "additive": torch.randn(2, 1, 24, 24, generator=generator),
        "additive keys": torch.randn(2, 2, 1, 24, generator=generator),
        "half": torch.randn(24, 24, generator=generator).bfloat16(),
        "minus infinity": torch.zeros(24, 24).masked_fill(~some, -torch.inf),
        "minus ten thousand": (~some[:1]).float()[None, None] * -10000.0,
    }


@pytest.mark.parametrize("mask", masks())
def test_masks(mask):
    q, k, v = qkv()
    found = errors(AttentionCall(q, k, v, masks()[mask]), GRID)
    within(found, entropy=1e-5, rms_distance=2e-5, received_max=1e-6, lse=1e-3)


@pytest.mark.parametrize("keys", [24, 31, 9])
def test_causal(keys):
    q, k, v = qkv(keys=keys)
    call = AttentionCall(q, k, v, is_causal=True)
    grid = GRID if keys == 24 else None
    names = NAMES if grid else ("entropy", "received_max")
    found = errors(call, grid, names)
    within(found, entropy=1e-5, rms_distance=2e-5, received_max=1e-6, lse=1e-5)


def test_blind_queries_are_left_out():
    q, k, v = qkv()
    mask = torch.ones(24, 24, dtype=torch.bool)
    mask[[0, 7]] = False
    call = AttentionCall(q, k, v, mask)
    found = errors(call, GRID)
    within(found, entropy=1e-5, rms_distance=2e-5, received_max=1e-6, lse=1e-5)
    lse = statistics_and_lse(operands(call), GRID, NAMES)[1]
    assert (lse[:, :, [0, 7]] == -torch.inf).all() and lse[:, :, 1:7].isfinite().all()
    blind = head_statistics(replace(call, attn_mask=torch.zeros_like(mask)), GRID)
    assert all(value.isnan().all() for value in blind.values())


def test_image_keys_hidden_from_an_image_query():
    """It attends, but to text alone: it counts for the entropy and has no distance."""
    q, k, v = qkv(queries=26)
    mask = torch.ones(26, 26, dtype=torch.bool)
    mask[3, :24] = False
    found = errors(AttentionCall(q, k, v, mask), GRID)
    within(found, entropy=1e-5, rms_distance=2e-5, received_max=1e-6, lse=1e-5)


def test_grouped_queries(path):
    q, _, _ = qkv(heads=4)
    _, k, v = qkv(heads=2)
    found = errors(AttentionCall(q, k, v, enable_gqa=True), GRID)
    within(found, entropy=1e-5, rms_distance=2e-5, received_max=1e-6, lse=1e-5)


@pytest.mark.parametrize(("rows", "heads"), [(1, 2), (2, 1)])
def test_broadcast_keys(path, rows, heads):
    q, _, _ = qkv()
    _, k, v = qkv(rows=rows, heads=heads)
    found = errors(AttentionCall(q, k, v), GRID)
    within(found, entropy=1e-5, rms_distance=2e-5, received_max=1e-6, lse=1e-5)


def test_operands_in_an_unusual_layout(monkeypatch):
    """The fused operator of the CPU needs neighbouring channels to be neighbours in memory."""
    monkeypatch.setattr(stats, "CPU_FUSED_KEYS", 1)
    q, k, v = qkv(dtype=torch.bfloat16)
    strange = AttentionCall(q, k.mT.contiguous().mT, v)
    assert stats._fused_pays(operands(AttentionCall(q, k, v)))
    assert not stats._fused_pays(operands(strange))
    within(errors(strange, GRID), entropy=1e-5, rms_distance=2e-5, received_max=1e-6, lse=1e-5)


def test_scale_and_dropout(path):
    """Statistics describe the map before dropout."""
    q, k, v = qkv()
    found = errors(AttentionCall(q, k, v, scale=0.7, dropout_p=0.5), GRID)
    within(found, entropy=1e-5, rms_distance=2e-5, received_max=1e-6, lse=2e-5)


def test_other_numbers_of_axes(path):
    """Of five axes the first two are rows, of three the first; two are one row and one head."""
    q, k, v = qkv(rows=6, heads=2)
    four = head_statistics(AttentionCall(q, k, v), GRID)
    five = head_statistics(AttentionCall(*(x.unflatten(0, (2, 3)) for x in (q, k, v))), GRID)
    three = head_statistics(AttentionCall(q[:, 0], k[:, 0], v[:, 0]), GRID)
    two = head_statistics(AttentionCall(q[0, 0], k[0, 0], v[0, 0]), GRID)
    for name, value in four.items():
        assert torch.equal(five[name], value)
        torch.testing.assert_close(three[name], value[:, :1])
        torch.testing.assert_close(two[name], value[:1, :1])


@pytest.mark.parametrize("dims", [3, 5])
def test_masks_of_other_numbers_of_axes(dims):
    q, k, v = qkv(rows=6, heads=1)
    mask = torch.rand(6, 1, 24, 24, generator=torch.Generator().manual_seed(2)) > 0.5
    mask |= torch.eye(24, dtype=torch.bool)
    four = head_statistics(AttentionCall(q, k, v, mask), GRID)
    change = (lambda x: x[:, 0]) if dims == 3 else (lambda x: x.unflatten(0, (2, 3)))
    other = head_statistics(AttentionCall(*(change(x) for x in (q, k, v, mask))), GRID)
    assert all(torch.equal(other[name], four[name]) for name in four)


def test_nan_stays_nan(path):
    q, k, v = (each.clone() for each in qkv())
    k[0, 0, 3] = torch.nan
    for name, value in head_statistics(AttentionCall(q, k, v), GRID).items():
        assert value[0, 0].isnan() and value[1].isfinite().all(), name


@pytest.mark.parametrize("elements", [1, 24 * 64, 24 * 130, 10**9])
def test_tiles_of_any_size_agree(monkeypatch, elements):
    q, k, v = qkv(rows=3, queries=150, keys=150)
    mask = torch.rand(150, 150, generator=torch.Generator().manual_seed(3)) > 0.5
    grid = TokenGrid(height=7, width=19, start=9)
    monkeypatch.setitem(tiles.TILE_ELEMENTS, "cpu", elements)
    for call in (AttentionCall(q, k, v), AttentionCall(q, k, v, mask)):
        found = errors(call, grid)
        within(found, entropy=1e-5, rms_distance=5e-5, received_max=1e-6, lse=1e-5)


@given(
    st.integers(1, 4), st.integers(1, 5), st.floats(0.01, 20), st.integers(0, 9), st.integers(0, 99)
)
def test_every_statistic_is_within_its_bounds(height, width, size, others, seed):
    grid = TokenGrid(height=height, width=width)
    tokens = grid.count + others
    q, k, v = qkv(queries=tokens, width=8, size=size, seed=seed)
    site = Site(index=0, name="attn", heads=2, queries=tokens, keys=tokens, head_width=8, grid=grid)
    for name, value in head_statistics(AttentionCall(q, k, v), grid).items():
        maximum = STATISTICS[name].maximum(site)
        assert (value >= -1e-4).all() and (value <= maximum + 1e-4).all()
