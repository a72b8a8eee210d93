import gc
import weakref

import pytest
import torch

from ditscope.attention.capture import Capture
from ditscope.attention.census import census
from ditscope.core.statistics import DEFAULT_METRICS
from ditscope.errors import BadRequest, NothingWatched
from tests.attention.reference import DIT_GRID, Plain, by_hand, tiny_dit

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))


def test_statistics_of_every_layer():
    model, inputs = tiny_dit()
    sites = census(model, *inputs)
    maps = []
    with Capture(sites, on_attention=lambda seen: maps.append(seen.operands)) as capture:
        model(*inputs)
    found = capture.statistics()
    assert list(found) == list(DEFAULT_METRICS)
    for layer, attention in enumerate(maps):
        call = type("Call", (), {"enable_gqa": False, "is_causal": False, "attn_mask": None})
        call.q, call.k, call.scale = attention.q, attention.k, attention.scale
        exact = by_hand(call)
        for name, wanted in {
            "entropy": exact.entropy,
            "received_max": exact.received_max,
            "rms_distance": exact.rms_distance(DIT_GRID),
        }.items():
            assert found[name].shape == (2, 3, 2) and found[name].dtype == torch.float32
            torch.testing.assert_close(found[name][:, layer].double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("statistics", [(), ("entropy",), tuple(DEFAULT_METRICS)])
def test_operands_that_are_kept(statistics):
    """q, k and log-sum-exp give the map whose rows sum to one, whatever else is computed."""
    model, inputs = tiny_dit()
    kept = {}
    keep = lambda seen: kept.update({seen.site.name: seen})
    with Capture(census(model, *inputs), statistics, on_attention=keep) as c:
        model(*inputs)
    assert list(kept) == [f"blocks.{i}.attn" for i in range(3)]
    assert set(c.statistics()) == set(statistics)
    for seen in kept.values():
        q, k, lse = seen.operands.q, seen.operands.k, seen.lse
        assert q.shape == k.shape == (2, 2, 24, 16) and lse.shape == (2, 2, 24)
        rows = (q @ k.mT / 4 - lse.unsqueeze(-1)).exp().sum(-1)
        torch.testing.assert_close(rows, torch.ones_like(rows))
        torch.testing.assert_close((q @ k.mT / 4).softmax(-1) @ seen.v, seen.output)


def test_fewer_calls_than_expected():
    model = Plain()
    sites = census(model, X)
    with pytest.raises(
        NothingWatched, match="made 1 attention calls, the census expects 2: second"
    ):
        with Capture(sites):
            model.first(X)


def test_more_calls_than_expected():
    model = Plain()
    sites = census(model, X)
    with pytest.raises(NothingWatched, match=r"made 4 .* expects 2: one more call, 2 heads of 8"):
        with Capture(sites):
            model(model(X))


def test_other_shapes_than_expected():
    model = Plain()
    sites = census(model, X)
    with pytest.raises(NothingWatched, match=r"first: .* 5 x 5 tokens instead of .* 6 x 6 tokens"):
        with Capture(sites):
            model(X[:, :5])


def test_another_number_of_rows_is_no_difference():
    model = Plain()
    sites = census(model, X[:1])
    with Capture(sites) as capture:
        model(X)
    assert capture.statistics()["entropy"].shape == (2, 2, 2)


def test_no_sites_is_no_success():
    with pytest.raises(NothingWatched, match="expects 0"), Capture(()):
        pass


def test_exception_of_the_forward_passes_as_it_is():
    model = Plain()
    with pytest.raises(KeyError), Capture(census(model, X)):
        model.first(X)
        raise KeyError


def test_unknown_metric():
    with pytest.raises(
        BadRequest, match=r"no metric entropi; expected some of entropy(?s:.*)did you mean entropy"
    ):
        Capture((), ("entropi",))


def test_sites_of_different_heads_are_filled_up():
    class Uneven(Plain):
        def __init__(self):
            super().__init__()
            self.second.heads = 4

        def forward(self, x):
            return self.second(self.first(x)[:1])

    model = Uneven()
    with Capture(census(model, X)) as capture:
        model(X)
    entropy = capture.statistics()["entropy"]
    assert entropy.shape == (2, 2, 4)
    seen = ~entropy.isnan()
    assert seen[0].tolist() == [[True, True, False, False], [True] * 4]
    assert seen[1].tolist() == [[True, True, False, False], [False] * 4]


def test_a_capture_is_gone_with_its_last_reference():
    """Kept until a garbage collection, the small results would scatter the memory of a sampling."""
    model, inputs = tiny_dit()
    sites = census(model, *inputs)
    gc.disable()
    try:
        with Capture(sites) as capture:
            model(*inputs)
        gone = weakref.ref(capture)
        del capture
        assert gone() is None
    finally:
        gc.enable()
