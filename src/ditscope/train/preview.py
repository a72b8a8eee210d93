"""Pictures that the averaged weights draw during a training, always from the same noise.

Shapes: S pictures, h and w pixels.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ditscope.core.atomic import new_file
from ditscope.core.axes import Branch
from ditscope.data.codecs import absolute_codec
from ditscope.diffusion import sampler
from ditscope.diffusion.guidance import guide
from ditscope.diffusion.noise import SampleNoise, sample_seed
from ditscope.diffusion.schedule import Evaluation
from ditscope.model.dit import DiT
from ditscope.train.config import TrainConfig

PICTURES, COLUMNS = 8, 4
STEPS = 20
GUIDANCE = 3.0


def preview(model: DiT, config: TrainConfig) -> NDArray[np.uint8]:
    """Eight pictures of classes spread over all of them: (8, height, width, 3) uint8.

    20 steps of DDIM (DDPM) or Euler (flow), guidance 3 where the network has a null class. Raises
    NumericalError if the weights draw NaN or Inf.
    """
    classes = config.model.num_classes
    wanted = torch.tensor([index * classes // PICTURES for index in range(PICTURES)])
    name, steps = ("euler", STEPS) if config.process.kind == "flow" else ("ddim", str(STEPS))
    pixels = config.codec.kind == "rgb"
    plan = sampler.plan(config.process, name, steps, clip_denoised=pixels)
    draw = SampleNoise([sample_seed(config.seed, index) for index in range(PICTURES)])

    def network(
        x: Tensor,
        timestep: float,
        labels: Tensor,
        evaluation: Evaluation,
        branches: tuple[Branch, ...],
    ) -> Tensor:
        there = model.pos_embed.device
        t = torch.full((len(x),), timestep, device=there)
        return model(x.to(there), t, labels.to(there)).float().cpu()

    scale = GUIDANCE if config.model.class_dropout_prob > 0 else 1.0
    denoise = guide(network, wanted, config.model.null_label, scale)
    shape = (
        PICTURES,
        config.model.in_channels,
        config.model.input_height,
        config.model.input_width,
    )
    return absolute_codec(config.codec).decode(sampler.run(plan, denoise, draw(shape), draw))


def write_preview(path: Path, pictures: NDArray[np.uint8]) -> None:
    """Write pictures (S, h, w, 3) as one PNG, four in a row. Raises ResourceError."""
    count, height, width, _ = pictures.shape
    rows = math.ceil(count / COLUMNS)
    sheet = np.zeros((rows * height, COLUMNS * width, 3), np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // COLUMNS * height, index % COLUMNS * width
        sheet[top : top + height, left : left + width] = picture
    with new_file(path) as beside:
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(sheet).save(beside, format="PNG")
