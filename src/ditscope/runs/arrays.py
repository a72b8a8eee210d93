"""One array of a run as Zarr v3 stores it: chunk names, the `zarr.json`, and its strict check.

The documents are written here and not by a Zarr library, so that the format of a run is ours and
does not move with a library's version. Any Zarr v3 library reads the result.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ditscope.core.axes import SAMPLE
from ditscope.errors import BadRun, foreign

DATA, ZARR_JSON = "data.zarr", "zarr.json"
ITEM_BYTES = {"float32": 4, "float16": 2, "uint16": 2}
ZSTD_LEVEL = 1

_CODECS = [
    {"name": "bytes", "configuration": {"endian": "little"}},
    {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}},
    {"name": "crc32c"},
]
_FREE_FIELDS = {"attributes", "fill_value", "storage_transformers"}
"""Fields of an array's `zarr.json` that change nothing for a reader who needs every chunk."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of `data.zarr`. Every chunk is whole: `chunks` divides `shape`."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    attributes: Mapping[str, object] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Size of all values, uncompressed."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def chunk_nbytes(self) -> int:
        """Size of the values of one chunk, uncompressed."""
        return math.prod(self.chunks) * ITEM_BYTES[self.dtype]

    @property
    def num_chunks(self) -> int:
        """Number of chunk files of the whole array."""
        return math.prod(self.shape) // math.prod(self.chunks)

    @property
    def samples_per_chunk(self) -> int:
        """Number of samples that share a chunk."""
        return self.chunks[self.dims.index(SAMPLE)]

    @property
    def metadata_file(self) -> str:
        """Path of the array's `zarr.json`, relative to the run directory."""
        return f"{DATA}/{self.name}/{ZARR_JSON}"

    def chunk_files(self, **position: int) -> Iterator[str]:
        """Paths of the chunks at `position` (chunk index by axis; all along the axes not named)."""
        counts = (size // depth for size, depth in zip(self.shape, self.chunks, strict=True))
        ranges = (
            (position[dim],) if dim in position else range(count)
            for dim, count in zip(self.dims, counts, strict=True)
        )
        for index in itertools.product(*ranges):
            yield f"{DATA}/{self.name}/c." + ".".join(map(str, index))

    def document(self) -> dict[str, object]:
        """The array's `zarr.json` (Zarr v3 core specification)."""
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.chunks)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": 0 if self.dtype.startswith("uint") else "NaN",
            "codecs": _CODECS,
            "dimension_names": list(self.dims),
            "attributes": dict(self.attributes),
        }


def document_bytes(tree: Mapping[str, object]) -> bytes:
    """What a `zarr.json` holds."""
    return (json.dumps(tree, indent=1) + "\n").encode()


def group_document() -> dict[str, object]:
    """The `zarr.json` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": {}}


def check_group(found: Mapping[str, object], file: str) -> None:
    """Raise BadRun unless `found`, the parsed `zarr.json` of a group, is one."""
    for name, value in (("zarr_format", 3), ("node_type", "group")):
        _expect(found.get(name), value, name, file)


def check_array(found: Mapping[str, object], spec: ArraySpec, file: str) -> None:
    """Raise BadRun unless `found`, a parsed `zarr.json`, describes exactly `spec`.

    Codecs are compared by what decides how bytes are read; anything that is not in our list is
    refused here, before a decoder sees a byte.
    """
    expected = spec.document()
    unknown = found.keys() - expected.keys() - _FREE_FIELDS
    if unknown:
        raise BadRun(f"unknown field {foreign(min(unknown))}", file=file)
    if found.get("storage_transformers"):
        raise BadRun("storage transformers are not supported", file=file)
    _expect(_codec_names(found.get("codecs")), ["bytes", "zstd", "crc32c"], "codecs", file)
    for name in expected.keys() - _FREE_FIELDS - {"codecs"}:
        _expect(found.get(name), expected[name], name, file)


def _codec_names(codecs: object) -> object:
    if not isinstance(codecs, list):
        return codecs
    return [
        codec.get("name")
        if isinstance(codec, dict)
        and (codec.get("name") != "bytes" or codec.get("configuration") == {"endian": "little"})
        else codec
        for codec in codecs
    ]


def _expect(found: object, wanted: object, name: str, file: str) -> None:
    # Compared as text: Python holds 1, 1.0 and True to be equal, and a file must not.
    if json.dumps(found, sort_keys=True) != json.dumps(wanted, sort_keys=True):
        raise BadRun(
            f"found {foreign(json.dumps(found))}",
            file=file,
            field=name,
            expected=json.dumps(wanted),
        )
