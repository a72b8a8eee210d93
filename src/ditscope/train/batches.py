"""Batches by step number: the same numbers in any process, made one step ahead.

Shapes: B rows, C channels, h and w pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditscope.errors import BadConfig
from ditscope.train.config import TrainConfig
from ditscope.train.sources import Source


@dataclass(frozen=True)
class Batch:
    """What one step learns from, or the rows of it that are this process's."""

    step: int
    rows: range  # of the batch of all processes
    pictures: range  # which pictures of the data, counted from the start of the training
    x0: Tensor  # (B, C, h, w) float32: pictures in [-1, 1], or scaled latents
    y: Tensor  # (B,) int64 labels

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return replace(self, x0=self.x0.to(device), y=self.y.to(device))


def rows_of(config: TrainConfig, rank: int, processes: int) -> range:
    """The rows of every batch that one of several processes computes.

    Raises BadConfig if batches cannot be divided evenly, and each share into its parts.
    """
    rows, left = divmod(config.batch_size, processes)
    if left or rows % config.accumulate:
        parts = f" that compute {config.accumulate} parts each" if config.accumulate > 1 else ""
        raise BadConfig(
            f"{config.batch_size} cannot be divided evenly among {processes} processes{parts}",
            field="batch_size",
            expected=f"a multiple of {processes * config.accumulate}",
        )
    return range(rank * rows, (rank + 1) * rows)


def batch(config: TrainConfig, source: Source, step: int, rows: range | None = None) -> Batch:
    """The batch of one step, or some rows of it, on the CPU."""
    rows = range(config.batch_size) if rows is None else rows
    first = step * config.batch_size
    pictures = range(first + rows.start, first + rows.stop)
    shown, labels = source.batch(pictures)
    return Batch(step, rows, pictures, _x0(shown), torch.from_numpy(labels))


def _x0(shown: NDArray[np.uint8] | NDArray[np.float32]) -> Tensor:
    if shown.dtype == np.float32:
        return torch.from_numpy(shown)
    pixels = torch.from_numpy(np.ascontiguousarray(shown.transpose(0, 3, 1, 2)))
    return pixels.float().div_(127.5).sub_(1)


def batches(config: TrainConfig, source: Source, start: int, rows: range) -> Iterator[Batch]:
    """The batches from step `start` to the last, of each these rows."""
    with ThreadPoolExecutor(max_workers=1) as ahead:
        following = ahead.submit(batch, config, source, start, rows)
        for step in range(start, config.steps):
            made = following.result()
            if step + 1 < config.steps:
                following = ahead.submit(batch, config, source, step + 1, rows)
            yield made
