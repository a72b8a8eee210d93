"""A stratified sample of queries: drawn as promised, without bias, and with an honest error."""

import itertools

import pytest
import torch

from ditscope.attention.metrics import registry
from ditscope.attention.metrics.plan import plan_of
from ditscope.attention.metrics.registry import metric
from ditscope.attention.metrics.scope import Scope
from ditscope.attention.operands import operands
from ditscope.attention.sampled import compare_sampled, measure_sampled
from ditscope.attention.seam import AttentionCall
from ditscope.attention.strata import Drawn, draw
from ditscope.core.sites import Site, TokenGrid, TokenSegment
from tests.attention.exact import exact_metrics
from tests.attention.reference import qkv

GRID = TokenGrid(height=5, width=8)
JOINT = TokenGrid(height=4, width=6, start=7)
T95 = {4: 2.776, 8: 2.306, 16: 2.120}
"""Of Student's t, by degrees of freedom: as many as strata."""


def site_of(call, grid=None, segments=()):
    _, heads, queries, width = call.q.shape
    return Site(
        index=3,
        name="a",
        heads=heads,
        queries=queries,
        keys=call.k.shape[2],
        head_width=width,
        grid=grid,
        segments=segments,
    )


def estimates(call, names, draws, grid=None, segments=()):
    """By name (draws, B, H) float64."""
    scope = Scope(*call.q.shape[1:3], call.k.shape[2], call.q.device, grid, segments)
    found = [measure_sampled(operands(call), plan_of(names), scope, each) for each in draws]
    return {name: torch.stack([each[name] for each in found]).double() for name in found[0]}


def many_draws(call, grid, segments, queries, count):
    site = site_of(call, grid, segments)
    return [draw(site, queries, seed=seed, step=0) for seed in range(count)]


@pytest.mark.parametrize(
    ("tokens", "grid", "queries"),
    [
        (66, TokenGrid(height=6, width=11), 16),
        (50, None, 14),
        (31, JOINT, 8),
        (25, TokenGrid(height=4, width=6), 8),
    ],
)
def test_every_stratum_has_its_two(tokens, grid, queries):
    call = AttentionCall(*qkv(queries=tokens))
    drawn = draw(site_of(call, grid), queries, seed=1, step=2)
    assert len(drawn.queries) == 2 * len(drawn.sizes) <= queries
    assert drawn.sizes.sum() == tokens
    pairs = drawn.queries.view(-1, 2)
    assert ((pairs[:, 0] != pairs[:, 1]) | (drawn.sizes == 1)).all()
    if grid:
        image = (pairs >= grid.start) & (pairs < grid.start + grid.count)
        assert image[: drawn.image].all() and not image[drawn.image :].any()
        assert drawn.sizes[: drawn.image].sum() == grid.count
    for part in (drawn.sizes[: drawn.image], drawn.sizes[drawn.image :]):
        assert not len(part) or part.max() - part.min() <= 1


def test_a_draw_follows_from_seed_step_and_layer_alone():
    call = AttentionCall(*qkv(queries=40))
    site, state = site_of(call, GRID), torch.get_rng_state()
    first = draw(site, 8, seed=1, step=2)
    assert torch.equal(first.queries, draw(site, 8, seed=1, step=2).queries)
    for other in (
        draw(site, 8, seed=2, step=2),
        draw(site, 8, seed=1, step=3),
        draw(site.model_copy(update={"index": 4}), 8, seed=1, step=2),
    ):
        assert not torch.equal(first.queries, other.queries)
    assert first.queries.tolist() == [10, 9, 25, 12, 15, 28, 39, 30]  # on any machine
    assert torch.equal(state, torch.get_rng_state())
    assert draw(site, 40, seed=1, step=2) is None  # all of them


def test_every_query_is_as_likely_in_its_stratum():
    call = AttentionCall(*qkv(queries=10))
    times = torch.zeros(10)
    for each in many_draws(call, None, (), 4, 2000):
        times[each.queries] += 1
    assert (times / 2000 - 2 / 5).abs().max() < 0.05


def test_over_all_draws_the_mean_and_the_variance_are_exact():
    """No luck involved: every pair of every stratum, once."""
    call = AttentionCall(*qkv(queries=9, size=2.0))
    strata = ([0, 1, 4, 8], [2, 3, 5], [6, 7])
    draws = [
        Drawn(torch.tensor(pairs).flatten(), torch.tensor([4.0, 3.0, 2.0]), 0)
        for pairs in itertools.product(*(itertools.combinations(each, 2) for each in strata))
    ]
    names = ("entropy", "participation", "top_mass_4", "head_similarity")
    found = estimates(call, names, draws)
    wanted = exact_metrics(call)[0]
    for name in names:
        torch.testing.assert_close(found[name].mean(0), wanted[name], rtol=1e-5, atol=1e-5)
        variance = found[name].var(0, correction=0)
        torch.testing.assert_close(
            found[f"{name}_error"].square().mean(0), variance, rtol=1e-3, atol=1e-9
        )


def structured(tokens):
    """Heads that grow sharper along the tokens, so that queries differ by where they are."""
    q, k, v = qkv(queries=tokens)
    return AttentionCall(q * torch.linspace(0.2, 4, tokens)[:, None], k, v)


def masked():
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(2, 1, 40, 40, generator=generator) > 0.4
    mask[0, 0, ::5] = False  # queries that see nothing
    return AttentionCall(*qkv(queries=40), attn_mask=mask)


CASES = {
    "random": (AttentionCall(*qkv(queries=40)), GRID, ()),
    "structured": (structured(66), TokenGrid(height=6, width=11), ()),
    "joint": (structured(31), JOINT, (TokenSegment(kind="text", start=0, count=7),)),
    "masked": (masked(), GRID, ()),
    "key mask": (AttentionCall(*qkv(queries=40), attn_mask=torch.arange(40) < 33), GRID, ()),
    "causal": (AttentionCall(*qkv(queries=40), is_causal=True), GRID, ()),
    "cross": (AttentionCall(*qkv(queries=37, keys=9)), None, ()),
    "video": (AttentionCall(*qkv(queries=36)), TokenGrid(height=3, width=4, frames=3), ()),
}
DRAWS = 300


@pytest.mark.parametrize("case", CASES)
def test_no_bias_and_an_honest_error(case):
    """Means within their Monte-Carlo error; 95 % intervals of Student's t cover about as often."""
    call, grid, segments = CASES[case]
    names = ["entropy", "entropy_share", "participation", "largest_probability", "head_similarity"]
    names += ["mean_distance", "centroid_offset", "mass_within_2"] if grid else []
    names += ["mass_text", "mass_image"] if segments else []
    found = estimates(call, names, many_draws(call, grid, segments, 16, DRAWS), grid, segments)
    wanted = measured_exactly(call, names, grid, segments)
    covered = []
    for name in names:
        value, error = found[name], found[f"{name}_error"]
        off = (value.mean(0) - wanted[name]).abs()
        assert (off <= 4.5 * value.std(0) / DRAWS**0.5 + 1e-6).all(), name
        mean_square = error.square().mean(0)
        torch.testing.assert_close(mean_square, value.var(0), rtol=0.45, atol=1e-9)
        inside = (value - wanted[name]).abs() <= T95[8] * error + 1e-6
        covered.append(inside.double().mean().item())
    assert 0.90 <= sum(covered) / len(covered) <= 0.98, dict(zip(names, covered, strict=True))


def measured_exactly(call, names, grid, segments):
    if grid is not None and grid.frames > 1:  # the reference knows pictures
        from ditscope.attention.stats import measure

        return measure(operands(call), plan_of(names), grid, segments).heads
    return exact_metrics(call, grid, segments)[0]


def test_functions_of_means_are_close_and_know_their_error():
    """A root, an exponential and a ratio: their bias is of the order of the variance."""
    call, grid = CASES["structured"][:2]
    names = ("rms_distance", "effective_keys", "anisotropy")
    found = estimates(call, names, many_draws(call, grid, (), 32, DRAWS), grid)
    wanted = exact_metrics(call, grid)[0]
    for name in names:
        value, error = found[name], found[f"{name}_error"]
        assert ((value.mean(0) - wanted[name]).abs() < value.std(0) / 4).all()
        torch.testing.assert_close(error.mean(0), value.std(0), rtol=0.3, atol=0)
        inside = (value - wanted[name]).abs() <= T95[16] * error
        assert 0.88 <= inside.double().mean() <= 0.99


def test_a_metric_of_ones_own_is_given_slices(monkeypatch):
    monkeypatch.setattr(registry, "_METRICS", dict(registry._METRICS))
    monkeypatch.setattr(registry, "STATISTICS", dict(registry.STATISTICS))

    @metric("beside_itself", needs="image")
    def beside_itself(tile):
        places = torch.arange(tile.queries.start, tile.queries.stop)
        return 1 - tile.p.gather(-1, places.expand(len(tile.p), -1).unsqueeze(-1)).squeeze(-1)

    call = CASES["joint"][0]
    found = estimates(
        call, ["beside_itself", "entropy"], many_draws(call, JOINT, (), 16, 200), JOINT
    )
    image = slice(JOINT.start, JOINT.start + JOINT.count)
    p = exact_map(call)[..., image, image]
    wanted = 1 - (p / p.sum(-1, keepdim=True)).diagonal(dim1=-2, dim2=-1).mean(-1)
    value = found["beside_itself"]
    assert ((value.mean(0) - wanted).abs() <= 4.5 * value.std(0) / 200**0.5).all()


def exact_map(call):
    scores = call.q.double() @ call.k.double().mT * call.q.shape[-1] ** -0.5
    return scores.softmax(-1)


def test_two_maps_are_compared_without_bias():
    first, second = (AttentionCall(*qkv(queries=40, seed=seed)) for seed in (0, 1))
    metrics = plan_of(("step_overlap", "step_kl")).steps
    draws = many_draws(first, GRID, (), 16, DRAWS)
    found = [compare_sampled(operands(first), operands(second), metrics, each) for each in draws]
    p, other = exact_map(first), exact_map(second)
    wanted = {
        "step_overlap": torch.minimum(p, other).sum(-1).mean(-1),
        "step_kl": (p * (p / other).log()).sum(-1).mean(-1),
    }
    for name, exact in wanted.items():
        value = torch.stack([each[name] for each in found]).double()
        error = torch.stack([each[f"{name}_error"] for each in found]).double()
        assert ((value.mean(0) - exact).abs() <= 4.5 * value.std(0) / DRAWS**0.5).all()
        torch.testing.assert_close(error.square().mean(0), value.var(0), rtol=0.45, atol=0)


def test_one_token_and_few_tokens_are_looked_at_whole():
    for tokens in (1, 2, 8):
        assert draw(site_of(AttentionCall(*qkv(queries=tokens))), 8, seed=0, step=0) is None
    one_text = TokenGrid(height=4, width=6, start=1)
    drawn = draw(site_of(AttentionCall(*qkv(queries=25)), one_text), 8, seed=0, step=0)
    assert drawn.queries[-2:].tolist() == [0, 0] and drawn.sizes[-1] == 1
