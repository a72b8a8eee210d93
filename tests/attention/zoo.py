"""Small networks of every kind that calls attention, with random weights; none was made for us."""

import logging
from dataclasses import dataclass, field

import torch
from torch import nn

from ditscope.core.sites import TokenGrid
from tests.attention.reference import tiny_dit

SQUARE, WIDE = TokenGrid(height=4, width=4), TokenGrid(height=4, width=6)


@dataclass
class Case:
    """A network, what its forward is called with, and the token grid of each of its sites."""

    model: nn.Module
    args: tuple
    kwargs: dict = field(default_factory=dict)
    grids: list = field(default_factory=list)

    def __call__(self):
        output = self.model(*self.args, **self.kwargs)
        return output.sample if hasattr(output, "sample") else output


def our_dit(dtype):
    model, inputs = tiny_dit(dtype)
    return Case(model, inputs, grids=[WIDE] * 3)


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
    return Case(model, (torch.randn(2, 4, 8, 8, dtype=dtype),), arguments, [SQUARE] * 2)


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
    return Case(model, (torch.randn(2, 4, 8, 12, dtype=dtype),), arguments, [WIDE, None] * 2)


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
    return Case(model, (torch.randn(2, 4, 8, 12, dtype=dtype),), arguments, [WIDE] * 3)


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
    return Case(model, (torch.randn(2, 12, 4, dtype=dtype),), arguments, [grid] * 3)


def diffusers_wan(dtype):
    """Video: self-attention over the patches of three frames, then cross-attention to text."""
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    arguments = {
        "timestep": torch.tensor([1, 900]),
        "encoder_hidden_states": torch.randn(2, 5, 16, dtype=dtype),
    }
    grid = TokenGrid(frames=3, height=2, width=4)
    return Case(model, (torch.randn(2, 4, 3, 4, 8, dtype=dtype),), arguments, [grid, None] * 2)


def diffusers_cogvideox(dtype):
    """Video: text before the patches of two frames, in one sequence."""
    from diffusers import CogVideoXTransformer3DModel

    model = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=12,
        num_layers=2,
        sample_width=8,
        sample_height=4,
        sample_frames=5,
        patch_size=2,
        max_text_seq_length=5,
    )
    arguments = {
        "encoder_hidden_states": torch.randn(2, 5, 12, dtype=dtype),
        "timestep": torch.tensor([1, 900]),
    }
    grid = TokenGrid(frames=2, height=2, width=4, start=5)
    return Case(model, (torch.randn(2, 2, 4, 4, 8, dtype=dtype),), arguments, [grid] * 2)


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
    return Case(Composite(), (torch.randn(2, 6, 16, dtype=dtype),), grids=[None] * 2)


MODELS = {
    make.__name__: make
    for make in (
        our_dit,
        diffusers_dit,
        diffusers_pixart,
        diffusers_sd3,
        diffusers_flux,
        diffusers_wan,
        diffusers_cogvideox,
        torch_composite,
    )
}


def made(make, dtype=torch.float32):
    """The case with weights that let every layer be felt, in evaluation but for the composite."""
    logging.disable(logging.WARNING)  # diffusers on .to(bfloat16)
    torch.manual_seed(0)
    case = make(dtype)
    case.model.to(dtype).train(make is torch_composite)
    logging.disable(logging.NOTSET)
    return case
