import random

import pytest
import torch
from torch import nn

import ditscope as ds
from ditscope.attention.census import census, take_census
from ditscope.core.sites import TokenGrid, TokenSegment
from ditscope.errors import BadRequest, NothingWatched
from tests.attention import reference
from tests.attention.reference import DIT_GRID, HandWrittenAttention, Heads, Plain, tiny_dit
from tests.attention.zoo import MODELS, made

X = torch.randn(2, 6, 16)


def test_our_dit():
    model, inputs = tiny_dit()
    sites = census(model, *inputs)
    assert [site.name for site in sites] == [f"blocks.{i}.attn" for i in range(3)]
    assert [site.index for site in sites] == [0, 1, 2]
    for site in sites:
        assert (site.heads, site.queries, site.keys, site.head_width) == (2, 24, 24, 16)
        assert site.grid == DIT_GRID


def test_under_inference_mode_and_by_keyword():
    model, (x, t, y) = tiny_dit()
    with torch.inference_mode():
        assert census(model, x.clone(), t=t, y=y) == census(model, x, t, y)


def test_of_a_compiled_model():
    model, inputs = tiny_dit()
    assert census(torch.compile(model, backend="eager"), *inputs) == census(model, *inputs)


class Remembering(nn.Module):
    """All that a forward may leave behind: a cache, a count, running statistics, random numbers."""

    def __init__(self):
        super().__init__()
        self.heads, self.norm, self.drop = Heads(), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.cache, self.count = None, 0
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        self.cache = x * 2
        self.extra = x
        self.last = x.mean()[None]
        return self.drop(self.norm(self.heads(x))) + torch.rand(())


def test_changes_nothing():
    model = Remembering()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.random.get_rng_state(), random.getstate()
    hooks = [model.heads.register_forward_hook(lambda *_: None)]
    assert [site.name for site in census(model, X)] == ["heads"]
    assert (model.cache, model.count, hasattr(model, "extra")) == (None, 0, False)
    after = model.state_dict()
    assert all(type(after[name]) is torch.Tensor for name in before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(states[0], torch.random.get_rng_state()) and states[1] == random.getstate()
    assert list(model.heads._forward_hooks) == [hooks[0].id]
    assert not model.heads._forward_pre_hooks and not model._forward_hooks


def test_hooks_of_others_do_not_run():
    model, kept = Plain(), []
    model.first.register_forward_hook(lambda module, args, out: kept.append(out.detach().numpy()))
    model.register_forward_pre_hook(lambda module, args: kept.append("before"))
    assert len(census(model, X)) == 2
    assert kept == []


def test_modules_that_call_twice_and_the_model_itself():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Heads()

        def forward(self, x):
            x = self.attn(self.attn(x))
            return nn.functional.scaled_dot_product_attention(x, x, x)

    names = [(site.name, site.heads) for site in census(Twice(), X)]
    assert names == [("attn[0]", 2), ("attn[1]", 2), ("Twice", 1)]


def test_nothing_to_see_names_what_looks_like_attention():
    model = nn.Sequential(nn.Linear(16, 16), HandWrittenAttention())
    with pytest.raises(NothingWatched, match=r"Sequential makes no call.*HandWrittenAttention"):
        census(model, X)
    with pytest.raises(NothingWatched, match="Linear makes no call") as caught:
        census(nn.Linear(16, 16), X)
    assert "look like" not in str(caught.value)


def test_what_was_not_seen():
    model = nn.Sequential(Heads(), HandWrittenAttention())
    found = take_census(model, (X,), {})
    assert [site.name for site in found.sites] == ["0"]
    assert found.not_seen == {"1": "HandWrittenAttention"}


def sana():
    """Linear attention over the image; its cross-attention to text is the usual one."""
    from diffusers import SanaTransformer2DModel

    model = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=12,
        sample_size=8,
    )
    arguments = {
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "timestep": torch.tensor([1, 900]),
    }
    return model.eval(), (torch.randn(2, 4, 8, 8),), arguments


def test_linear_attention_is_named():
    model, args, kwargs = sana()
    with pytest.warns(RuntimeWarning, match=r"not watched.*blocks\.0\.attn1 \(Attention with Sana"):
        with ds.watch(model) as seen:
            watched = model(*args, **kwargs).sample
    assert torch.equal(watched, model(*args, **kwargs).sample)
    assert seen.not_seen == tuple(f"transformer_blocks.{i}.attn1" for i in range(2))
    assert [site.name for site in seen.sites] == [f"transformer_blocks.{i}.attn2" for i in range(2)]
    edit = ds.edit(model, ds.AblateHeads(layers=0))
    with edit, pytest.warns(RuntimeWarning, match=r"not edited.*blocks\.1\.attn1"):
        model(*args, **kwargs)


def test_hand_written_attention_of_diffusers_is_named():
    """`AttnProcessor` makes the map; in one layer, the other is seen."""
    from diffusers.models.attention_processor import AttnProcessor

    case = made(MODELS["diffusers_dit"])
    case.model.transformer_blocks[1].attn1.set_processor(AttnProcessor())
    with pytest.warns(RuntimeWarning, match=r"blocks\.1\.attn1 \(Attention with AttnProcessor\)"):
        with ds.watch(case.model) as seen:
            case()
    assert seen.not_seen == ("transformer_blocks.1.attn1",) and len(seen.sites) == 1
    case.model.transformer_blocks[0].attn1.set_processor(AttnProcessor())
    with pytest.raises(NothingWatched, match="look like attention: Attention with AttnProcessor"):
        with ds.watch(case.model):
            case()


def test_attention_that_does_not_run_is_not_missed():
    model = nn.Sequential(Heads(), nn.Identity())
    model[1].attn = HandWrittenAttention()  # never called
    assert take_census(model, (X,), {}).not_seen == {}


def test_attention_whose_parts_run_without_it_is_named():
    """The block calls the projection in the attention module, and attends by itself."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(16, 16)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.attn = Heads(), Attention()

        def forward(self, x):
            y = self.attn.qkv(self.heads(x))
            return (y @ y.mT).softmax(-1) @ y

    assert take_census(Block(), (X,), {}).not_seen == {"attn": "Attention"}


def test_attention_with_weights_makes_no_call():
    """nn.MultiheadAttention that returns its weights computes them by hand."""

    class Weights(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(16, 2)

        def forward(self, x):
            return self.attn(x, x, x)[0]

    with pytest.raises(NothingWatched, match="MultiheadAttention"):
        census(Weights(), X)


@pytest.mark.parametrize(
    "model",
    [
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2),
    ],
)
def test_fused_encoder_is_refused(model):
    """A mode would take it out of its fused path, and change its bits."""
    model.eval()
    with torch.no_grad(), pytest.raises(NothingWatched, match=r"fused path(?s:.*)fastpath_enabled"):
        census(model, X)
    assert census(model, X)[0].name.endswith("self_attn")  # with gradients it is not fused
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            assert census(model, X)[0].name.endswith("self_attn")
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_fused_attention_itself_is_refused():
    model = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    with torch.no_grad(), pytest.raises(NothingWatched, match="fused path"):
        census(model, X, X, X, need_weights=False)
    assert census(model.train(), X, X, X, need_weights=False)[0].name == "MultiheadAttention"


def test_forward_that_depends_on_numbers():
    class Branching(Plain):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    model = Branching()
    with pytest.raises(NothingWatched, match="Branching depends on numbers"):
        census(model, X)
    assert not model.first._forward_hooks


def test_error_of_the_model_is_its_own():
    with pytest.raises(RuntimeError, match="reduction dim"):
        census(Plain(), torch.randn(2, 6, 15))


def test_unknown_grid_is_none():
    """16 tokens are 4 x 4, or 2 x 8: nobody knows."""
    assert [site.grid for site in census(Plain(), torch.randn(2, 16, 16))] == [None, None]


def test_grid_that_is_given():
    grid = TokenGrid(height=2, width=8)
    x = torch.randn(2, 16, 16)
    assert [site.grid for site in census(Plain(), x, grid=grid)] == [grid, grid]
    assert [site.grid for site in census(Plain(), x, grid={"sec*": grid})] == [None, grid]
    part = TokenGrid(height=3, width=4, start=4)
    assert [site.grid for site in census(Plain(), x, grid=part)] == [part, part]


@pytest.mark.parametrize(
    "grid", [TokenGrid(height=4, width=5), {"third": TokenGrid(height=2, width=8)}]
)
def test_grid_that_fits_nothing(grid):
    with pytest.raises(BadRequest, match=r"grid: it fits no self-attention.*16 x 16"):
        census(Plain(), torch.randn(2, 16, 16), grid=grid)


class Embedded(Plain):
    """As timm and the published DiT tell their grid."""

    def __init__(self, name, grid_size, prefix):
        super().__init__()
        embed = nn.Identity()
        embed.grid_size = grid_size
        setattr(self, name, embed)
        self.num_prefix_tokens = prefix


@pytest.mark.parametrize("name", ["x_embedder", "patch_embed"])
def test_grid_of_a_patch_embedding(name):
    found = census(Embedded(name, (3, 5), 1), torch.randn(2, 16, 16))[0].grid
    assert found == TokenGrid(height=3, width=5, start=1)


def test_class_token_and_registers_before_the_patches():
    """As timm tells them; a prefix that is not all explained stays without names."""
    model = Embedded("patch_embed", (3, 4), 4)
    assert census(model, torch.randn(2, 16, 16))[0].segments == ()
    model.has_class_token, model.num_reg_tokens = True, 3
    assert census(model, torch.randn(2, 16, 16))[0].segments == (
        TokenSegment(kind="class", start=0, count=1),
        TokenSegment(kind="register", start=1, count=3),
    )


def test_grid_of_another_input_size_is_unknown():
    """The size a model was made for need not be that of the input."""
    assert census(Embedded("patch_embed", (3, 5), 1), torch.randn(2, 21, 16))[0].grid is None


def test_site_of_other_shapes():
    [site] = census(nn.Sequential(Flat()), X)
    assert (site.heads, site.queries, site.head_width) == (1, 6, 16)


class Flat(nn.Module):
    def forward(self, x):
        return reference.F.scaled_dot_product_attention(x, x, x)
