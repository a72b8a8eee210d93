"""A training that takes a moment."""

from __future__ import annotations

from pathlib import Path

import torch

from ditscope.data.scenes import EmojiScenes
from ditscope.train.config import TrainConfig
from ditscope.train.journal import Progress
from ditscope.train.loop import Training

MODEL = {
    "input_size": 16,
    "patch_size": 4,
    "in_channels": 3,
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": EmojiScenes.num_classes,
    "learn_sigma": False,
}


def config(**changes: object) -> TrainConfig:
    settings: dict[str, object] = {
        "model": MODEL,
        "process": {"kind": "flow", "prediction": "x"},
        "batch_size": 8,
        "steps": 12,
        "optimizer": "muon",
        "learning_rate": 3e-3,
        "matrix_learning_rate": 5e-3,
        "warmup_steps": 2,
        "save_every": 4,
        "log_every": 4,
        **changes,
    }
    return TrainConfig.model_validate(settings)


def run(settings: TrainConfig, folder: Path) -> tuple[Training, list[Progress]]:
    lines: list[Progress] = []
    with Training(settings, folder) as training:
        training.run(lines.append)
    return training, lines


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
