"""Pictures as a user hands them over: arrays, files, pictures of Pillow, or emoji scenes.

Shapes: S pictures; h, w pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ditscope.data.pictures import UnreadablePicture, pixels_of, read_picture
from ditscope.data.scenes import Scene
from ditscope.errors import BadDataset, BadRequest, foreign

Picture = Scene | Image.Image | NDArray[np.uint8] | str | os.PathLike[str]
"""A scene, a picture of Pillow, (h, w, 3) uint8, or the path of a file."""


@dataclass(frozen=True)
class Given:
    """Pictures of one size, and what is known about them."""

    pixels: NDArray[np.uint8]  # (S, h, w, 3)
    masks: NDArray[np.float32] | None  # (S, h, w), share of each pixel covered: of scenes alone
    scene_labels: tuple[int | None, ...]  # class of each scene in the list of all scenes' classes


def given_pictures(images: Iterable[Picture], size: tuple[int, int]) -> Given:
    """Pictures of `size` (h, w).

    Files and pictures of Pillow are scaled to cover it and cut around the middle, as in training;
    arrays and scenes must have it.

    Raises:
        BadRequest: none, or one of another kind, size or number type.
        BadDataset: a file that cannot be read as a picture.
    """
    if isinstance(images, str | os.PathLike | Scene | Image.Image):
        images = [images]
    if isinstance(images, np.ndarray) and images.ndim == 3:
        images = [images]
    given = list(images)
    if not given:
        raise BadRequest("found none", field="images", expected="one picture or more")
    pixels = np.stack([_pixels(each, size, number) for number, each in enumerate(given)])
    scenes = [each if isinstance(each, Scene) else None for each in given]
    masks = [scene.mask for scene in scenes if scene is not None]
    whole = np.stack(masks) if len(masks) == len(given) else None
    return Given(pixels, whole, tuple(None if each is None else each.label for each in scenes))


def _pixels(picture: object, size: tuple[int, int], number: int) -> NDArray[np.uint8]:
    if isinstance(picture, str | os.PathLike):
        try:
            if not Path(picture).is_file():
                raise BadDataset("is no file", file=picture)
            return read_picture(Path(picture), size)
        except UnreadablePicture as reason:
            raise BadDataset(f"is no picture: {reason}", file=picture) from None
    if isinstance(picture, Image.Image):
        try:
            return pixels_of(picture, size)
        except Exception as reason:  # decoders meet broken data with errors of every type
            raise BadDataset(f"picture {number} cannot be read: {foreign(reason)}") from None
    found = picture.image if isinstance(picture, Scene) else np.asarray(picture)
    if found.dtype != np.uint8 or found.shape != (*size, 3):
        kind = foreign(type(picture).__name__) if found.ndim < 2 else f"{found.dtype}"
        raise BadRequest(
            f"picture {number} is {kind} of shape {found.shape}",
            field="images",
            expected=f"uint8 of shape {(*size, 3)}, a picture of Pillow, or a file",
        )
    return found
