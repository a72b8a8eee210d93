"""Batches by step number: the same numbers in any process, made one step ahead.

Shapes: B rows, C channels, h and w pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditscope.train.config import TrainConfig
from ditscope.train.sources import Source


@dataclass(frozen=True)
class Batch:
    """What one step learns from."""

    step: int
    pictures: range  # which pictures of the data, counted from the start of the training
    x0: Tensor  # (B, C, h, w) float32: pictures in [-1, 1], or scaled latents
    y: Tensor  # (B,) int64 labels


def batch(config: TrainConfig, source: Source, step: int) -> Batch:
    """The batch of one step, on the CPU."""
    pictures = range(step * config.batch_size, (step + 1) * config.batch_size)
    shown, labels = source.batch(pictures)
    return Batch(step, pictures, _x0(shown), torch.from_numpy(labels))


def _x0(shown: NDArray[np.uint8] | NDArray[np.float32]) -> Tensor:
    if shown.dtype == np.float32:
        return torch.from_numpy(shown)
    pixels = torch.from_numpy(np.ascontiguousarray(shown.transpose(0, 3, 1, 2)))
    return pixels.float().div_(127.5).sub_(1)


def batches(config: TrainConfig, source: Source, start: int) -> Iterator[Batch]:
    """The batches from step `start` to the last."""
    with ThreadPoolExecutor(max_workers=1) as ahead:
        following = ahead.submit(batch, config, source, start)
        for step in range(start, config.steps):
            made = following.result()
            if step + 1 < config.steps:
                following = ahead.submit(batch, config, source, step + 1)
            yield made
