"""Pictures through an autoencoder once, so that no training has to do it again.

A shard is a function of the pictures and of `Extraction`; shards are written one by one, so an
extraction that was killed goes on with the first one that is missing.

Shapes: B pictures of a batch, V views; C channels; h, w the latent grid.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ditscope.core.atomic import UNFINISHED, file_sha256, new_file
from ditscope.core.lock import release_lock, take_lock
from ditscope.data.codecs import LatentCodec
from ditscope.data.latents import FLOATS, MANIFEST, Extraction, LatentManifest, Shard
from ditscope.data.listing import Named
from ditscope.data.pictures import DECODERS, Labelled, UnreadablePicture
from ditscope.errors import BadDataset, BadRequest, NumericalError, ResourceError, foreign, listed

LOCK, ORIGIN = "lock", "origin"  # one key: the library writes several in any order
SHARD_PICTURES = 4096
ENCODED_AT_A_TIME = 16
"""Views of pictures in one call of the autoencoder."""


def extract(
    what: Extraction,
    pictures: Callable[[int], Iterable[Named]],
    codec: LatentCodec,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    max_bad: int = 100,
    report: Callable[[int], None] = lambda done: None,
) -> LatentManifest:
    """Write the latents of all pictures into `folder`, or go on where an earlier call ended.

    Args:
        what: what the folder is to hold.
        pictures: from a number, the pictures from that one on, in an order that is always the same.
        codec: the autoencoder of `what`.
        folder: new, or one that holds the same extraction, whole or not.
        device: where the autoencoder runs.
        max_bad: unreadable pictures that may be left out.
        report: called with the number of pictures looked at so far.

    Raises:
        BadRequest: the folder holds another extraction, or other files.
        BadDataset: more than `max_bad` pictures cannot be read, or all.
        NumericalError: the autoencoder puts out NaN or Inf.
        ResourceError: it cannot be written, or another process writes it.
    """
    _claim(folder)
    lock = take_lock(
        folder / LOCK, busy="another extraction is running in this folder", fix="wait for it"
    )
    try:
        return _extract(_Writer(what, codec, folder, device, max_bad), pictures, report)
    finally:
        release_lock(folder / LOCK, lock)


def _extract(
    writer: _Writer, pictures: Callable[[int], Iterable[Named]], report: Callable[[int], None]
) -> LatentManifest:
    size = writer.what.shard_pictures
    coming, at = iter(pictures(0)), 0
    for number in itertools.count():
        first = number * size
        if writer.adopt(number):
            report(first + size)
            continue
        if at != first:
            coming = iter(pictures(first))
        chunk = list(itertools.islice(coming, size))
        at = first + len(chunk)
        if not chunk:
            break
        writer.write(number, chunk)
        report(at)
    return writer.finish()


class _Writer:
    """The shards of a folder, in order."""

    def __init__(
        self,
        what: Extraction,
        codec: LatentCodec,
        folder: Path,
        device: torch.device | str,
        max_bad: int,
    ) -> None:
        self.what, self.codec, self.folder = what, codec, folder
        self.device, self.max_bad = device, max_bad
        self.shape: tuple[int, int, int] | None = None
        self.shards: list[Shard] = []
        self.left_out: list[tuple[str, str]] = []

    def adopt(self, number: int) -> bool:
        """Take over a shard that an earlier call wrote in full; whether there is one.

        Raises BadRequest if it is of another extraction.
        """
        path = self._path(number)
        if not path.exists():
            return False
        try:
            with safetensors.safe_open(path, framework="numpy") as shard:
                said, shape = shard.metadata() or {}, shard.get_slice("mean").get_shape()
            identity, left_out = json.loads(said[ORIGIN])
            left_out = [(str(name), str(why)) for name, why in left_out]
        except (safetensors.SafetensorError, OSError, KeyError, ValueError, TypeError) as reason:
            raise BadDataset(
                f"is no shard of latents: {foreign(reason)}", file=path, fix="remove it"
            ) from None
        if identity != self.what.model_dump(mode="json"):
            raise BadRequest(
                "is of other pictures, another size or another autoencoder",
                file=path,
                fix="choose another folder, or remove this one",
            )
        if shape[0] + len(left_out) < self.what.shard_pictures:
            return False  # the last one: pictures may have come
        self._add(path, shape, left_out)
        return True

    def write(self, number: int, chunk: list[Named]) -> None:
        """Encode some pictures and write them as a shard."""
        tensors, left_out = self._encoded(chunk)
        path = self._path(number)
        said = {ORIGIN: json.dumps([self.what.model_dump(mode="json"), left_out])}
        with new_file(path) as beside:
            try:
                beside.touch()
                rights = beside.stat().st_mode  # as the umask asks for; the library's are 0600
                save_file(tensors, beside, said)
                beside.chmod(rights)
            except safetensors.SafetensorError as reason:
                raise ResourceError(f"cannot be written: {foreign(reason)}", file=path) from None
        self._add(path, list(tensors["mean"].shape), left_out)

    def finish(self) -> LatentManifest:
        """Write the manifest."""
        if self.shape is None:
            raise BadDataset("holds no pictures", file=self.what.data)
        manifest = LatentManifest(
            extraction=self.what,
            shape=self.shape,
            left_out=tuple(self.left_out),
            shards=tuple(self.shards),
        )
        with new_file(self.folder / MANIFEST) as beside:
            beside.write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return manifest

    def _path(self, number: int) -> Path:
        return self.folder / f"latents-{number:05d}.safetensors"

    def _add(self, path: Path, shape: list[int], left_out: list[tuple[str, str]]) -> None:
        count, _, channels, height, width = shape
        self.shape = (channels, height, width)
        digest, size = file_sha256(path), path.stat().st_size
        self.shards.append(Shard(file=path.name, size=size, sha256=digest, count=count))
        self.left_out += left_out
        self._check_bad()

    def _check_bad(self) -> None:
        if len(self.left_out) > self.max_bad:
            first = [f"{name} ({why})" for name, why in self.left_out[:3]]
            raise BadDataset(
                f"pictures that cannot be read: {len(self.left_out)}, such as {listed(first)}",
                file=self.what.data,
                expected=f"at most {self.max_bad}",
                fix="remove them, or allow more with --max-bad",
            )

    def _encoded(
        self, chunk: list[Named]
    ) -> tuple[dict[str, NDArray[np.generic]], list[tuple[str, str]]]:
        means, stds, labels = [], [], []
        left_out: list[tuple[str, str]] = []
        dtype = FLOATS[self.what.dtype]
        each = max(1, ENCODED_AT_A_TIME // self.what.views)
        for images, theirs in _batches(_read(chunk, left_out), each):
            views = [images, images[:, :, ::-1]][: self.what.views]
            pixels = np.ascontiguousarray(np.stack(views, axis=1))  # (B, V, height, width, 3)
            mean, std = self.codec.posterior(pixels.reshape(-1, *pixels.shape[2:]), self.device)
            if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
                raise NumericalError("the autoencoder puts out NaN or Inf", file=self.codec.folder)
            rows = (*pixels.shape[:2], *mean.shape[1:])
            means.append(mean.reshape(rows).numpy().astype(dtype))
            stds.append(std.reshape(rows).numpy().astype(dtype))
            labels += theirs
        if not labels:
            if self.shape is None:
                names = listed(f"{name} ({why})" for name, why in left_out[:3])
                raise BadDataset(f"not one picture can be read: {names}", file=self.what.data)
            means = stds = [np.zeros((0, self.what.views, *self.shape), dtype)]
        tensors: dict[str, NDArray[np.generic]] = {  # the writer takes memory as it lies
            "mean": np.ascontiguousarray(np.concatenate(means)),
            "std": np.ascontiguousarray(np.concatenate(stds)),
            "label": np.array(labels, np.int64),
        }
        return tensors, left_out


def _claim(folder: Path) -> None:
    """Make the folder, or see that what it holds is ours; the manifest is written anew."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as reason:
        raise ResourceError(f"cannot hold latents: {reason.strerror}", file=folder) from None
    strange = [
        name
        for name in names
        if name not in (LOCK, MANIFEST)
        and not name.startswith("latents-")
        and not UNFINISHED.fullmatch(name)
    ]
    if strange:
        raise BadRequest(
            f"holds other files: {listed(strange)}", file=folder, fix="choose a new folder"
        )


def _read(chunk: Iterable[Named], left_out: list[tuple[str, str]]) -> Iterator[Labelled]:
    """The pictures that can be read, in their order; the others go to `left_out`."""

    def attempt(named: Named) -> Labelled | str:
        try:
            return named[1]()
        except UnreadablePicture as reason:
            return str(reason)

    with ThreadPoolExecutor(max_workers=DECODERS) as decoders:
        for (name, _), found in zip(chunk, decoders.map(attempt, chunk), strict=True):
            if isinstance(found, str):
                left_out.append((foreign(name), found))
            else:
                yield found


def _batches(found: Iterator[Labelled], size: int) -> Iterator[tuple[NDArray[np.uint8], list[int]]]:
    while batch := list(itertools.islice(found, size)):
        yield np.stack([image for image, _ in batch]), [label for _, label in batch]
