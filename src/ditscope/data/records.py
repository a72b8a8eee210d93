"""Opening a `datasets` source: shards on this machine, or a data set of the Hugging Face Hub.

Nothing is downloaded as a whole, no code of a data set is run, and pictures are left as bytes.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt

from ditscope.data.pictures import UnreadablePicture
from ditscope.errors import BadDataset, foreign, listed, missing_package

HUB = "hf:"
BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}
"""How shards on this machine are read, by the end of their names."""

TAR_END = bytes(1024)

LABEL_NAMES = ("label", "labels", "cls", "class", "fine_label")


class RecordSettings(BaseModel):
    """What has to be said of a `datasets` source where it does not tell by itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: str = "train"
    subset: str | None = None  # one of the configurations of a data set
    image: str | None = None  # column of the pictures; None: the only one of pictures
    label: str | None = None  # column of the classes; None: the only one of classes
    block: PositiveInt = 1024  # records that are shuffled among themselves, and kept in memory


@dataclass(frozen=True)
class Columns:
    """Where pictures and labels are, and what the classes are called."""

    image: str
    label: str
    class_names: tuple[str, ...]

    def label_of(self, value: object) -> int:
        """The index of a class. Raises UnreadablePicture."""
        if isinstance(value, str) and value in self.class_names:
            return self.class_names.index(value)
        if type(value) is int and 0 <= value < len(self.class_names):
            return value
        raise UnreadablePicture(f"its label is {foreign(repr(value))}")


@dataclass(frozen=True)
class RecordSource:
    """An opened `datasets` source."""

    place: str  # `hf:NAME` or a path
    dataset: Any  # datasets.IterableDataset
    columns: Columns

    @property
    def remote(self) -> bool:
        """Whether it is on the Hub."""
        return self.place.startswith(HUB)

    def count(self) -> int | None:
        """How many records there are, if that can be told without reading them."""
        known = (self.dataset.info.splits or {}).get(str(self.dataset.split))
        if known is not None and known.num_examples:
            return int(known.num_examples)
        shards = [] if self.remote else _shards(Path(self.place))
        if not shards or shards[0].suffix != ".parquet":
            return None
        from pyarrow import ArrowException, parquet

        try:
            return sum(parquet.read_metadata(file).num_rows for file in shards)
        except (ArrowException, OSError):
            return None

    def cut_short(self) -> dict[int, str]:
        """Numbers of the archives on this machine that have no end: a reader would not notice."""
        shards = [] if self.remote else _shards(Path(self.place))
        found = {}
        for number, file in enumerate(shards):
            if file.suffix == ".tar":
                with file.open("rb") as stream:
                    stream.seek(-min(len(TAR_END), file.stat().st_size), os.SEEK_END)
                    if stream.read() != TAR_END:
                        found[number] = "has no end mark: it may be cut short"
        return found


def is_records(data: str) -> bool:
    """Whether `data` names a `datasets` source: `hf:NAME`, a shard, or a folder of shards."""
    return data.startswith(HUB) or bool(_shards(Path(data)))


def records_digest(data: str) -> str:
    """What tells whether the data has changed: the commit, or names and sizes of the shards.

    Raises BadDataset if the Hub does not know it.
    """
    if data.startswith(HUB):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        try:
            commit = HfApi().dataset_info(data.removeprefix(HUB)).sha
        except (HfHubHTTPError, HFValidationError, OSError) as reason:
            raise BadDataset(f"cannot be found: {foreign(reason)}", file=data) from None
        return str(commit)
    digest = hashlib.sha256()
    for file in _shards(Path(data)):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def open_records(
    data: str,
    settings: RecordSettings,
    *,
    revision: str | None = None,
    class_names: tuple[str, ...] = (),
) -> RecordSource:
    """A source that is read as a stream, and whose pictures stay bytes.

    Args:
        data: as `is_records` takes it.
        settings: what the user said of it.
        revision: commit of a data set of the Hub; None: the newest.
        class_names: what the user calls the classes, where the data has only numbers or words.

    Raises:
        BadDataset: it cannot be opened, a column is missing or cannot be told, or the classes have
            no names.
        ResourceError: the package `datasets` is not installed.
    """
    try:
        import datasets
    except ModuleNotFoundError as reason:
        raise missing_package(reason, "this data") from None
    shards = [] if data.startswith(HUB) else _shards(Path(data))
    kinds = sorted({file.suffix for file in shards})
    if len(kinds) > 1:
        raise BadDataset(f"holds shards of several kinds: {listed(kinds)}", file=data)
    try:
        if shards:
            files = [str(file) for file in shards]
            found: Any = datasets.load_dataset(
                BUILDERS[kinds[0]], data_files={"train": files}, split="train", streaming=True
            )
        else:
            found = datasets.load_dataset(
                data.removeprefix(HUB),
                settings.subset,
                split=settings.split,
                revision=revision,
                streaming=True,
            )
        if found.features is None:
            found = found._resolve_features()
        for name, feature in (found.features or {}).items():
            if isinstance(feature, datasets.Image):
                found = found.cast_column(name, datasets.Image(decode=False))
    except Exception as reason:  # of the library, of its readers, of the network
        problem = f"cannot be opened: {type(reason).__name__}: {foreign(reason)}"
        raise BadDataset(problem, file=data) from None
    return RecordSource(data, found, _columns(found.features or {}, settings, data, class_names))


def _columns(
    features: dict[str, Any], settings: RecordSettings, data: str, class_names: tuple[str, ...]
) -> Columns:
    import datasets

    pictures = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    classes = classes or [name for name in LABEL_NAMES if name in features]
    image = _only(settings.image, pictures, features, data, "records.image")
    label = _only(settings.label, classes, features, data, "records.label")
    names = tuple(getattr(features[label], "names", None) or class_names)
    if not names:
        raise BadDataset(
            f"the classes of column {foreign(label)} have no names",
            file=data,
            field="labels",
            expected="their names, or model.num_classes for 0, 1, 2, ...",
        )
    return Columns(image, label, names)


def picture_bytes(value: object) -> bytes:
    """The file of a picture, as a record holds it or names it. Raises UnreadablePicture."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return value["bytes"]
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        from datasets.utils.file_utils import xopen

        try:
            with xopen(value["path"], "rb") as stream:
                return stream.read()
        except Exception as reason:  # of any file system
            raise UnreadablePicture(f"{type(reason).__name__}: {foreign(reason)}") from None
    raise UnreadablePicture(f"holds {type(value).__name__} for a picture")


def _only(
    said: str | None, found: list[str], features: dict[str, Any], data: str, field: str
) -> str:
    name = said or (found[0] if len(found) == 1 else None)
    if name is None or name not in features:
        raise BadDataset(
            f"found {foreign(said)!r}" if said else f"columns that could be it: {listed(found)}",
            file=data,
            field=field,
            expected=f"one of {listed(features)}",
            fix=f"--set {field}=NAME",
        )
    return name


def _shards(place: Path) -> list[Path]:
    """The file itself, or the shards of a folder in the order of the alphabet."""
    if place.suffix in BUILDERS and place.is_file():
        return [place]
    try:
        return sorted(file for file in place.iterdir() if file.suffix in BUILDERS)
    except OSError:
        return []
