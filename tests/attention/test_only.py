"""`Keep`: what is left out is not computed, NaN, and still counted; the output stays as it is."""

import numpy as np
import pytest
import torch

import ditscope as ds
from ditscope.attention import capture as capture_module
from ditscope.attention.capture import Capture, Moment
from ditscope.attention.census import census
from ditscope.attention.watch import watch
from ditscope.core.keep import Keep
from ditscope.errors import BadRequest, NothingWatched
from tests.attention.reference import Plain, tiny_dit

ALL = ("entropy", "mean_distance", "head_similarity", "output_norm", "mass_image")


@pytest.fixture
def calls(monkeypatch):
    """Names of the ways by which statistics were taken, one for each call."""
    made = []

    def counted(name):
        original = getattr(capture_module, name)

        def count(*arguments):
            made.append(name)
            return original(*arguments)

        monkeypatch.setattr(capture_module, name, count)

    for name in ("measure", "measure_sampled", "compare", "compare_sampled", "taken"):
        counted(name)
    return made


def watched(model, inputs, only, times=1, **options):
    with torch.no_grad(), watch(model, only=only, **options) as seen:
        outputs = [model(*inputs) for _ in range(times)]
    return seen, outputs


def test_nothing_else_is_computed(calls):
    model, inputs = tiny_dit()
    only = Keep(layers=["blocks.1.*", 2], heads=[1], steps=[0, 2])
    seen, _ = watched(model, inputs, only, times=4, metrics=ALL)
    assert calls == ["measure"] * 4  # two layers at two steps
    exact, _ = watched(model, inputs, None, times=4, metrics=ALL)
    assert [site.name for site in seen.sites] == [site.name for site in exact.sites]
    for name in ALL:
        kept, every = seen.stats[name], exact.stats[name]
        assert kept.shape == every.shape
        places = np.zeros(kept.shape, bool)
        places[np.ix_([0, 2], range(2), [1, 2], [1])] = True
        assert np.isnan(kept.values[~places]).all()
        assert kept.values[places] == pytest.approx(every.values[places], rel=1e-5)


def test_tokens_of_a_part():
    model, inputs = tiny_dit()
    only = Keep(layers=2, heads=0, steps=1)
    metrics = ("entropy", "received_max")
    seen, _ = watched(model, inputs, only, times=2, metrics=metrics, detail="tokens")
    exact, _ = watched(model, inputs, None, times=2, metrics=metrics, detail="tokens")
    for name in metrics:
        kept = seen.tokens[name]
        assert kept.shape == exact.tokens[name].shape
        here = kept.isel(forward=1, site=2, head=0)
        assert np.allclose(here, exact.tokens[name].isel(forward=1, site=2, head=0), atol=1e-6)
        assert kept.notnull().sum() == here.size


SELECTIONS = {
    "layers": Keep(layers=[0, 2]),
    "heads": Keep(heads=1),
    "no step": Keep(steps=5),
    "queries": Keep(queries=8),
    "all": Keep(layers="blocks.1*", heads=0, queries=4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SELECTIONS)
def test_the_output_is_the_same_bit_for_bit(name, dtype):
    model, inputs = tiny_dit(dtype)
    with torch.no_grad():
        plain = model(*inputs)
    _, outputs = watched(model, inputs, SELECTIONS[name], times=2)
    assert all(torch.equal(plain, each) for each in outputs)


def test_gradients_are_the_same_bit_for_bit():
    def gradients(only):
        model, inputs = tiny_dit()
        model.train()
        torch.manual_seed(1)
        if only is None:
            model(*inputs).square().sum().backward()
        else:
            with watch(model, only=only):
                model(*inputs).square().sum().backward()
        return [each.grad for each in model.parameters()]

    plain = gradients(None)
    for only in (Keep(queries=8), Keep(layers=1)):
        for first, second in zip(plain, gradients(only), strict=True):
            assert first is second is None or torch.equal(first, second)


def test_one_graph_serves_every_draw():
    """The drawn queries are tensors: with numbers in it a graph would be made anew each step."""
    torch.compiler.reset()
    model, inputs = tiny_dit(depth=1)
    with torch.no_grad():
        sites = census(model, *inputs)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        plain = compiled(*inputs)
        for step in range(12):  # more than the compiler would make anew
            moment = Moment(step=step)
            with Capture(sites, ("entropy",), moment=moment, only=Keep(queries=8)) as capture:
                assert torch.equal(plain, compiled(*inputs))
            with Capture(sites, ("entropy",), moment=moment, only=Keep(queries=8)) as eager:
                model(*inputs)
            for name, value in capture.statistics().items():
                torch.testing.assert_close(value, eager.statistics()[name], rtol=1e-4, atol=1e-5)


def test_a_missed_call_outside_the_selection_is_an_error():
    class Sometimes(Plain):
        skipped = False

        def forward(self, x):
            return self.first(x) if self.skipped else super().forward(x)

    model, x = Sometimes(), torch.randn(2, 6, 16)
    for only in (Keep(layers="first"), Keep(steps=7), Keep(layers=0, queries=2)):
        with pytest.raises(NothingWatched, match="second: not seen"), watch(model, only=only):
            model.skipped = False
            model(x)
            model.skipped = True
            model(x)


def test_an_estimate_stands_with_its_error():
    model, inputs = tiny_dit()
    seen, _ = watched(model, inputs, Keep(queries=8), times=2)
    assert list(seen.stats) == ["entropy", "rms_distance", "entropy_error", "rms_distance_error"]
    assert seen.stats["entropy_error"].attrs["units"] == "nats"
    assert (seen.stats["entropy_error"] > 0).all()
    first, second = (seen.stats["entropy"].isel(forward=each) for each in (0, 1))
    assert not np.array_equal(first, second)  # other queries, of the same map
    again, _ = watched(model, inputs, Keep(queries=8), times=2)
    assert again.stats.equals(seen.stats)
    exact, _ = watched(model, inputs, Keep(), times=2)
    off = abs(seen.stats["entropy"] - exact.stats["entropy"]) / seen.stats["entropy_error"]
    assert off.max() < 12 and (off < 2.8).mean() > 0.8  # t of four strata
    rows = seen.rows("blocks.1.attn", [3])  # from the queries and keys that were kept
    assert rows.sum("key").values == pytest.approx(1, abs=1e-5)


def test_as_many_queries_as_there_are_is_exact():
    model, inputs = tiny_dit()
    whole, _ = watched(model, inputs, Keep(queries=24))
    exact, _ = watched(model, inputs, Keep())
    assert np.array_equal(whole.stats["entropy"], exact.stats["entropy"])
    assert (whole.stats["entropy_error"] == 0).all()


def test_rows_of_what_was_not_kept_are_refused():
    model, inputs = tiny_dit()
    seen, _ = watched(model, inputs, Keep(layers=0))
    assert seen.rows("blocks.0.attn", 1).size
    with pytest.raises(BadRequest, match=r"of 'blocks\.1\.attn' were not kept"):
        seen.rows("blocks.1.attn", 1)


def test_bad_selections_are_refused():
    for fields, message in (
        ({"layers": -1}, r"Keep\.layers: Input should be greater than or equal to 0, found -1"),
        ({"heads": 1.5}, r"Keep\.heads: Input should be an index or several, found 1\.5"),
        ({"heads": []}, r"Keep\.heads: selects nothing"),
        ({"steps": [True]}, r"Keep\.steps: Input should be a valid integer"),
        ({"branches": "both"}, r"Keep\.branches: Input should be 'cond' or 'uncond'"),
        ({"queries": 7}, r"Keep\.queries: should be even: two queries of each stratum, found 7"),
        ({"queries": 0}, r"Keep\.queries: Input should be greater than 0"),
        ({"layer": 1}, r"Keep\.layer: Extra inputs are not permitted"),
    ):
        with pytest.raises(BadRequest, match=message):
            Keep(**fields)


def test_selections_that_fit_nothing_are_refused():
    model, inputs = tiny_dit()
    for only, options, message in (
        (Keep(layers=3), {}, r"Keep\.layers: there is no layer 3; expected 0 to 2"),
        (Keep(layers="block.*"), {}, r"there is no layer block\.\*; expected .*globs of"),
        (Keep(heads=2), {}, r"Keep\.heads: blocks\.0\.attn has no head 2; expected 0 to 1"),
        (Keep(branches="cond"), {}, r"Keep\.branches: a forward does not say which branch"),
        (Keep(queries=4), {"metrics": ["sink_mass", "entropy"]}, "sink_mass needs every query"),
        (Keep(queries=4), {"metrics": ["low_frequency"]}, "low_frequency needs every query"),
        (Keep(queries=4), {"detail": "tokens"}, "a sample of queries has no number for each token"),
    ):
        with pytest.raises(BadRequest, match=message):
            watched(model, inputs, only, **options)


def test_the_plan_says_what_is_saved():
    told = ds.explain(only=Keep(layers=[0, 1], queries=16))
    assert told.splitlines()[0] == "only at layers 0, 1; nothing is computed elsewhere:"
    assert "scores of 16 queries of each head with all keys, two of each of 8 strata" in told
    assert "with a standard error each: entropy, rms_distance" in told
    assert ds.explain(only=Keep()) == ds.explain()
    with pytest.raises(BadRequest, match="received_max needs every query"):
        ds.explain(["received_max"], only=Keep(queries=16))
