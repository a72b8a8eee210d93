"""A feature extractor of known numbers: what users give in the place of an Inception network."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ColourMeans(nn.Module):
    """Mean and mean square of each colour: features (B, 6); scores (B, 5) tell the red."""

    pixels = "unit"
    class_names = ("ant", "bee", "cat", "dog", "eel")

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.arange(5) / 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, h, w) -> (B, 6), (B, 5)."""
        mean = x.mean(dim=(2, 3))
        features = torch.cat([mean, (x**2).mean(dim=(2, 3))], dim=1)
        return features, -((mean[:, :1] - self.levels) ** 2)


class LikeInception(nn.Module):
    """As the usual Inception file: whole numbers in, scores unless features are asked for."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        """(B, 3, h, w) uint8 -> (B, 3) either way."""
        features = x.float().mean(dim=(2, 3))
        return features if return_features else features.softmax(dim=1)


class Failing:
    """Cannot be made."""

    def __init__(self) -> None:
        raise OSError("no weights here")


NOT_A_NETWORK = 7


def silent(x: Tensor) -> Tensor:
    """Says nothing of the pixels that it takes."""
    return x.flatten(1).float()[:, :3]


def broken(x: Tensor) -> Tensor:
    """Returns one number for all pictures."""
    return x.sum()


def infinite(x: Tensor) -> Tensor:
    """Returns Inf."""
    return torch.full((len(x), 2), torch.inf)


broken.pixels = infinite.pixels = "uint8"  # type: ignore[attr-defined]
