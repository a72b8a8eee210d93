"""Where the pictures or latents of a training come from, under the labels of that training.

Shapes: B rows, C channels, h and w pixels or the latent grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ditscope.data.latents import LatentFolder
from ditscope.data.listing import EMOJI
from ditscope.data.pictures import PictureFolder
from ditscope.data.records import is_records, open_records
from ditscope.data.scenes import EmojiScenes
from ditscope.data.stream import PictureStream, Place
from ditscope.errors import BadConfig, listed
from ditscope.train.config import TrainConfig


class Source(Protocol):
    """Pictures 0, 1, 2, ... without end, each a pure function of its number."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the data calls its classes."""
        ...

    def batch(
        self, indices: Sequence[int]
    ) -> tuple[NDArray[np.uint8] | NDArray[np.float32], NDArray[np.int64]]:
        """Images (B, h, w, 3) uint8, or latents (B, C, h, w) float32, and labels (B,) int64."""
        ...

    def newly_bad(self) -> list[tuple[str, str]]:
        """Files that turned out unreadable since the last call, and why."""
        ...

    def place_of(self, index: int) -> tuple[int, ...]:
        """Where to begin reading for picture `index`; empty where all are found at once."""
        ...

    def go_to(self, place: tuple[int, ...]) -> None:
        """Take over what `place_of` said in another process."""
        ...


class _AtOnce:
    """What sources have in common in which any picture is found at once."""

    def newly_bad(self) -> list[tuple[str, str]]:
        """None, unless a source says otherwise."""
        return []

    def place_of(self, index: int) -> tuple[int, ...]:
        """Nowhere."""
        return ()

    def go_to(self, place: tuple[int, ...]) -> None:
        """Nothing to do."""


class EmojiSource(_AtOnce):
    """The bundled scenes, of as many classes as the network has labels for."""

    def __init__(self, config: TrainConfig) -> None:
        """Raises BadConfig for pictures that are not square, or more classes than there are."""
        model = config.model
        if model.input_height != model.input_width:
            raise BadConfig(
                f"emoji scenes are square, found {model.input_height} x {model.input_width}",
                field="model.input_size",
            )
        names = _labelled_emoji(config.labels) or emoji_classes(model.num_classes)
        self._scenes = EmojiScenes(config.seed, model.input_height, len(names))
        self.class_names = names
        self._labels = _positions(self.class_names, config)

    def batch(self, indices: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """As `Source` says."""
        images, labels, _ = self._scenes.batch(indices)
        return images, self._labels[labels]


class FolderSource(_AtOnce):
    """Class folders of pictures."""

    def __init__(self, config: TrainConfig) -> None:
        """Raises BadDataset if there are none."""
        model = config.model
        self._folder = PictureFolder(
            config.data,
            size=(model.input_height, model.input_width),
            seed=config.seed,
            flip=config.flip,
            max_bad=config.max_bad_pictures,
        )
        self.class_names = self._folder.class_names
        self._labels = _positions(self.class_names, config)
        self._told = 0

    def batch(self, indices: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """As `Source` says."""
        images, labels = self._folder.batch(indices)
        return images, self._labels[labels]

    def newly_bad(self) -> list[tuple[str, str]]:
        """As `Source` says."""
        found = [(str(file), why) for file, why in self._folder.bad.copy().items()]
        fresh, self._told = found[self._told :], len(found)
        return fresh


class LatentSource(_AtOnce):
    """Latents that `ditscope extract` wrote."""

    def __init__(self, config: TrainConfig) -> None:
        """Raises BadDataset as `LatentFolder`, BadConfig if they are not what the network takes."""
        self._latents = LatentFolder(config.data, seed=config.seed, flip=config.flip)
        self.class_names = self._latents.class_names
        model, shape = config.model, self._latents.manifest.shape
        found = (model.in_channels, model.input_height, model.input_width)
        if found != shape:
            text = "{} channels of {} x {}".format
            raise BadConfig(
                f"found {text(*found)}",
                field="model.input_size" if found[0] == shape[0] else "model.in_channels",
                expected=f"{text(*shape)}, as the latents have",
            )
        self._labels = _positions(self.class_names, config)

    def batch(self, indices: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As `Source` says."""
        latents, labels = self._latents.batch(indices)
        return latents, self._labels[labels]


class StreamSource:
    """A `datasets` source, read as a stream."""

    def __init__(self, config: TrainConfig) -> None:
        """Raises BadDataset, ResourceError as `open_records`."""
        self._stream = PictureStream(
            open_records(
                config.data,
                config.records,
                revision=config.data_digest,
                class_names=config.labels,
            ),
            size=(config.model.input_height, config.model.input_width),
            seed=config.seed,
            flip=config.flip,
            block=config.records.block,
            max_bad=config.max_bad_pictures,
        )
        self.class_names = self._stream.source.columns.class_names
        self._labels = _positions(self.class_names, config)
        self._told = 0

    def batch(self, indices: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """As `Source` says."""
        images, labels = self._stream.batch(indices)
        return images, self._labels[labels]

    def newly_bad(self) -> list[tuple[str, str]]:
        """As `Source` says."""
        found = list(self._stream.bad.copy().items())
        fresh, self._told = found[self._told :], len(found)
        return fresh

    def place_of(self, index: int) -> tuple[int, ...]:
        """The number of a block, and where that begins."""
        block, place = self._stream.start_of(index)
        return (block, *place)

    def go_to(self, place: tuple[int, ...]) -> None:
        """As `Source` says."""
        if place:
            block, *where = place
            self._stream.starts_at(block, Place(*where))


def data_source(config: TrainConfig) -> Source:
    """The pictures or latents of a configuration.

    Raises:
        BadDataset: as `PictureFolder`, `LatentFolder` or `open_records`.
        BadConfig: the data has classes that the network has no labels for, or is of another shape
            than the network takes.
    """
    if config.codec.kind == "latent":
        return LatentSource(config)
    if config.model.in_channels != 3:
        raise BadConfig(
            f"found {config.model.in_channels}",
            field="model.in_channels",
            expected="3 for pictures; `ditscope extract` makes latents of them",
        )
    if config.data == EMOJI:
        return EmojiSource(config)
    return StreamSource(config) if is_records(config.data) else FolderSource(config)


def label_names(config: TrainConfig) -> tuple[str, ...]:
    """Class names by label of a training."""
    return config.labels or emoji_classes(config.model.num_classes)


def emoji_classes(count: int) -> tuple[str, ...]:
    """Names of the first `count` classes of the emoji scenes.

    Raises BadConfig if there are not so many.
    """
    names = EmojiScenes.class_names
    if not 1 <= count <= len(names):
        raise BadConfig(
            f"found {count}",
            field="model.num_classes",
            expected=f"1 to {len(names)}, the classes of the emoji scenes",
        )
    return names[:count]


def _labelled_emoji(labels: tuple[str, ...]) -> tuple[str, ...]:
    """The classes of the emoji scenes up to the last one among the labels."""
    names = EmojiScenes.class_names
    known = [index for index, name in enumerate(names) if name in labels]
    return names[: known[-1] + 1] if known else names if labels else ()


def _positions(names: tuple[str, ...], config: TrainConfig) -> NDArray[np.int64]:
    """The label of each class of the data."""
    labels = config.labels or names
    strange = [name for name in names if name not in labels]
    if strange:
        raise BadConfig(f"the data has classes without a label: {listed(strange)}", field="labels")
    if len(labels) != config.model.num_classes:
        raise BadConfig(
            f"found {config.model.num_classes}",
            field="model.num_classes",
            expected=f"{len(labels)}, the number of classes",
        )
    return np.array([labels.index(name) for name in names], np.int64)
