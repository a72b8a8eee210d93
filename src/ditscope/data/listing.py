"""All pictures of some data once, one by one, as they are: for what looks at each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ditscope.data.pictures import Labelled, PictureFolder
from ditscope.data.scenes import EmojiScenes
from ditscope.errors import BadRequest

EMOJI = "emoji"
Named = tuple[str, Callable[[], Labelled]]
"""The name of a picture, and what reads it or raises UnreadablePicture."""


@dataclass(frozen=True)
class Listing:
    """Pictures of one size."""

    data: str
    digest: str  # which pictures they are
    class_names: tuple[str, ...]
    total: int
    pictures: Callable[[int], Iterable[Named]]  # from a number, the pictures from that one on


def listing(
    data: str, size: tuple[int, int], *, num_pictures: int | None = None, seed: int = 0
) -> Listing:
    """The pictures of a folder, or the first scenes of a seed, of `size` (h, w) pixels.

    Raises:
        BadDataset: as `PictureFolder`.
        BadRequest: scenes without their number or not square, or a number of pictures of a folder.
    """
    if data != EMOJI:
        if num_pictures is not None:
            raise BadRequest("is for emoji scenes: a folder is used whole", field="num_pictures")
        folder = PictureFolder(data, size=size)
        return Listing(data, folder.digest(), folder.class_names, len(folder), folder.pictures)
    if num_pictures is None or num_pictures < 1:
        raise BadRequest(
            f"found {num_pictures}",
            field="num_pictures",
            expected="how many emoji scenes: 1 or more",
        )
    if size[0] != size[1]:
        raise BadRequest(
            f"emoji scenes are square, found {size[0]} x {size[1]}", field="image_size"
        )
    scenes = EmojiScenes(seed, size[0])

    def shown(start: int) -> Iterator[Named]:
        for index in range(start, num_pictures):
            yield f"scene {index}", lambda index=index: _labelled(scenes, index)

    digest = f"scenes 0 to {num_pictures - 1} of seed {seed}, {scenes.num_classes} classes"
    return Listing(data, digest, scenes.class_names, num_pictures, shown)


def _labelled(scenes: EmojiScenes, index: int) -> Labelled:
    scene = scenes.scene(index)
    return scene.image, scene.label
