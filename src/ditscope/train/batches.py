"""Batches by step number: the same numbers in any process, made one step ahead.

Shapes: B rows, C channels, h and w pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ditscope.data.scenes import EmojiScenes
from ditscope.train.config import TrainConfig


def batch(config: TrainConfig, scenes: EmojiScenes, step: int) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, h, w) float32 in [-1, 1] and labels (B,) of one step."""
    first = step * config.batch_size
    images, labels, _ = scenes.batch(range(first, first + config.batch_size))
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return pixels.float().div_(127.5).sub_(1), torch.from_numpy(labels)


def batches(config: TrainConfig, start: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(step, pictures, labels) from step `start` to the last."""
    scenes = EmojiScenes(seed=config.seed, size=config.model.input_height)
    with ThreadPoolExecutor(max_workers=1) as ahead:
        following = ahead.submit(batch, config, scenes, start)
        for step in range(start, config.steps):
            images, labels = following.result()
            if step + 1 < config.steps:
                following = ahead.submit(batch, config, scenes, step + 1)
            yield step, images, labels
