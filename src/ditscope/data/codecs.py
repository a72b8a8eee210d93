"""Between latents and pictures.

Shapes: B rows, C channels, h and w the latent grid; pictures are (B, height, width, 3) uint8.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ditscope.core import strict_json
from ditscope.core.pipeline_config import AUTOENCODER_FILES, refuse_code
from ditscope.errors import BadCheckpoint, BadRequest, foreign

PREVIEW = (
    (0.298, 0.207, 0.208),
    (0.187, 0.286, 0.173),
    (-0.158, 0.189, 0.264),
    (-0.184, -0.271, -0.473),
)
"""Colour of each of the four channels of Stable Diffusion's autoencoder, fitted by its users."""

DECODED_AT_A_TIME = 4
"""Latents an autoencoder decodes at once: it needs far more memory than the network."""


class RGB(BaseModel):
    """The latent is the picture: three channels in [-1, 1]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["rgb"] = "rgb"


class Latent(BaseModel):
    """Latents of an autoencoder, multiplied by `scale`. `autoencoder` is a diffusers folder.

    Without a folder the pictures are linear previews of the latents.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["latent"] = "latent"
    scale: float = Field(default=0.18215, gt=0)
    autoencoder: str | None = None


class Codec(Protocol):
    """What a pipeline needs of a codec."""

    @property
    def config(self) -> RGB | Latent:
        """What the pipeline's configuration says of it."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about the pictures."""
        ...

    @property
    def pixels_per_latent(self) -> int:
        """Pixels, each way, that one place of the latent grid stands for. Raises BadRequest."""
        ...

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Pictures (B, height, width, 3) uint8 of latents (B, C, h, w)."""
        ...

    def encode(self, pictures: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
        """Latents (B, C, h, w) float32, on the CPU, of pictures (B, height, width, 3).

        Raises BadRequest without an autoencoder.
        """
        ...


class RGBCodec:
    """Pixels are rounded half up from [-1, 1] to 0-255, and clamped."""

    config = RGB()
    notes = ()
    pixels_per_latent = 1

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """(B, 3, h, w) -> (B, h, w, 3) uint8."""
        return _pixels(latents)

    def encode(self, pictures: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
        """(B, h, w, 3) -> (B, 3, h, w) in [-1, 1], as in training."""
        pixels = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
        return pixels.float().div_(127.5).sub_(1)


class LatentCodec:
    """An autoencoder of diffusers (`AutoencoderKL`), loaded from a folder when first needed."""

    def __init__(self, config: Latent, folder: Path | None) -> None:
        """`folder` is where the autoencoder is; None means that there is none."""
        self.config = config
        self.folder = folder
        self._autoencoder: Any = None  # torch.nn.Module; diffusers types it as less

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about the pictures."""
        missing = "no autoencoder: pictures are rough previews of the latents, one pixel each"
        return () if self.folder else (missing,)

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """(B, C, h, w) -> (B, 8 h, 8 w, 3) uint8 usually, (B, h, w, 3) without an autoencoder."""
        if self.folder is None:
            return _pixels(_preview(latents.float() / self.config.scale))
        autoencoder = self._loaded(self.folder).to(latents.device)
        parts = latents.float().div(self.config.scale).split(DECODED_AT_A_TIME)
        with torch.inference_mode():
            return np.concatenate([_pixels(autoencoder.decode(part).sample) for part in parts])

    @property
    def pixels_per_latent(self) -> int:
        """Each level of the autoencoder but the last halves the picture. Raises BadRequest."""
        return 2 ** (len(self._loaded(self._present()).config.block_out_channels) - 1)

    def encode(self, pictures: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
        """The mean of the posterior times `scale`, a few pictures at a time. Raises BadRequest."""
        self._present()
        starts = range(0, len(pictures), DECODED_AT_A_TIME)
        parts = [pictures[start : start + DECODED_AT_A_TIME] for start in starts]
        return torch.cat([self.posterior(part, device)[0] for part in parts]) * self.config.scale

    def _present(self) -> Path:
        if self.folder is None:
            raise BadRequest(
                "this model has no autoencoder, so pictures cannot become latents",
                field="images",
                expected="a model folder with its autoencoder in it",
            )
        return self.folder

    @torch.inference_mode()
    def posterior(
        self, pictures: NDArray[np.uint8], device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of pictures (B, height, width, 3).

        Returns:
            Two float32 tensors (B, C, h, w) on the CPU, not multiplied by `scale`.
        """
        assert self.folder is not None
        autoencoder = self._loaded(self.folder).to(device)
        pixels = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2)
        found = autoencoder.encode(pixels.float() / 127.5 - 1).latent_dist
        return found.mean.float().cpu(), found.std.float().cpu()

    def _loaded(self, folder: Path) -> Any:
        if self._autoencoder is None:
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

            try:
                self._autoencoder = AutoencoderKL.from_pretrained(
                    folder, use_safetensors=True, local_files_only=True, torch_dtype=torch.float32
                ).eval()
            except (OSError, ValueError, RuntimeError) as reason:
                problem = f"no autoencoder can be loaded: {foreign(reason)}"
                raise BadCheckpoint(problem, file=folder) from None
        return self._autoencoder


def autoencoder_codec(folder: str | os.PathLike[str]) -> LatentCodec:
    """The codec of an `AutoencoderKL` folder of diffusers, such as the `vae` of a pipeline.

    Raises:
        BadCheckpoint: there are no such files, or its latents are shifted or scaled by channel as
            no codec of ours does.
    """
    folder = Path(folder)
    for name in AUTOENCODER_FILES:
        if not (folder / name).is_file():
            raise BadCheckpoint(
                f"holds no {name}", file=folder, expected="an AutoencoderKL folder of diffusers"
            )
    file = folder / AUTOENCODER_FILES[0]
    tree = strict_json.read(file, error=BadCheckpoint)
    refuse_code(tree, file)
    for name in ("shift_factor", "latents_mean", "latents_std"):
        if tree.get(name) not in (None, 0, 0.0):
            raise BadCheckpoint(
                f"found {foreign(tree[name])}",
                file=file,
                field=name,
                expected="none: latents here are multiplied by one number",
            )
    described = {"scale": tree.get("scaling_factor", 0.18215), "autoencoder": str(folder)}
    config = strict_json.validated(Latent, described, file=file, error=BadCheckpoint)
    return LatentCodec(config, folder)


def absolute_codec(config: RGB | Latent) -> Codec:
    """The codec whose autoencoder, if it is still there, lies where its configuration says."""
    if isinstance(config, RGB):
        return RGBCodec()
    folder = Path(config.autoencoder) if config.autoencoder else None
    whole = folder is not None and all((folder / name).is_file() for name in AUTOENCODER_FILES)
    return LatentCodec(config, folder if whole else None)


def codec(config: dict[str, object], base: str | os.PathLike[str]) -> Codec:
    """The codec a pipeline's configuration asks for; relative folders are relative to `base`.

    Raises:
        BadCheckpoint: the configuration is of no known codec, or names an autoencoder that is
            outside `base` or does not exist.
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


def _preview(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, 3, h, w), about -1 to 1. Unknown latents show their first channels."""
    if latents.shape[1] != len(PREVIEW):
        return latents[:, [0, 1 % latents.shape[1], 2 % latents.shape[1]]] / 3
    colours = torch.tensor(PREVIEW, device=latents.device)
    return torch.einsum("bchw,cr->brhw", latents, colours)


def _pixels(pictures: Tensor) -> NDArray[np.uint8]:
    scaled = pictures.float().mul(127.5).add(128).clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
