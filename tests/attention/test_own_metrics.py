import pytest
import torch

import ditscope as ds
from ditscope.attention.metrics import registry
from ditscope.attention.metrics.plan import plan_of
from ditscope.attention.operands import operands
from ditscope.attention.seam import AttentionCall
from ditscope.attention.stats import measure
from ditscope.core.sites import TokenGrid, TokenSegment
from ditscope.core.statistics import STATISTICS
from ditscope.errors import BadRequest
from tests.attention.reference import Plain, by_hand, qkv, tiny_dit

GRID = TokenGrid(height=4, width=6)


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_METRICS", dict(registry._METRICS))
    known = dict(STATISTICS)
    yield
    STATISTICS.clear()
    STATISTICS.update(known)


def close(value, wanted):
    torch.testing.assert_close(value.double(), wanted, atol=1e-5, rtol=1e-5)


def found(name, call, grid=GRID, segments=(), tokens=False):
    return measure(operands(call), plan_of([name], "tokens" if tokens else "heads"), grid, segments)


def test_of_tiles():
    @ds.metric("itself", needs="queries", formula="mean_i p_ii", bounds=(0, 1))
    def itself(tile):
        """Attention of a token on itself."""
        here = torch.arange(tile.queries.start, tile.queries.stop)
        return tile.p.gather(-1, here.expand(*tile.p.shape[:2]).unsqueeze(-1)).squeeze(-1)

    call = AttentionCall(*qkv())
    diagonal = by_hand(call).p.diagonal(dim1=-2, dim2=-1)
    both = found("itself", call, tokens=True)
    close(both.heads["itself"], diagonal.mean(-1))
    close(both.tokens["itself"], diagonal)
    assert STATISTICS["itself"].formula == "mean_i p_ii"
    model, inputs = tiny_dit()
    with ds.watch(model, metrics=["itself", "entropy"]) as seen:
        model(*inputs)
    rows = seen.rows("blocks.0.attn", range(24)).values
    mean = rows.diagonal(axis1=-2, axis2=-1).mean(-1)
    assert seen.stats["itself"].values[0, :, 0] == pytest.approx(mean, abs=1e-6)
    assert seen.stats["itself"].attrs["formula"] == "mean_i p_ii"


def test_of_image_tiles_with_several_numbers():
    def angle(mean, scope):
        return torch.atan2(mean[..., 0], mean[..., 1])

    @ds.metric("direction", needs="image", unit="radians", finish=angle)
    def direction(tile):
        token = torch.arange(tile.grid.count)
        place = torch.stack([token // tile.grid.width, token % tile.grid.width], -1).float()
        return tile.p @ place - place[tile.queries]

    call = AttentionCall(*qkv(queries=30))
    grid = TokenGrid(height=4, width=6, start=2)
    p = by_hand(call).p[..., 2:26, 2:26]
    p = p / p.sum(-1, keepdim=True)
    token = torch.arange(24)
    y = (p @ (token // 6).double() - token // 6).mean(-1)
    x = (p @ (token % 6).double() - token % 6).mean(-1)
    both = found("direction", call, grid, tokens=True)
    close(both.heads["direction"], torch.atan2(y, x))
    assert both.tokens["direction"][..., 2:26].isfinite().all()
    assert both.tokens["direction"][..., [0, 1, 26, 29]].isnan().all()
    assert found("direction", call, None).heads["direction"].isnan().all()


def test_of_columns_received_and_another_metric():
    @ds.metric("late", needs="columns")
    def late(scope):
        return torch.arange(scope.keys) / scope.keys

    @ds.metric("median_share", needs="received", finish=lambda share, scope: share.median(-1)[0])
    def median_share(share, scope):
        return share

    @ds.metric("bits", needs="entropy", unit="bits")
    def bits(entropy, scope):
        return entropy / torch.log(torch.tensor(2.0))

    call = AttentionCall(*qkv())
    p = by_hand(call).p
    expected = {
        "late": (p @ (torch.arange(24).double() / 24)).mean(-1),
        "median_share": p.mean(-2).median(-1)[0],
        "bits": -(p * p.log2()).sum(-1).mean(-1),
    }
    for name, wanted in expected.items():
        close(found(name, call).heads[name], wanted)
    assert plan_of(["late", "median_share", "bits"]).fusable


def test_of_a_mask():
    box = torch.zeros(4, 6, dtype=torch.bool)
    box[1:3, 2:5] = True
    ds.mask_metric("mass_box", box, long_name="attention on the box")
    ds.mask_metric("mass_odd", torch.arange(30) % 2)
    call = AttentionCall(*qkv(queries=30))
    grid = TokenGrid(height=4, width=6, start=3)
    p = by_hand(call).p
    for tokens in (False, True):
        on_box = found("mass_box", call, grid, tokens=tokens)
        wanted = p[..., 3:27][..., box.flatten()].sum(-1)
        close(on_box.heads["mass_box"], wanted.mean(-1))
    close(on_box.tokens["mass_box"], wanted)
    odd = found("mass_odd", call, grid).heads["mass_odd"]
    close(odd, p[..., 1::2].sum(-1).mean(-1))
    elsewhere = TokenGrid(height=6, width=4)
    assert found("mass_box", call, elsewhere).heads["mass_box"].isnan().all()
    assert found("mass_odd", AttentionCall(*qkv())).heads["mass_odd"].isnan().all()
    assert STATISTICS["mass_box"].long_name == "attention on the box"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "entropy", "needs": "queries"}, "name: there is a metric 'entropy' already"),
        ({"name": "../x", "needs": "queries"}, r"name: '\.\./x' is no name of a metric"),
        ({"name": "x", "needs": "tile"}, "needs: found 'tile'; expected one of queries, image"),
    ],
)
def test_what_cannot_be_registered(arguments, message):
    with pytest.raises(BadRequest, match=message):
        ds.metric(**arguments)
    with pytest.raises(BadRequest, match="mask: found 3 axes of 8 values"):
        ds.mask_metric("x", torch.ones(2, 2, 2))


def test_what_a_metric_may_not_return():
    ds.metric("whole_rows", needs="queries")(lambda tile: tile.p.sum())
    ds.metric("no_tensor", needs="image")(lambda tile: 1.0)
    ds.metric("few_columns", needs="columns")(lambda scope: torch.ones(3))
    ds.metric("not_finished", needs="received")(lambda share, scope: share)
    call = AttentionCall(*qkv())
    for name, message in {
        "whole_rows": r"metric whole_rows: returned \(\); expected one number per query",
        "no_tensor": "metric no_tensor: returned float; expected one number per query",
        "few_columns": r"metric few_columns: returned shape \(3,\); expected .* the 24 keys",
        "not_finished": r"metric not_finished: its numbers have shape \(4, 24\) after `finish`",
    }.items():
        with pytest.raises(BadRequest, match=message):
            found(name, call)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(BadRequest, match=r"no metric mean_distanse(?s:.*)did you mean mean_dist"):
        plan_of(["mean_distanse"])
    with pytest.raises(BadRequest, match="metrics: names one twice"):
        plan_of(["entropy", "entropy"])
    with pytest.raises(BadRequest, match="found 'entropy'; expected a list"):
        plan_of("entropy")


def test_segments_of_a_joint_sequence_are_the_same_in_a_watch():
    """A text segment is looked at as the census knows it; of our own DiT all is image."""
    model, inputs = tiny_dit()
    with ds.watch(model, metrics=["mass_image"]) as seen:
        model(*inputs)
    assert seen.stats["mass_image"].values == pytest.approx(1, abs=1e-6)
    text = (TokenSegment(kind="text", start=24, count=6),)
    call = AttentionCall(*qkv(queries=30))
    wanted = by_hand(call).p[..., 24:].sum(-1).mean(-1)
    close(found("mass_text", call, GRID, text).heads["mass_text"], wanted)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["entropy", "mass_text", "mass_class"], "mass_text, mass_class has no value.*: image;"),
        (["mass_box"], "mass_box has no value at any site"),
        (["twice_text"], "twice_text has no value"),
    ],
)
def test_what_can_have_no_value_is_refused(metrics, message):
    """A box of another grid, text of a network without text, and what follows from it."""
    ds.mask_metric("mass_box", torch.ones(5, 5))
    ds.metric("twice_text", needs="mass_text")(lambda value, scope: 2 * value)
    model, inputs = tiny_dit()
    with pytest.raises(BadRequest, match=message), ds.watch(model, metrics=metrics):
        model(*inputs)


def test_a_distance_that_is_asked_for_needs_a_grid():
    """Among the default metrics it may be missing; who names it is told what to do."""
    x = torch.randn(2, 6, 16)
    with pytest.raises(BadRequest, match=r"rms_distance has no value(?s:.*)grid=TokenGrid"):
        with ds.watch(model := Plain(), metrics=["entropy", "rms_distance"]):
            model(x)
    grid = TokenGrid(height=2, width=3)
    with ds.watch(model, metrics=["rms_distance"], grid=grid) as seen:
        model(x)
    assert seen.stats["rms_distance"].notnull().all()
