"""Latents of an autoencoder on disk, in an order that is a function of two numbers.

latents/
  latents-00000.safetensors   mean, std (pictures, views, C, h, w); label (pictures,)
  manifest.json               what they are, with size and sha256 of every shard; written last

View 0 is the picture, view 1, if there is one, its mirror image: the latent of a mirrored picture
is not the mirrored latent.

Shapes: B rows of a batch; C channels; h, w the latent grid.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt

from ditscope.core import strict_json
from ditscope.core.atomic import file_sha256
from ditscope.core.manifest import Record
from ditscope.data.codecs import Latent
from ditscope.data.order import mirrored, posterior_noise, shuffled
from ditscope.errors import BadDataset, foreign

MANIFEST = "manifest.json"
FORMAT = "ditscope-latents"
MAX_MANIFEST_BYTES = 100_000_000
FLOATS = {"float32": np.float32, "float16": np.float16}


class Extraction(Record):
    """What decides the bytes of the shards."""

    data: str
    data_digest: str | None
    class_names: tuple[str, ...]
    image_size: tuple[PositiveInt, PositiveInt]  # height and width of the pictures, in pixels
    views: Literal[1, 2]
    dtype: Literal["float32", "float16"]
    codec: Latent
    autoencoder_sha256: str
    shard_pictures: PositiveInt


class Shard(Record):
    """One file of latents."""

    file: str = Field(pattern=r"^latents-\d{5,}\.safetensors$")
    size: PositiveInt
    sha256: str
    count: NonNegativeInt


class LatentManifest(Record):
    """`manifest.json` of a folder of latents."""

    format: Literal["ditscope-latents"] = FORMAT
    version: Literal[1] = 1
    extraction: Extraction
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]  # C, h, w
    left_out: tuple[tuple[str, str], ...]  # unreadable pictures, and why
    shards: tuple[Shard, ...]

    @property
    def count(self) -> int:
        """Pictures whose latents are there."""
        return sum(shard.count for shard in self.shards)


def read_manifest(folder: str | os.PathLike[str]) -> LatentManifest:
    """The manifest of a folder of latents.

    Raises:
        BadDataset: there is none, it is damaged, or of another format or version.
    """
    file = Path(folder) / MANIFEST
    tree = strict_json.read(file, error=BadDataset, max_bytes=MAX_MANIFEST_BYTES)
    return strict_json.validated(LatentManifest, tree, file=file, error=BadDataset)


class LatentFolder:
    """Latents 0, 1, 2, ... without end: every epoch shows each picture once, in its own order.

    The latent of a picture is drawn from its posterior, `(mean + std * noise) * scale`, with noise
    that is a function of (seed, i): so it is another one in every epoch, and always the same for
    one i. With `flip` and two views, half of the pictures are mirrored.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, seed: int = 0, flip: bool = False
    ) -> None:
        """Open the manifest; each shard is checked against its checksum when first needed.

        Raises:
            BadDataset: as `read_manifest`, or a shard is missing or of another size, or there are
                no latents.
        """
        self.folder, self.seed = Path(folder), seed
        self.manifest = read_manifest(folder)
        extraction = self.manifest.extraction
        self.class_names, self.codec = extraction.class_names, extraction.codec
        self.flip = flip and extraction.views == 2
        for shard in self.manifest.shards:
            _check_size(self.folder / shard.file, shard.size)
        self._ends = np.cumsum([shard.count for shard in self.manifest.shards])
        if not self.manifest.count:
            raise BadDataset("holds no latents", file=self.folder)
        self._order = lru_cache(maxsize=2)(lambda epoch: shuffled(seed, epoch, len(self)))
        self._open: dict[int, Any] = {}  # safetensors' handle of a shard
        self._files = ExitStack()

    def __len__(self) -> int:
        """Number of pictures: latents of an epoch."""
        return self.manifest.count

    def close(self) -> None:
        """Let the files go."""
        self._open.clear()
        self._files.close()

    def digest(self) -> str:
        """SHA-256 of the checksums of all shards, and of what they are."""
        return hashlib.sha256(self.manifest.model_dump_json().encode()).hexdigest()

    def batch(self, indices: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Latents (B, C, h, w), scaled, and labels (B,) of pictures `indices`.

        Raises:
            BadDataset: a shard differs from its checksum, or does not hold what the manifest says.
        """
        found = [self._latent(index) for index in indices]
        labels = np.array([label for _, label in found], np.int64)
        return np.stack([latent for latent, _ in found]), labels

    def _latent(self, index: int) -> tuple[NDArray[np.float32], int]:
        epoch, place = divmod(index, len(self))
        number = int(self._order(epoch)[place])
        which = int(np.searchsorted(self._ends, number, side="right"))
        row = number - int(self._ends[which - 1]) if which else number
        shard = self._shard(which)
        view = int(self.flip and mirrored(self.seed, index))
        mean, std = (
            shard.get_slice(name)[row, view].astype(np.float32) for name in ("mean", "std")
        )
        noise = posterior_noise(self.seed, index, self.manifest.shape)
        latent = (mean + std * noise) * np.float32(self.codec.scale)
        return latent, int(shard.get_slice("label")[row])

    def _shard(self, which: int) -> Any:
        if which not in self._open:
            shard = self.manifest.shards[which]
            path = self.folder / shard.file
            _check_size(path, shard.size)
            found = file_sha256(path)
            if found != shard.sha256:
                raise BadDataset(
                    f"is damaged: sha256 {found}",
                    file=path,
                    expected=f"sha256 {shard.sha256}",
                    fix="extract it anew: remove this file and manifest.json, repeat the command",
                )
            self._open[which] = self._checked(path, shard.count)
        return self._open[which]

    def _checked(self, path: Path, count: int) -> Any:
        extraction = self.manifest.extraction
        latents = [count, extraction.views, *self.manifest.shape]
        try:
            shard = self._files.enter_context(safetensors.safe_open(path, framework="numpy"))
            shapes = {name: shard.get_slice(name).get_shape() for name in ("mean", "std", "label")}
            labels = shard.get_tensor("label")
        except (safetensors.SafetensorError, OSError) as reason:
            raise BadDataset(f"cannot be read: {foreign(reason)}", file=path) from None
        if shapes != {"mean": latents, "std": latents, "label": [count]}:
            raise BadDataset(f"holds {shapes}", file=path, expected=f"latents {latents}")
        if count and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            expected = f"labels from 0 to {len(self.class_names) - 1}"
            raise BadDataset("holds labels of no class", file=path, expected=expected)
        return shard


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as reason:
        raise BadDataset(f"cannot be read: {reason.strerror}", file=path) from None
    if found != size:
        raise BadDataset(
            f"has {found:,} bytes", file=path, expected=f"{size:,}, as the manifest says"
        )
