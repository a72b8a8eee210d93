"""What samples are compared with: the statistics of a set of data, computed once and kept.

    pictures.safetensors    mean, covariance and some features, with how they were made
    VIRTUAL_imagenet.npz    `mu` and `sigma` as other programs store them; nothing else is read

Shapes: N kept rows, D features.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.lib import format as npy
from numpy.typing import NDArray
from pydantic import NonNegativeInt
from safetensors import SafetensorError

from ditscope.core import strict_json
from ditscope.core.atomic import file_sha256, new_file
from ditscope.core.manifest import Record
from ditscope.data.scenes import EmojiScenes
from ditscope.errors import BadDataset, BadRequest, ResourceError, foreign
from ditscope.evaluation.collect import collect
from ditscope.evaluation.extractors import Extractor, FeatureProtocol
from ditscope.evaluation.moments import Vector
from ditscope.evaluation.sources import (
    REFERENCE_SEED,
    FolderPictures,
    Report,
    RunPictures,
    ScenePictures,
    Source,
)
from ditscope.model.header import read_header
from ditscope.runs.reader import open_run
from ditscope.runs.target import holds_run

EMOJI = "emoji"
SCENES = 10_000
KEPT = 10_000
"""Feature vectors that are kept for precision and recall, as the paper does with its subsets."""

FACTS = "ditscope_reference"
MAX_WIDTH = 16_384


class ReferenceFacts(Record):
    """How statistics came about. None: whoever made the file did not say."""

    source: dict[str, object]
    count: NonNegativeInt | None = None
    sha256: str | None = None  # of all pixels, in order
    class_names: tuple[str, ...] = ()
    features: FeatureProtocol | None = None


class Reference:
    """Mean (D,), covariance (D, D), and the features (N, D) of the first pictures."""

    def __init__(
        self,
        mean: Vector,
        covariance: Vector,
        features: NDArray[np.float32],
        facts: ReferenceFacts,
    ) -> None:
        self.mean, self.covariance, self.features, self.facts = mean, covariance, features, facts


def reference_of(
    place: str | os.PathLike[str],
    extract: Extractor,
    *,
    count: int | None = None,
    class_names: Sequence[str] = (),
    report: Report | None = None,
) -> Reference:
    """The statistics of `place` under `extract`: read, or computed.

    Args:
        place: "emoji" (10,000 scenes that no model has seen), a folder of pictures, a run, or a
            file of statistics (.safetensors of ours, .npz of others).
        extract: what makes the features.
        count: pictures to take. None: all, or 10,000 scenes.
        class_names: what emoji scenes show, if they have all of these classes; else they show all
            that there are. It is what the samples show.
        report: called as it goes on.

    Raises:
        BadRequest: no such thing, or a file of statistics that other features were made for.
        BadDataset, BadRun: it cannot be read.
    """
    path = Path(place)
    if path.suffix in (".safetensors", ".npz") and str(place) != EMOJI:
        if count is not None:
            raise BadRequest("are of a fixed set already", file=path, field="reference_samples")
        found = load_reference(path) if path.suffix == ".safetensors" else _load_npz(path)
        _check_features(found, extract.protocol, path)
        return found
    source = _source(place, extract, count, class_names)
    return measure(source, extract, report=report)


def measure(
    source: Source,
    extract: Extractor,
    *,
    report: Report | None = None,
) -> Reference:
    """The statistics of all pictures of `source`. Raises what the source raises."""

    def progress(done: float) -> None:
        if report is not None:
            report("reference", done, source.count)

    found = collect(source, extract, keep=KEPT, progress=progress)
    total = found.moments.total()
    facts = ReferenceFacts(
        source=source.protocol,
        count=total.count,
        sha256=found.sha256,
        class_names=source.class_names,
        features=extract.protocol,
    )
    return Reference(total.mean, total.covariance, found.features, facts)


def check_statistics_file(path: Path) -> None:
    """Raise BadRequest or ResourceError now if `save_reference` could not write there."""
    if path.suffix != ".safetensors":
        raise BadRequest(
            f"found {foreign(path.name)!r}", field="save_reference", expected="NAME.safetensors"
        )
    if not os.access(path.resolve().parent, os.W_OK | os.X_OK):
        raise ResourceError("its parent folder is missing or read-only", file=path)


def save_reference(path: str | os.PathLike[str], reference: Reference) -> None:
    """Write statistics to a safetensors file, whole or not at all. Raises ResourceError."""
    arrays = {
        "mean": reference.mean,
        "covariance": reference.covariance,
        "features": reference.features,
    }
    data = safetensors.numpy.save(arrays, {FACTS: reference.facts.model_dump_json()})
    with new_file(path) as beside:
        beside.write_bytes(data)


def load_reference(path: Path) -> Reference:
    """Statistics that `save_reference` wrote. Raises BadCheckpoint or BadDataset."""
    said = read_header(path).metadata.get(FACTS)
    if said is None:
        raise BadDataset("holds no statistics", file=path, expected="a file of --save-reference")
    tree = strict_json.parse(said.encode(), file=path, error=BadDataset)
    facts = strict_json.validated(ReferenceFacts, tree, file=path, error=BadDataset)
    try:
        arrays = safetensors.numpy.load_file(path)
        mean, covariance, features = (arrays[name] for name in ("mean", "covariance", "features"))
    except (SafetensorError, OSError, KeyError) as reason:
        raise BadDataset(f"cannot be read: {foreign(reason)}", file=path) from None
    _check_shapes(mean, covariance, path)
    if features.ndim != 2 or (len(features) and features.shape[1] != len(mean)):
        raise BadDataset(f"features of shape {features.shape}", file=path)
    return Reference(mean, covariance, features, facts)


def _load_npz(path: Path) -> Reference:
    """`mu` and `sigma` of an archive of arrays; nothing is unpickled. Raises BadDataset."""
    try:
        with zipfile.ZipFile(path) as archive:
            mean, covariance = (_member(archive, name, path) for name in ("mu", "sigma"))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, EOFError) as reason:
        raise BadDataset(
            f"cannot be read: {foreign(reason)}", file=path, expected="arrays `mu` and `sigma`"
        ) from None
    _check_shapes(mean, covariance, path)
    source: dict[str, object] = {
        "kind": "statistics of another program",
        "file": str(path.resolve()),
        "file_sha256": file_sha256(path),
    }
    none = np.zeros((0, len(mean)), np.float32)
    return Reference(mean, covariance, none, ReferenceFacts(source=source))


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> Vector:
    """One array, refused by its header if it is beyond all measure."""
    with archive.open(f"{name}.npy") as stream:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, kind = read(stream)
    if kind.kind != "f" or any(side > MAX_WIDTH for side in shape) or len(shape) > 2:
        raise BadDataset(f"{kind} {shape}", file=path, field=name, expected="numbers")
    with archive.open(f"{name}.npy") as stream:
        return npy.read_array(stream, allow_pickle=False).astype(np.float64)


def _check_shapes(mean: Vector, covariance: Vector, path: Path) -> None:
    width = mean.shape[0] if mean.ndim == 1 else 0
    if not 1 <= width <= MAX_WIDTH or covariance.shape != (width, width):
        raise BadDataset(
            f"mean {mean.shape} and covariance {covariance.shape}",
            file=path,
            expected="(D,) and (D, D)",
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise BadDataset("holds NaN or Inf", file=path)
    if not np.allclose(covariance, covariance.T, rtol=1e-5, atol=1e-8 * np.abs(covariance).max()):
        raise BadDataset("the covariance is not symmetric", file=path)


def _check_features(found: Reference, wanted: FeatureProtocol, path: Path) -> None:
    """Raise BadRequest if the statistics are of other features, as far as they say."""
    made = found.facts.features
    if made is None:
        return
    for field in ("sha256", "pixels", "size", "resize"):
        mine, theirs = getattr(wanted, field), getattr(made, field)
        if mine != theirs:
            raise BadRequest(
                f"made with {field} {foreign(theirs)}, this evaluation has {foreign(mine)}",
                file=path,
                field="features",
                fix="compute the statistics anew, with the same features and options",
            )


def _source(
    place: str | os.PathLike[str],
    extract: Extractor,
    count: int | None,
    class_names: Sequence[str],
) -> Source:
    if str(place) == EMOJI:
        known = EmojiScenes.class_names
        shown = class_names if class_names and set(class_names) <= set(known) else known
        number = SCENES if count is None else count
        return ScenePictures(number, class_names=shown, seed=REFERENCE_SEED)
    path = Path(place)
    if holds_run(path):
        return RunPictures(open_run(path), count)
    if path.is_dir():
        return FolderPictures(path, count)
    raise BadRequest(
        f"{foreign(place)!r} is no data",
        field="reference",
        expected="emoji, a folder of pictures, a run, or a file of statistics",
    )
