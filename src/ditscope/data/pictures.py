"""A folder of class folders of pictures, in an order that is a function of two numbers.

    photos/
      cat/  001.jpg  more/002.png
      dog/  001.jpg

Shapes: B rows of a batch; h, w pixels of a picture.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ditscope.data.order import mirrored, shuffled
from ditscope.errors import BadDataset, foreign, listed

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""What the content of a file may be, whatever its name says."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
"""Other files are not looked at."""

MAX_PIXELS = 100_000_000
"""Larger pictures are refused by their header, before memory is asked for."""

Labelled = tuple[NDArray[np.uint8], int]
"""A picture (h, w, 3) and its label."""

DECODERS = 4
"""Pictures that are read at once; decoding runs outside the interpreter's lock."""


class UnreadablePicture(Exception):
    """Why one file is no picture; it is counted and left out."""


class PictureFolder:
    """Pictures 0, 1, 2, ... without end: every epoch shows each file once, in an order of its own.

    Each picture is scaled to cover (h, w), bicubic, and cut to it around the middle; with `flip`,
    half are mirrored. Transparency is laid over white. Files that cannot be read are listed in
    `bad`, and the next file of the epoch takes their place, so picture i is a pure function of the
    files, (seed, i) and the size. Links are not followed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        size: tuple[int, int],
        seed: int = 0,
        flip: bool = False,
        max_bad: int = 100,
    ) -> None:
        """Pictures of `size` (h, w) pixels; more than `max_bad` unreadable files are an error.

        Raises:
            BadDataset: there is no such folder, it holds no class folders, or one of them holds no
                pictures.
        """
        self.folder = Path(folder)
        self.size, self.seed, self.flip, self.max_bad = size, seed, flip, max_bad
        self.class_names, self._files, self._labels = labelled_files(self.folder)
        self.bad: dict[Path, str] = {}
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        """Number of files: pictures of an epoch."""
        return len(self._files)

    def digest(self) -> str:
        """SHA-256 of the names and sizes of all files: changes when pictures come or go."""
        digest = hashlib.sha256()
        for file in self._files:
            name = file.relative_to(self.folder).as_posix()
            digest.update(f"{name}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def batch(self, indices: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images (B, h, w, 3) uint8 RGB and labels (B,) int64 of pictures `indices`.

        Raises:
            BadDataset: more than `max_bad` files cannot be read, or none can.
        """
        with ThreadPoolExecutor(max_workers=DECODERS) as decoders:
            found = list(decoders.map(self._picture, indices))
        if len(self.bad) > self.max_bad:
            named = {str(file.relative_to(self.folder)): why for file, why in self.bad.items()}
            raise too_many_bad(named, self.max_bad, self.folder)
        labels = np.array([label for _, label in found], np.int64)
        return np.stack([image for image, _ in found]), labels

    def _picture(self, index: int) -> tuple[NDArray[np.uint8], int]:
        epoch, place = divmod(index, len(self))
        order = self._order(epoch)
        for step in range(len(self)):
            number = int(order[(place + step) % len(self)])
            file = self._files[number]
            if file in self.bad:
                continue
            try:
                image = read_picture(file, self.size)
            except UnreadablePicture as reason:
                self.bad[file] = str(reason)
                if len(self.bad) > self.max_bad:
                    break
                continue
            turned = self.flip and mirrored(self.seed, index)
            return (image[:, ::-1] if turned else image), self._labels[number]
        return np.zeros((*self.size, 3), np.uint8), 0  # never seen: `batch` raises

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return shuffled(self.seed, epoch, len(self))

    def pictures(self, start: int) -> Iterator[tuple[str, Callable[[], Labelled]]]:
        """File by file from number `start` on: its name, and what reads it unmirrored.

        The second raises UnreadablePicture.
        """
        for file, label in zip(self._files[start:], self._labels[start:], strict=True):
            name = file.relative_to(self.folder).as_posix()
            yield name, lambda file=file, label=label: (read_picture(file, self.size), label)


def too_many_bad(bad: Mapping[str, str], most: int, place: str | os.PathLike[str]) -> BadDataset:
    """What to raise when more than `most` pictures cannot be read; `bad` says which, and why."""
    first = [f"{name} ({why})" for name, why in list(bad.items())[:3]]
    return BadDataset(
        f"pictures that cannot be read: {len(bad)}, such as {listed(first)}",
        file=place,
        expected=f"at most {most}",
        fix="remove them, or allow more with max_bad_pictures",
    )


def read_picture(file: Path | BytesIO, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """The picture in `file`, upright, cut to `size` (h, w) if that is given: (h, w, 3) uint8 RGB.

    The first frame of an animation; 16-bit grey is scaled to 8 bits. Raises UnreadablePicture.
    """
    try:
        with Image.open(file, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise UnreadablePicture(f"{opened.width} x {opened.height} pixels")
            return pixels_of(opened, size)
    except UnreadablePicture:
        raise
    except Image.UnidentifiedImageError:
        raise UnreadablePicture(f"is none of {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as reason:
        raise UnreadablePicture(foreign(reason)) from None
    except Exception as reason:  # decoders meet broken data with errors of every type
        raise UnreadablePicture(f"{type(reason).__name__}: {foreign(reason)}") from None


def pixels_of(opened: Image.Image, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """A picture of Pillow, upright, cut to `size` (h, w) if that is given: (h, w, 3) uint8 RGB."""
    upright = _rgb(ImageOps.exif_transpose(opened))
    return np.asarray(upright if size is None else fitted(upright, size), np.uint8)


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture scaled to cover `size` (h, w) and cut to it around the middle.

    Bicubic; where it shrinks, all pixels count (antialiased).
    """
    return ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; the library would clip it
        grey = np.asarray(image, np.float64) / 257
        return Image.fromarray(grey.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def labelled_files(folder: Path) -> tuple[tuple[str, ...], list[Path], list[int]]:
    """Class names in the order of the alphabet, files, and the label of each file.

    Raises BadDataset if there is no such folder, it holds no class folders, or one is empty.
    """
    try:
        classes = sorted(
            entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)
        )
    except OSError as reason:
        raise BadDataset(f"cannot be read: {reason.strerror}", file=folder) from None
    if not classes:
        raise BadDataset("holds no folders", file=folder, expected="one folder of pictures a class")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        own = sorted(picture_files(folder / name))
        if not own:
            kinds = ", ".join(sorted(SUFFIXES))
            raise BadDataset("holds no pictures", file=folder / name, expected=f"files {kinds}")
        files += own
        labels += [label] * len(own)
    return tuple(classes), files, labels


def picture_files(folder: Path) -> list[Path]:
    """Files anywhere below `folder` that are named as pictures, in no order; no links."""
    return [
        Path(place) / name
        for place, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not (Path(place) / name).is_symlink()
    ]
