"""How the classifier of emoji scenes is made: minutes on one core, resumable.

Shapes: B rows, h and w pixels, K classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ditscope.data.scenes import EmojiScenes
from ditscope.errors import BadCheckpoint, NumericalError
from ditscope.evaluation.classifier import (
    SIZE,
    ClassifierFacts,
    EmojiClassifier,
    save_classifier,
)
from ditscope.model.weights import load_into
from ditscope.pipeline import default_dtype
from ditscope.train.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from ditscope.train.ema import update_ema
from ditscope.train.optimizer import load_state_tensors, state_tensors

TRAINING_SEED = 1_000_001
"""Scenes that the classifier learns from. Models are trained on those of small seeds."""

HELD_OUT_SEED = 1_000_002
"""Scenes that it is judged by."""

RATE, WARMUP, WEIGHT_DECAY, DECAY = 2e-3, 100, 0.05, 0.998
NOISE = 0.1
"""Largest standard deviation of noise in a picture (of 2): drawn pictures are less clean."""

BATCH = 64
SAVE_EVERY = 250

Report = Callable[[int, float], None]
"""Called after every step with the number of steps done and the loss."""


def make_classifier(
    folder: Path, output: Path, steps: int, *, held_out: int, report: Report | None = None
) -> ClassifierFacts:
    """Train, judge by `held_out` scenes that were not learned from, and write the file `output`.

    What is judged is the file: the weights as rounded to bfloat16. Raises as `train_classifier`.
    """
    network = train_classifier(folder, steps, report=report)
    with torch.no_grad():
        for weights in network.parameters():
            weights.copy_(weights.bfloat16())
    facts = ClassifierFacts(
        class_names=EmojiScenes.class_names,
        training={
            "scenes_seed": TRAINING_SEED,
            "held_out_seed": HELD_OUT_SEED,
            "steps": steps,
            "pictures": steps * BATCH,
            "noise": NOISE,
        },
        held_out_correct=correct(network, HELD_OUT_SEED, held_out),
        held_out_count=held_out,
    )
    save_classifier(output, network, facts)
    return facts


def train_classifier(
    folder: Path, steps: int, *, batch_size: int = BATCH, report: Report | None = None
) -> EmojiClassifier:
    """Train for `steps` in all, going on from the newest whole checkpoint in `folder`.

    AdamW with a cosine schedule, cross-entropy with labels smoothed by 0.05, bfloat16 autocast
    where that is fast; the result is the running average of the weights. The same steps give the
    same weights on one kind of machine, in one go or in several.

    Raises:
        BadCheckpoint: what `folder` holds is of another network, or further on than `steps`.
        NumericalError: the loss is not finite.
        ResourceError: a checkpoint cannot be written.
    """
    torch.manual_seed(TRAINING_SEED)
    scenes = EmojiScenes(seed=TRAINING_SEED, size=SIZE)
    network = EmojiClassifier(scenes.num_classes).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network)
    adamw = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    made: dict[str, torch.optim.Optimizer] = {"adamw": adamw}
    folder.mkdir(parents=True, exist_ok=True)
    found, _ = newest_checkpoint(folder)
    start = 0
    if found is not None:
        start = found.step
        load_into(network, found.model, folder)
        load_into(average, found.ema, folder)
        load_state_tensors(made, found.optimizer)
    if start > steps:
        raise BadCheckpoint(f"has {start} steps", file=folder, expected=f"at most {steps}")
    low = default_dtype(torch.device("cpu")) == "bfloat16"
    for step in range(start, steps):
        for group in adamw.param_groups:
            group["lr"] = RATE * share_of_rate(step, steps)
        images, labels = training_batch(scenes, step, batch_size)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            _, scores = network(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(scores.float(), labels, label_smoothing=0.05)
        if not math.isfinite(loss.item()):
            raise NumericalError(f"the loss of step {step} is {loss.item()}", file=folder)
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adamw.step()
        update_ema(average, network, step, DECAY)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            seen = (step + 1) * batch_size
            parts = (network.state_dict(), average.state_dict(), state_tensors(made))
            save_checkpoint(folder, Checkpoint(step + 1, seen, *parts))
        if report is not None:
            report(step + 1, loss.item())
    return average.eval()


def share_of_rate(step: int, steps: int) -> float:
    """Share of the learning rate at `step`: a linear rise, then half a cosine down to zero."""
    rise = min(1.0, (step + 1) / WARMUP)
    return rise * (1 + math.cos(math.pi * step / steps)) / 2


def training_batch(scenes: EmojiScenes, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, h, w) float32 with noise on them, and labels (B,), of one step."""
    first = step * batch_size
    images, labels, _ = scenes.batch(range(first, first + batch_size))
    clean = as_input(images)
    random = torch.Generator().manual_seed(TRAINING_SEED + step)
    deviations = NOISE * torch.rand(len(clean), 1, 1, 1, generator=random)
    noise = torch.randn(clean.shape, generator=random)
    return clean + deviations * noise, torch.from_numpy(labels)


def as_input(images: NDArray[np.uint8]) -> Tensor:
    """(B, h, w, 3) uint8 -> (B, 3, h, w) float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return pixels.float().div_(127.5).sub_(1)


@torch.inference_mode()
def correct(network: EmojiClassifier, seed: int, count: int) -> int:
    """How many of the first `count` scenes of `seed` get their class as the highest score."""
    scenes = EmojiScenes(seed=seed, size=SIZE)
    right = 0
    for first in range(0, count, BATCH):
        images, labels, _ = scenes.batch(range(first, min(first + BATCH, count)))
        _, scores = network(as_input(images))
        right += int((scores.argmax(dim=1) == torch.from_numpy(labels)).sum())
    return right
