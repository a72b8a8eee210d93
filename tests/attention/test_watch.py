import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ditscope.attention import watch as watch_module
from ditscope.attention.watch import watch
from ditscope.core.sites import TokenGrid
from ditscope.core.statistics import DEFAULT_METRICS
from ditscope.errors import BadRequest, NothingWatched
from tests.attention.reference import HandWrittenAttention, Plain, tiny_dit

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    return Plain()


def clean(model):
    """Nothing of a watch is left on the model or on the thread."""
    hooks = [m._forward_hooks or m._forward_pre_hooks for m in model.modules()]
    return not any(hooks) and torch._C._len_torch_function_stack() == 0


def test_as_promised():
    model, inputs = tiny_dit()
    with watch(model) as seen:
        model(*inputs)
        model(*inputs)
    assert [site.name for site in seen.sites] == [f"blocks.{i}.attn" for i in range(3)]
    assert seen.not_seen == ()
    assert seen.stats.sizes == {"forward": 2, "sample": 2, "site": 3, "head": 2}
    assert set(seen.stats) == set(DEFAULT_METRICS)
    assert seen.stats["rms_distance"].attrs["units"] == "patches"
    assert seen.stats.isel(forward=0).equals(seen.stats.isel(forward=1))
    one = seen.stats["entropy"].sel(site="blocks.1.attn").isel(forward=-1, sample=0, head=1)
    p = seen.rows(site="blocks.1.attn", query=range(24), forward=-1)
    assert p.dims == ("sample", "head", "query", "key") and p.shape == (2, 2, 24, 24)
    assert p.sum("key").values == pytest.approx(1, abs=1e-5)
    by_hand = -(p * np.log(p)).sum("key").mean("query").isel(sample=0, head=1)
    assert float(one) == pytest.approx(float(by_hand), abs=1e-5)
    columns = seen.columns(site="blocks.1.attn", key=[5, 2])
    # two keys take another product than all of them
    np.testing.assert_allclose(columns.sel(key=2), p.sel(key=2), rtol=2e-6)
    assert clean(model)


def test_can_be_read_inside_the_block(model):
    with watch(model) as seen:
        with pytest.raises(BadRequest, match="no forward was watched to its end yet"):
            seen.stats  # noqa: B018
        model(X)
        assert seen.stats.sizes["forward"] == 1
        model(X)
        assert seen.stats.sizes["forward"] == 2


def test_forwards_of_other_batch_sizes(model):
    with watch(model, metrics=["entropy"]) as seen:
        model(X[:1])
        model(X)
    entropy = seen.stats["entropy"]
    assert list(seen.stats) == ["entropy"]
    assert entropy.isel(forward=0, sample=1).isnull().all()
    assert np.array_equal(entropy[0, 0], entropy[1, 0])


def test_numbers_of_single_tokens(model):
    with watch(model, metrics=["entropy", "received_max"], detail="tokens") as seen:
        model(X)
        model(X[:1])
    assert seen.tokens.sizes == {"forward": 2, "sample": 2, "site": 2, "head": 2, "token": 6}
    p = seen.rows("second", range(6))
    here = seen.tokens.sel(site="second").isel(forward=-1, sample=0)
    assert here["entropy"].values == pytest.approx(-(p * np.log(p)).sum("key")[0].values, abs=1e-5)
    assert here["received_max"].values == pytest.approx(p.mean("query")[0].values, abs=1e-6)
    assert seen.tokens.isel(forward=1, sample=1).entropy.isnull().all()
    with pytest.raises(BadRequest, match="detail: found 'words'"):
        watch(model, detail="words")


def test_one_site_is_kept_in_every_forward(model):
    with watch(model, keep=["sec*"]) as seen:
        model(X)
        model(2 * X)
    first, last = (seen.rows("second", [0], forward) for forward in (0, 1))
    assert not np.array_equal(first, last)
    assert np.array_equal(last, seen.rows("second", 0))
    with pytest.raises(BadRequest, match=r"'first' were not kept(?s:.*)keep=\['first'\]"):
        seen.rows("first", [0])


def test_by_default_the_last_forward_is_kept(model):
    with watch(model) as seen:
        model(X)
        model(2 * X)
    assert seen.rows("first", [0]).shape == (2, 2, 1, 6)
    with pytest.raises(BadRequest, match="not kept in forward 0"):
        seen.rows("first", [0], forward=0)


def test_large_operands_are_kept_only_if_named(model, monkeypatch):
    size = 2 * 2 * 2 * 6 * 8 * 4  # q and k of one site
    monkeypatch.setattr(watch_module, "KEPT_BYTES", 2 * size - 1)
    with watch(model) as seen:
        model(X)
    with pytest.raises(BadRequest, match=f"if all take {2 * size - 1:,} bytes or less"):
        seen.rows("first", [0])
    with watch(model, keep=["*"]) as seen:
        model(X)
    assert seen.rows("first", [0]).sum() == pytest.approx(4)


def test_kept_operands_are_copies():
    class Reusing(Plain):
        def forward(self, x):
            with torch.no_grad():
                q = k = v = x.unsqueeze(1).clone()
                output = nn.functional.scaled_dot_product_attention(q, k, v)
                q.zero_()
            return output

    model = Reusing()
    with watch(model) as seen:
        model(X)
    expected = (X @ X.mT / 4).softmax(-1)
    assert seen.rows("Reusing", range(6)).values[:, 0] == pytest.approx(expected.numpy(), abs=1e-6)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (("third", [0]), "site: there is no site 'third'; expected first, second"),
        (("first", [6]), "query: there is no token 6; expected 0 to 5"),
        (("first", [-1]), "query: there is no token -1"),
        (("first", [0], 1), "forward: there is no forward 1; expected -1, or 0 to 0"),
        (("first", [0], -2), "forward: there is no forward -2"),
    ],
)
def test_rows_that_are_not_there(model, ask, message):
    with watch(model) as seen:
        model(X)
    with pytest.raises(BadRequest, match=message):
        seen.rows(*ask)


def test_grid(model):
    with watch(model, grid=TokenGrid(height=2, width=3)) as seen:
        model(X)
    assert seen.stats["rms_distance"].notnull().all()
    with watch(model) as seen:
        model(X)
    assert seen.stats["rms_distance"].isnull().all()


def test_submodule(model):
    """Attention outside what is watched is not seen."""
    with watch(model.second) as seen:
        model(X)
    assert [site.name for site in seen.sites] == ["Heads"]
    assert seen.stats.sizes["forward"] == 1


def test_nested_watches(model):
    with watch(model) as outer, watch(model) as inner, watch(model.first) as part:
        model(X)
    assert outer.stats.equals(inner.stats)
    first = outer.stats["entropy"].sel(site="first").values
    assert np.array_equal(part.stats["entropy"].values[:, :, 0], first)
    assert clean(model)


def test_again_and_again(model):
    for _ in range(3):
        with watch(model) as seen:
            model(X)
        assert seen.stats.sizes["forward"] == 1
    assert clean(model)


def test_exception_of_the_model(model):
    def fail(*_):
        raise KeyError("mine")

    handle = model.second.register_forward_hook(fail)
    with watch(model) as seen:
        with pytest.raises(KeyError, match="mine"):
            model(X)
        assert torch._C._len_torch_function_stack() == 0
        handle.remove()
        model(X)
        try:
            raise ValueError
        except ValueError:
            model(X)  # while another exception is being handled
    assert seen.stats.sizes["forward"] == 2
    assert clean(model)


def test_exception_ends_the_block(model):
    with pytest.raises(KeyError), watch(model):
        raise KeyError
    assert clean(model)


def test_interrupt(model):
    """KeyboardInterrupt is no Exception: torch runs no hooks for it."""

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = model.second.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), watch(model):
        model(X)
    handle.remove()
    assert clean(model)


def test_two_threads(model):
    """Every forward of the model is seen, in whatever thread, each as one."""
    alone = []
    for factor in (1, 2):
        with watch(model) as seen:
            model(factor * X)
        alone.append(seen.stats["entropy"].values[0])
    with watch(model) as seen:
        start = threading.Barrier(2, timeout=30)

        def run(factor):
            start.wait()
            for _ in range(5):
                model(factor * X)

        threads = [threading.Thread(target=run, args=[factor]) for factor in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    forwards = seen.stats["entropy"].values
    counts = [sum(np.array_equal(each, values) for each in forwards) for values in alone]
    assert len(forwards) == 10 and counts == [5, 5]
    assert clean(model)


def test_model_that_changes_between_forwards(model):
    with pytest.raises(NothingWatched, match=r"made 1 attention calls, .* second: not seen"):
        with watch(model):
            model(X)
            model.second = nn.Identity()
            model(X)
    assert clean(model)


def test_nothing_to_see():
    model = HandWrittenAttention()
    with pytest.raises(NothingWatched, match="HandWrittenAttention makes no call"):
        with watch(model):
            model(X)
    assert clean(model)


def test_model_that_is_not_called(model):
    with pytest.raises(NothingWatched, match="Plain was not called in the block"):
        with watch(model):
            model.forward(X)
    assert clean(model)


def test_fused_path_is_refused_in_every_forward():
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    with pytest.raises(NothingWatched, match="fused path"):
        with watch(model):
            model(X)  # with gradients it is not fused
            with torch.no_grad():
                model(X)
    assert clean(model)


def test_fake_forward_is_not_watched(model):
    """Someone else traces the model, as an outer census does."""
    with watch(model) as seen:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            model(fake.from_tensor(X))
        model(X)
    assert seen.stats.sizes["forward"] == 1


def test_what_cannot_be_watched(model):
    with pytest.raises(BadRequest, match=r"a dict cannot be watched(?s:.*)pipe\.transformer"):
        watch({})
    with pytest.raises(BadRequest, match="no metric speed"):
        watch(model, metrics=["speed"])
    with pytest.raises(
        BadRequest, match="keep: third fits no site; expected globs of first, second"
    ):
        with watch(model, keep=["first", "third"]):
            model(X)
    model.compile(backend="eager")
    with pytest.raises(BadRequest, match="compiled in place"):
        watch(model)
