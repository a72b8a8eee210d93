"""An autoencoder of diffusers with random weights: it halves both sides."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL


def save_autoencoder(folder: Path, **config: object) -> AutoencoderKL:
    """Write one with 4 channels of latents into `folder`, and return it."""
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        block_out_channels=(4, 4),
        norm_num_groups=2,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        **config,
    ).eval()
    autoencoder.save_pretrained(folder)
    return autoencoder
