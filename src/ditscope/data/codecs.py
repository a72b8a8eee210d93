"""Between latents and pictures.

Shapes: B rows, C channels, h and w the latent grid; pictures are (B, height, width, 3) uint8.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ditscope.core import strict_json
from ditscope.errors import BadCheckpoint, foreign

DECODED_AT_A_TIME = 4
"""Latents an autoencoder decodes at once: it needs far more memory than the network."""


class RGB(BaseModel):
    """The latent is the picture: three channels in [-1, 1]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["rgb"] = "rgb"


class Latent(BaseModel):
    """Latents of an autoencoder, multiplied by `scale`. `autoencoder` is a diffusers folder.

    Without a folder a run is recorded as usual, but no pictures can be made.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["latent"] = "latent"
    scale: float = Field(default=0.18215, gt=0)
    autoencoder: str | None = None


class Codec(Protocol):
    """What a pipeline needs of a codec."""

    config: RGB | Latent

    @property
    def decodes(self) -> bool:
        """Whether `decode` makes pictures here."""
        ...

    def decode(self, latents: Tensor) -> NDArray[np.uint8] | None:
        """Pictures of latents (B, C, h, w), or None where nothing can decode them."""
        ...


class RGBCodec:
    """Pixels are rounded half up from [-1, 1] to 0-255, and clamped."""

    config = RGB()
    decodes = True

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """(B, 3, h, w) -> (B, h, w, 3) uint8."""
        return _pixels(latents)


class LatentCodec:
    """An autoencoder of diffusers (`AutoencoderKL`), loaded from a folder when first needed."""

    def __init__(self, config: Latent, folder: Path | None) -> None:
        """`folder` is where the autoencoder is; None means that there is none."""
        self.config = config
        self.folder = folder
        self._autoencoder: torch.nn.Module | None = None

    @property
    def decodes(self) -> bool:
        """Whether there is an autoencoder."""
        return self.folder is not None

    def decode(self, latents: Tensor) -> NDArray[np.uint8] | None:
        """(B, C, h, w) -> (B, 8 h, 8 w, 3) uint8 for the usual autoencoder; None without one."""
        if self.folder is None:
            return None
        autoencoder = self._loaded(self.folder).to(latents.device)
        parts = latents.float().div(self.config.scale).split(DECODED_AT_A_TIME)
        with torch.inference_mode():
            return np.concatenate([_pixels(autoencoder.decode(part).sample) for part in parts])  # type: ignore[operator]

    def _loaded(self, folder: Path) -> torch.nn.Module:
        if self._autoencoder is None:
            from diffusers import AutoencoderKL

            try:
                self._autoencoder = AutoencoderKL.from_pretrained(
                    folder, use_safetensors=True, local_files_only=True, torch_dtype=torch.float32
                ).eval()
            except (OSError, ValueError, RuntimeError) as reason:
                problem = f"no autoencoder can be loaded: {foreign(reason)}"
                raise BadCheckpoint(problem, file=folder) from None
        return self._autoencoder


def codec(config: dict[str, object], base: str | os.PathLike[str]) -> Codec:
    """The codec a pipeline's configuration asks for; relative folders are relative to `base`.

    Raises:
        BadCheckpoint: the configuration is of no known codec, or names an autoencoder that is outside `base` or does not exist.
    """
    kind = RGB if config.get("kind") == "rgb" else Latent
    parsed = strict_json.validated(kind, config, file=base, field="codec", error=BadCheckpoint)
    if isinstance(parsed, RGB):
        return RGBCodec()
    if parsed.autoencoder is None:
        return LatentCodec(parsed, None)
    folder = (Path(base) / parsed.autoencoder).resolve()
    if not folder.is_relative_to(Path(base).resolve()) or not folder.is_dir():
        problem = f"{foreign(parsed.autoencoder)} is not a folder in the pipeline"
        raise BadCheckpoint(problem, file=base, field="codec.autoencoder")
    return LatentCodec(parsed, folder)


def _pixels(pictures: Tensor) -> NDArray[np.uint8]:
    scaled = pictures.float().mul(127.5).add(128).clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
