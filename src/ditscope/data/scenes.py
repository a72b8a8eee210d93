"""Emoji scenes: endless labelled pictures with exact object masks, each a function of two numbers.

    scenes = EmojiScenes(seed=0)
    picture = scenes.scene(7)          # always the same picture
    images, labels, masks = scenes.batch(range(64))

Shapes: B rows of a batch; h, w pixels of a picture.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from ditscope.data.archive import sprite_at
from ditscope.data.classes import CLASSES, STYLES
from ditscope.data.landscape import landscape
from ditscope.errors import BadRequest, foreign

SMALLEST, LARGEST = 16, 512
"""Side of a picture in pixels: below, nothing can be told; above, the sprites are too coarse."""

EXTENT = (0.6, 0.86)
"""Longer side of the object as a share of the picture: 38 to 55 of 64 pixels."""

MARGIN = 1 / 32
"""Free border around the object as a share of the picture: 2 of 64 pixels."""

_PICTURE, _DECK = 0, 1  # independent random streams under one seed


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture of one object, with all that is known about it.

    Attributes:
        image: (h, w, 3) uint8 RGB.
        mask: (h, w) float32, the share of each pixel that the object covers (0-1).
        label: position of the class in `EmojiScenes.class_names`.
        style: position of the drawing style in `EmojiScenes.style_names`.
        box: (top, left, bottom, right) of the object in pixels; bottom and right are exclusive.
        mirrored: whether the object is drawn as in a mirror.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.float32]
    label: int
    style: int
    box: tuple[int, int, int, int]
    mirrored: bool


class EmojiScenes:
    """Scenes 0, 1, 2, ...: any one of them, in any order, in any process, is always the same.

    Every `num_classes * len(style_names)` consecutive scenes, counted from 0, show each class in
    each style exactly once, in an order of their own; so labels are balanced at every scale.
    The random numbers are the raw output of Philox, which numpy promises never to change.
    """

    class_names: tuple[str, ...] = tuple(entry.name for entry in CLASSES)
    style_names: tuple[str, ...] = STYLES
    num_classes: int = len(CLASSES)

    def __init__(self, seed: int = 0, size: int = 64, num_classes: int = len(CLASSES)) -> None:
        """Scenes of `size` by `size` pixels; another size shows the same scenes, only rescaled.

        They show the first `num_classes` classes: with the number there was when a network was
        trained, they are the scenes it was trained on, whatever classes have come since.

        Raises:
            BadRequest: the seed is not in [0, 2**64), the size not in [16, 512], or there are not
                so many classes.
        """
        self.seed = _in_range("seed", seed, 0, 2**64 - 1)
        self.size = _in_range("size", size, SMALLEST, LARGEST)
        self.num_classes = _in_range("num_classes", num_classes, 1, len(CLASSES))
        self.class_names = self.class_names[: self.num_classes]

    def scene(self, index: int, label: int | None = None) -> Scene:
        """Scene `index`; with `label`, the same scene but showing that class.

        Raises:
            BadRequest: the index is not in [0, 2**63) or the label not in [0, num_classes).
        """
        index = _in_range("index", index, 0, 2**63 - 1)
        block, position = divmod(index, self.num_classes * len(STYLES))
        dealt, style = divmod(_deck(self.seed, block, self.num_classes)[position], len(STYLES))
        shown = dealt if label is None else _in_range("label", label, 0, self.num_classes - 1)

        numbers = iter(_uniforms(self.seed, index, _PICTURE, 16).tolist())

        def uniform(low: float, high: float) -> float:
            return low + (high - low) * next(numbers)

        # The object draws first, so that a change to the landscape would not move it.
        extent = int(uniform(*EXTENT) * self.size)
        mirrored = uniform(0, 1) < 0.5
        sprite = sprite_at(shown, style, extent)[:, :: -1 if mirrored else 1]
        height, width = sprite.shape[:2]
        margin = int(MARGIN * self.size)
        top = int(uniform(margin, self.size - margin - height + 1))
        left = int(uniform(margin, self.size - margin - width + 1))
        box = (top, left, top + height, left + width)

        picture = landscape(self.size, uniform)
        coverage = sprite[..., 3] / np.float32(255)
        mask = np.zeros((self.size, self.size), np.float32)
        mask[top : top + height, left : left + width] = coverage
        behind = picture[top : top + height, left : left + width]
        behind *= 1 - coverage[..., None]
        behind += sprite[..., :3]
        image = (picture + np.float32(0.5)).astype(np.uint8)
        return Scene(image, mask, shown, style, box, mirrored)

    def batch(
        self, indices: Iterable[int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]:
        """Images (B, h, w, 3) uint8, labels (B,) int64 and masks (B, h, w) float32 of `indices`.

        Raises:
            BadRequest: an index is out of range, or there is none.
        """
        scenes = [self.scene(index) for index in indices]
        if not scenes:
            raise BadRequest("a batch of no scenes", field="indices", expected="at least one index")
        images = np.stack([scene.image for scene in scenes])
        labels = np.array([scene.label for scene in scenes], np.int64)
        return images, labels, np.stack([scene.mask for scene in scenes])


def _in_range(field: str, value: SupportsIndex, low: int, high: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        expected = f"a whole number from {low} to {high}"
        raise BadRequest(f"found {foreign(value)}", field=field, expected=expected)
    return number


def _uniforms(seed: int, index: int, stream: int, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1), a function of the arguments only."""
    key = np.array([seed, index], np.uint64)
    bits = np.random.Philox(key=key, counter=[0, 0, 0, stream]).random_raw(count)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=1024)
def _deck(seed: int, block: int, num_classes: int) -> tuple[int, ...]:
    """Every (class, style), as `label * len(STYLES) + style`, in the order of this block."""
    ranks = _uniforms(seed, block, _DECK, num_classes * len(STYLES))
    return tuple(np.argsort(ranks, kind="stable").tolist())
