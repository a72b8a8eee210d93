"""Watching changes nothing: the watched bits are the unwatched ones, and so is all around them."""

import logging
import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ditscope.attention import stats
from ditscope.attention.capture import Capture
from ditscope.attention.census import census
from ditscope.attention.metrics.registry import BRANCHES, STEPS, find
from ditscope.attention.watch import watch
from ditscope.core.sites import TokenGrid
from ditscope.core.statistics import STATISTICS
from tests.attention.reference import Plain, tiny_dit

SQUARE, WIDE = TokenGrid(height=4, width=4), TokenGrid(height=4, width=6)


def our_dit(dtype):
    model, inputs = tiny_dit(dtype)
    return model, inputs, {}, [WIDE] * 3


def diffusers_dit(dtype):
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    arguments = {"timestep": torch.tensor([1, 900]), "class_labels": torch.tensor([3, 10])}
    return model, (torch.randn(2, 4, 8, 8, dtype=dtype),), arguments, [SQUARE] * 2


def diffusers_pixart(dtype):
    """Not square, with cross-attention to text that is partly padding."""
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        caption_channels=12,
        use_additional_conditions=False,
    )
    arguments = {
        "encoder_hidden_states": torch.randn(2, 5, 12, dtype=dtype),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "timestep": torch.tensor([1, 900]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return model, (torch.randn(2, 4, 8, 12, dtype=dtype),), arguments, [WIDE, None] * 2


def diffusers_sd3(dtype):
    """Image before text, and one block that looks at the image a second time."""
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=12,
        dual_attention_layers=(0,),
    )
    arguments = {
        "encoder_hidden_states": torch.randn(2, 5, 12, dtype=dtype),
        "pooled_projections": torch.randn(2, 10, dtype=dtype),
        "timestep": torch.tensor([1, 900]),
    }
    return model, (torch.randn(2, 4, 8, 12, dtype=dtype),), arguments, [WIDE] * 3


def diffusers_flux(dtype):
    """Text before image, in two kinds of block."""
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 4, 8),
    )
    ids = torch.zeros(12, 3)
    ids[:, 1], ids[:, 2] = torch.arange(12) // 4, torch.arange(12) % 4
    arguments = {
        "encoder_hidden_states": torch.randn(2, 5, 12, dtype=dtype),
        "pooled_projections": torch.randn(2, 10, dtype=dtype),
        "timestep": torch.tensor([0.1, 0.9]),
        "img_ids": ids,
        "txt_ids": torch.zeros(5, 3),
    }
    grid = TokenGrid(height=3, width=4, start=5)
    return model, (torch.randn(2, 12, 4, dtype=dtype),), arguments, [grid] * 3


class Composite(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        x = self.layer(x)
        return x + self.attn(x, x, x, need_weights=False)[0]


def torch_composite(dtype):
    """In training, with dropout: the random numbers must be the same ones."""
    return Composite().train(), (torch.randn(2, 6, 16, dtype=dtype),), {}, [None] * 2


MODELS = [our_dit, diffusers_dit, diffusers_pixart, diffusers_sd3, diffusers_flux, torch_composite]
BACKENDS = {
    "chosen": list(SDPBackend.__members__.values())[1:],
    "math": [SDPBackend.MATH],
    "flash": [SDPBackend.FLASH_ATTENTION],
}


def made(make, dtype):
    logging.disable(logging.WARNING)  # diffusers on .to(bfloat16)
    torch.manual_seed(0)
    model, args, kwargs, grids = make(dtype)
    logging.disable(logging.NOTSET)
    return (
        (model if model.training and make is torch_composite else model.eval()).to(dtype),
        args,
        kwargs,
        grids,
    )


def tensor(output):
    return output.sample if hasattr(output, "sample") else output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", MODELS)
def test_watched_bits_are_the_unwatched_ones(make, dtype):
    model, args, kwargs, grids = made(make, dtype)
    seed = torch.random.get_rng_state()
    plain = tensor(model(*args, **kwargs))
    after = torch.random.get_rng_state()
    torch.random.set_rng_state(seed)
    with watch(model) as seen:
        watched = tensor(model(*args, **kwargs))
    assert torch.equal(plain, watched)
    assert torch.equal(after, torch.random.get_rng_state())
    assert [site.grid for site in seen.sites] == grids
    assert seen.not_seen == ()
    for name, values in seen.stats.items():
        known = [site for site, grid in enumerate(grids) if grid or name != "rms_distance"]
        assert values.isel(site=known).notnull().all(), name


@pytest.mark.parametrize("make", MODELS)
def test_every_metric_leaves_the_bits(make):
    model, args, kwargs, _ = made(make, torch.float32)
    seed = torch.random.get_rng_state()
    plain = tensor(model(*args, **kwargs))
    torch.random.set_rng_state(seed)
    alone = [name for name in STATISTICS if find(name).needs not in (STEPS, BRANCHES)]
    with watch(model, metrics=alone) as seen:
        watched = tensor(model(*args, **kwargs))
    assert torch.equal(plain, watched)
    for index, site in enumerate(seen.sites):
        here = seen.stats.isel(site=index)
        for name, values in here.items():
            missing = math.isnan(STATISTICS[name].maximum(site))
            assert values.isnull().all() if missing else values.notnull().all(), (name, site)
        if make in (diffusers_pixart, diffusers_sd3, diffusers_flux):  # text is known there
            total = here["mass_image"].fillna(0) + here["mass_text"].fillna(0)
            assert total.values == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [our_dit, diffusers_pixart])
def test_under_every_backend(make, backend):
    model, args, kwargs, _ = made(make, torch.float32)
    with sdpa_kernel(BACKENDS[backend]):
        plain = tensor(model(*args, **kwargs))
        with watch(model):
            watched = tensor(model(*args, **kwargs))
    assert torch.equal(plain, watched)


@pytest.mark.parametrize("fused", [False, True])
def test_under_autocast_and_inference(monkeypatch, fused):
    monkeypatch.setattr(stats, "_fused_pays", lambda _: fused)
    model, inputs = tiny_dit()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        plain = model(*inputs)
        with watch(model) as seen:
            watched = model(*inputs)
    assert torch.equal(plain, watched)
    assert seen.rows("blocks.0.attn", range(24)).sum("key").values == pytest.approx(1, abs=1e-3)


def test_under_autocast_in_training():
    """Autocast remembers the weights it casts; those that the census casts have no numbers."""
    model, inputs = tiny_dit()
    with torch.autocast("cpu", torch.bfloat16):
        with watch(model):
            watched = model(*inputs)
        plain = model(*inputs)
    assert torch.equal(plain, watched)


def test_gradients():
    model, inputs = tiny_dit()

    def gradients():
        model.zero_grad()
        model(*inputs).square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    with watch(model):
        watched = gradients()
    assert len(plain) > 10
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


@pytest.mark.parametrize("fused", [False, True])
def test_compiled_without_a_graph_break(monkeypatch, fused):
    monkeypatch.setattr(stats, "_fused_pays", lambda _: fused)
    torch.compiler.reset()
    model, inputs = tiny_dit(depth=1)
    with torch.no_grad():
        sites = census(model, *inputs)
        with Capture(sites) as eager:
            model(*inputs)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        plain = compiled(*inputs)
        with Capture(sites) as capture:
            watched = compiled(*inputs)
    assert torch.equal(plain, watched)
    for name, value in capture.statistics().items():
        torch.testing.assert_close(value, eager.statistics()[name])


def test_watch_of_a_compiled_model():
    """The hooks are on the wrapper, outside of the graph."""
    torch.compiler.reset()
    model = Plain()
    compiled, x = torch.compile(model, backend="eager", fullgraph=True), torch.randn(2, 6, 16)
    with torch.no_grad(), watch(compiled) as seen:
        watched = compiled(x)
    assert [site.name for site in seen.sites] == ["first", "second"]
    assert torch.equal(model(x), watched)


def test_operands_are_not_written_to():
    """A statistic that worked in place would change what the model computes next."""
    model, x = Plain(), torch.randn(2, 6, 16)
    shown = []

    def versions(site, attention, lse):
        shown.append((attention.q, attention.q._version, attention.q.clone()))

    with Capture(census(model, x), on_attention=versions):
        model(x)
    for q, version, copy in shown:
        assert q._version == version and torch.equal(q, copy)
