"""Where the pictures of an evaluation come from: a run, a folder, emoji scenes, or a model.

Pictures come in batches, in an order that is a function of the source alone, so that memory does
not grow with their number.

Shapes: B pictures of one batch; h and w pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ditscope.core.labels import find_class
from ditscope.core.manifest import RunManifest
from ditscope.core.pipeline_config import CONFIG_FILE
from ditscope.data.pictures import UnreadablePicture, labelled_files, picture_files, read_picture
from ditscope.data.scenes import EmojiScenes
from ditscope.errors import BadDataset, BadRequest, foreign
from ditscope.pipeline import BUNDLED, DType, Pipeline, load
from ditscope.runs.reader import Run, open_run
from ditscope.runs.target import holds_run
from ditscope.sampling.draw import draw_job
from ditscope.sampling.job import make_job
from ditscope.sampling.recorder import manifest_of

Picture = NDArray[np.uint8]
"""(h, w, 3) RGB."""

Progress = Callable[[float], None]
"""Called with the number of pictures that are done; a picture may be done in part."""

Report = Callable[[str, float, int], None]
"""Called with what is looked at, how many pictures are done, and how many there are."""

SCENES = "scenes"
REFERENCE_SEED, SCENES_SEED = 1_000_003, 1_000_004
"""Of emoji scenes that no model and no judge has learned from: as data, and as samples."""

SCENES_SIZE = 64
SHUFFLE_SEED = 0
"""Of the order of a folder's pictures."""

PICTURES_A_CLASS = 10
"""How many a model draws unless it is told."""

AT_A_TIME = 64
"""Pictures of a batch where nothing else decides."""


class Source(Protocol):
    """Pictures with, or without, the names of what they should show."""

    @property
    def count(self) -> int:
        """How many pictures."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes that are shown."""
        ...

    @property
    def labels(self) -> Sequence[int] | None:
        """Position of every picture's class in `class_names`; None: they are not known."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of the pictures."""
        ...

    @property
    def protocol(self) -> dict[str, object]:
        """Every choice that decides the pictures, as plain data."""
        ...

    def batches(self, progress: Progress) -> Iterator[list[Picture]]:
        """All pictures, in order."""
        ...


class ScenePictures:
    """The first emoji scenes of a seed, showing classes in turn."""

    notes = ()

    def __init__(
        self,
        count: int,
        *,
        class_names: Sequence[str] = EmojiScenes.class_names,
        seed: int = SCENES_SEED,
        size: int = SCENES_SIZE,
    ) -> None:
        """Raises BadRequest for a class, seed or size that does not exist."""
        known = EmojiScenes.class_names
        self._scenes = EmojiScenes(seed=seed, size=size)
        self._shown = [find_class(name, known) for name in class_names]
        self.count, self.class_names = count, tuple(known[label] for label in self._shown)
        self.labels = [index % len(self._shown) for index in range(count)]

    @property
    def protocol(self) -> dict[str, object]:
        """As `Source` says."""
        seed, size = self._scenes.seed, self._scenes.size
        return {"kind": "emoji scenes", "seed": seed, "first": 0, "size": size}

    def batches(self, progress: Progress) -> Iterator[list[Picture]]:
        """As `Source` says."""
        for chosen in _parts(range(self.count)):
            yield [
                self._scenes.scene(index, self._shown[self.labels[index]]).image for index in chosen
            ]
            progress(chosen.stop)


class FolderPictures:
    """Every picture of a folder once, or some spread over it; labels where it has class folders.

    They come shuffled, always in the same way: the first ones of them show all classes.
    """

    notes = ()

    def __init__(self, folder: Path, count: int | None = None) -> None:
        """Raises BadDataset if there are no pictures, or fewer than `count`."""
        self.folder = folder
        self.class_names: tuple[str, ...] = ()
        labels: list[int] | None = None
        files = sorted(file for file in picture_files(folder) if file.parent == folder)
        if not files:
            self.class_names, files, labels = labelled_files(folder)
        total = len(files)
        self.count = total if count is None else count
        if self.count > total:
            raise BadDataset(
                f"holds {total} pictures", file=folder, expected=f"{self.count} or more"
            )
        chosen = [index * total // self.count for index in range(self.count)]
        np.random.default_rng(SHUFFLE_SEED).shuffle(chosen)
        self._files = [files[index] for index in chosen]
        self.labels = None if labels is None else [labels[index] for index in chosen]

    @property
    def protocol(self) -> dict[str, object]:
        """As `Source` says."""
        return {"kind": "folder", "folder": str(self.folder.resolve())}

    def batches(self, progress: Progress) -> Iterator[list[Picture]]:
        """As `Source` says. Raises BadDataset for a file that is no picture: none is left out."""
        for chosen in _parts(range(self.count)):
            pictures = []
            for file in self._files[chosen.start : chosen.stop]:
                try:
                    pictures.append(read_picture(file))
                except UnreadablePicture as reason:
                    raise BadDataset(str(reason), file=file, fix="remove it, or mend it") from None
            yield pictures
            progress(chosen.stop)


class RunPictures:
    """The pictures of a recorded run."""

    notes = ()

    def __init__(self, run: Run, count: int | None = None) -> None:
        """Raises BadRequest if the run has fewer than `count`, or none yet."""
        held = len(run.layout.image_files) if run.has_images else 0
        self.run, self.count = run, held if count is None else count
        if not 1 <= self.count <= held:
            raise BadRequest(
                f"the run has {held} pictures", file=run.path, field="num_samples",
                expected=f"{self.count} or more",
            )  # fmt: skip
        names = [label.name for label in run.manifest.labels[: self.count]]
        self.class_names = tuple(dict.fromkeys(names))
        self.labels = [self.class_names.index(name) for name in names]

    @property
    def protocol(self) -> dict[str, object]:
        """As `Source` says."""
        place = {"kind": "run", "folder": str(self.run.path), "run_sha256": self.run.digest}
        return place | sampling_protocol(self.run.manifest)

    def batches(self, progress: Progress) -> Iterator[list[Picture]]:
        """As `Source` says. Raises BadRun for a damaged picture."""
        for chosen in _parts(range(self.count)):
            names = self.run.layout.image_files[chosen.start : chosen.stop]
            yield [self.run.files.image(name) for name in names]
            progress(chosen.stop)


class DrawnPictures:
    """What a model draws now, batch by batch: the pictures that `ditscope.sample` would draw."""

    def __init__(
        self,
        pipe: Pipeline,
        count: int | None = None,
        *,
        classes: Sequence[str | int] = (),
        settings: dict[str, object] | None = None,
    ) -> None:
        """`settings` are fields of `ditscope.sampling.job.Settings`. Raises BadRequest."""
        chosen = [find_class(name, pipe.labels) for name in classes] or range(len(pipe.labels))
        self.class_names = tuple(pipe.labels[index] for index in chosen)
        self.notes = (*pipe.notes, *pipe.codec.notes)
        self.count = PICTURES_A_CLASS * len(chosen) if count is None else count
        if self.count < 1:
            raise BadRequest(f"found {self.count}", field="num_samples", expected="1 or more")
        self.labels = [index % len(chosen) for index in range(self.count)]
        classes = [chosen[label] for label in self.labels]
        self.job = make_job(pipe, classes, {"metrics": (), **(settings or {})})

    @property
    def protocol(self) -> dict[str, object]:
        """As `Source` says."""
        place: dict[str, object] = {"kind": "drawn", "labels": "the classes in turn"}
        return place | sampling_protocol(manifest_of(self.job))

    def batches(self, progress: Progress) -> Iterator[list[Picture]]:
        """As `Source` says. Raises NumericalError for NaN or Inf."""
        for batch in self.job.batches:

            def report(done: int, total: int, batch: tuple[int, ...] = batch) -> None:
                progress(batch[0] + len(batch) * done / total)

            yield list(draw_job(self.job.part(batch), report).images)


def sampling_protocol(manifest: RunManifest) -> dict[str, object]:
    """Every choice of a sampling, out of its manifest."""
    model = manifest.model
    return {
        "model": model.name,
        "source": model.source,
        "weights": model.weights,
        "weights_sha256": model.weights_sha256,
        "arithmetic": model.dtype,
        "device": model.device,
        "process": model.process,
        "codec": model.codec,
        "sampler": manifest.sampler.model_dump(mode="json"),
        "evaluations": len(manifest.steps),
        "guidance": manifest.guidance.model_dump(mode="json"),
        "seed": manifest.seed,
        "batch_size": max(len(batch) for batch in manifest.batches),
        "edits": list(manifest.edits),
        "versions": manifest.versions,
    }


def source_of(
    samples: str | os.PathLike[str] | Source | Run | Pipeline,
    count: int | None = None,
    *,
    classes: Sequence[str | int] = (),
    settings: dict[str, object] | None = None,
    device: str = "cpu",
    dtype: DType | None = None,
) -> Source:
    """The pictures that `samples` names.

    Args:
        samples: a model (a bundled name, or what `ditscope.load` reads, or returned), which draws
            them; a run; a folder of pictures; "scenes": emoji scenes that no model has seen.
        count: how many. None: all; of a model ten a class, of scenes as many.
        classes: what a model draws, or scenes show; empty: all classes, in turn.
        settings: how a model draws.
        device: of a model that is loaded here.
        dtype: likewise.

    Raises:
        BadRequest: nothing is there, there are not so many, or a model's options are given where
            none draws.
        BadRun, BadCheckpoint, BadDataset: what is there cannot be read.
    """
    found = _opened(samples, device, dtype)
    if isinstance(found, Pipeline):
        return DrawnPictures(found, count, classes=classes, settings=settings)
    if found == SCENES and not settings:
        shown = tuple(str(name) for name in classes) or EmojiScenes.class_names
        return ScenePictures(count or PICTURES_A_CLASS * len(shown), class_names=shown)
    strange = [*(["classes"] if classes else []), *(settings or {})]
    if strange:
        raise BadRequest(
            "the pictures are drawn already: this choice has no effect", field=foreign(strange[0])
        )
    if isinstance(found, Run):
        return RunPictures(found, count)
    if isinstance(found, Path):
        return FolderPictures(found, count)
    return found  # type: ignore[return-value]


def _opened(samples: object, device: str, dtype: DType | None) -> object:
    """A name or path as what it is: a pipeline, a run, or the path of a folder of pictures."""
    if not isinstance(samples, str | os.PathLike) or samples == SCENES:
        return samples
    if str(samples) in BUNDLED:
        return load(samples, device=device, dtype=dtype)
    place = Path(samples)
    if holds_run(place):
        return open_run(place)
    if place.is_file() or (place / CONFIG_FILE).exists() or (place / "model_index.json").exists():
        return load(place, device=device, dtype=dtype)
    if place.is_dir():
        return place
    raise BadRequest(
        f"{foreign(samples)!r} is no model, run or folder of pictures",
        field="samples",
        expected=f"one of these, or {SCENES}; bundled models: {', '.join(BUNDLED)}",
    )


def _parts(whole: range) -> Iterator[range]:
    for first in range(whole.start, whole.stop, AT_A_TIME):
        yield range(first, min(first + AT_A_TIME, whole.stop))
