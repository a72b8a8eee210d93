"""A small network that names the class of an emoji scene: the judge of what our models draw.

It has seen other scenes than they were trained on (`scripts/train-classifier` made it).

Shapes: B rows, C channels, h and w pixels, K classes.
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ditscope.core import strict_json
from ditscope.errors import BadCheckpoint
from ditscope.model.header import read_header
from ditscope.model.weights import load_into, load_weights, save_weights

SIZE = 64
"""Side of the pictures it has learned from."""

WIDTHS = (32, 64, 96, 128)
"""Channels of the stages; each halves the picture. The last is the number of features."""

FACTS = "ditscope_classifier"
"""Key of the file's metadata."""


class ClassifierFacts(BaseModel):
    """What the file of a classifier says of itself beside its weights."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    class_names: tuple[str, ...] = Field(min_length=2)
    training: dict[str, object]  # how the weights came about
    held_out_correct: int = Field(ge=0)  # of scenes that it has not learned from
    held_out_count: int = Field(ge=1)


class Block(nn.Module):
    """Two convolutions around a shortcut, at half the height and width."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, channels)
        self.shortcut = nn.Conv2d(channels_in, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C, h / 2, w / 2)."""
        inner = F.relu(self.norm1(self.conv1(x)))
        inner = self.norm2(self.conv2(inner))
        return F.relu(inner + self.shortcut(F.avg_pool2d(x, 2)))


class EmojiClassifier(nn.Module):
    """Pictures (B, 3, 64, 64) in [-1, 1] -> features (B, 128) and scores (B, K) before softmax.

    The features are what the last stage holds, averaged over the picture: the same number for an
    object at any place.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], 5, stride=2, padding=2)
        self.stages = nn.ModuleList(
            Block(before, after)
            for before, after in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)
        )
        self.head = nn.Linear(WIDTHS[-1], num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, h, w) -> (B, 128), (B, K)."""
        x = F.relu(self.stem(x))
        for stage in self.stages:
            x = stage(x)
        features = x.mean(dim=(2, 3))
        return features, self.head(features)


def bundled_classifier() -> Path:
    """The file that comes with the package."""
    return Path(str(files("ditscope") / "bundled" / "emoji-classifier.safetensors"))


def load_classifier(path: str | os.PathLike[str]) -> tuple[EmojiClassifier, ClassifierFacts]:
    """The network in `path`, in float32 and evaluation mode, and what the file says of it.

    Raises BadCheckpoint if it cannot be read safely or is no classifier.
    """
    said = read_header(path).metadata.get(FACTS)
    if said is None:
        raise BadCheckpoint(
            "is not the file of a classifier", file=path, field=FACTS, expected="its class names"
        )
    tree = strict_json.parse(said.encode(), file=path, error=BadCheckpoint)
    facts = strict_json.validated(
        ClassifierFacts, tree, file=path, field=FACTS, error=BadCheckpoint
    )
    with torch.device("meta"):
        network = EmojiClassifier(len(facts.class_names))
    load_into(network, load_weights(path), path)
    return network.eval(), facts


def save_classifier(
    path: str | os.PathLike[str], network: EmojiClassifier, facts: ClassifierFacts
) -> None:
    """Write the weights as bfloat16, with `facts` beside them. Raises ResourceError."""
    save_weights(
        path,
        network.state_dict(),
        dtype=torch.bfloat16,
        metadata={FACTS: facts.model_dump_json()},
    )
