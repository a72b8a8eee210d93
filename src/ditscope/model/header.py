"""The header of a safetensors file, read by ourselves before any library touches the data.

The library accepts two equal keys, any text as a tensor name, and a header that says nothing of
NaN. Here the layout must be exactly the documented one (https://github.com/huggingface/safetensors):
eight bytes of length, a JSON header, and tensors that tile the rest of the file.
"""

from __future__ import annotations

import math
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ditscope.core import strict_json
from ditscope.errors import BadCheckpoint, foreign

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 16_000_000
MAX_DIMENSIONS = 8
MAX_COUNT = 2**63 - 1

ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,511}")
_ENTRY_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as the header declares it. Bytes `begin` to `end` are relative to the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file declares. `metadata` is text from a stranger."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]

    @property
    def elements(self) -> int:
        """Number of numbers in all tensors."""
        return sum(math.prod(entry.shape) for entry in self.tensors.values())


def read_header(path: str | os.PathLike[str]) -> Header:
    """The checked header of a safetensors file.

    Raises:
        BadCheckpoint: the file cannot be read, is empty, cut, padded or a pickle; the header is too
            long, not JSON, or has a key twice; a tensor has an unsafe name, an unknown type, a
            shape that disagrees with its bytes, or bytes that overlap or leave a hole.
    """
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would keep us waiting
            raise BadCheckpoint("not a regular file", file=path)
        with Path(path).open("rb") as stream:
            tree, data_bytes = _read_json(stream, status.st_size, path)
    except OSError as reason:
        raise BadCheckpoint(f"cannot be read: {reason.strerror}", file=path) from None
    metadata = _metadata(tree.pop("__metadata__", {}), path)
    tensors = {name: _entry(name, fields, path) for name, fields in tree.items()}
    _check_tiling(tensors, data_bytes, path)
    return Header(tensors, metadata)


def looks_like_pickle(start: bytes) -> bool:
    """Whether a file begins as `torch.save` writes it: a zip archive or a bare pickle."""
    return start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5")


def is_tensor_name(name: str) -> bool:
    """Whether `name` could be the path of a parameter: no `/`, no space, no control characters."""
    return _NAME.fullmatch(name) is not None


def _read_json(
    stream: BinaryIO, size: int, path: str | os.PathLike[str]
) -> tuple[dict[str, object], int]:
    start = stream.read(LENGTH_BYTES)
    if not start:
        raise BadCheckpoint("empty file", file=path)
    if len(start) < LENGTH_BYTES:
        raise BadCheckpoint(f"{size} bytes, too short for a safetensors header", file=path)
    length = int.from_bytes(start, "little")
    room = size - LENGTH_BYTES
    if length <= min(room, MAX_HEADER_BYTES):
        text = stream.read(length)
        if text.startswith(b"{"):
            return strict_json.parse(text, file=path, error=BadCheckpoint), room - length
    if looks_like_pickle(start):
        raise BadCheckpoint(
            "looks like a pickle, not safetensors", file=path, fix="use `ditscope convert`"
        )
    if length > room:
        raise BadCheckpoint(
            f"the header claims {length:,} bytes where {room:,} follow; cut, or not safetensors",
            file=path,
        )
    if length > MAX_HEADER_BYTES:
        raise BadCheckpoint(f"the header has {length:,} bytes", file=path, expected="at most 16 MB")
    raise BadCheckpoint("the header is not JSON; this is not safetensors", file=path)


def _metadata(tree: object, path: str | os.PathLike[str]) -> dict[str, str]:
    if isinstance(tree, dict) and all(isinstance(value, str) for value in tree.values()):
        return tree
    raise BadCheckpoint("is not text to text", file=path, field="__metadata__")


def _entry(name: str, fields: object, path: str | os.PathLike[str]) -> TensorEntry:
    def refuse(problem: str) -> BadCheckpoint:
        return BadCheckpoint(problem, file=path, field=f"tensor {foreign(name)}")

    if not is_tensor_name(name):
        raise refuse("the name is not that of a parameter")
    if not isinstance(fields, dict) or set(fields) != _ENTRY_FIELDS:
        raise refuse("the entry is not dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise refuse(f"unknown type {foreign(repr(dtype))}")
    if not _is_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise refuse(f"bad shape {foreign(repr(shape))}")
    if not _is_counts(offsets) or len(offsets) != 2:
        raise refuse(f"bad data_offsets {foreign(repr(offsets))}")
    declared, (begin, end) = math.prod(shape) * ITEM_BYTES[dtype], offsets
    if end - begin != declared:
        raise refuse(f"{dtype} {foreign(shape)} needs {declared:,} bytes, has {end - begin:,}")
    return TensorEntry(dtype, tuple(shape), begin, end)


def _is_counts(value: object) -> bool:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item <= MAX_COUNT for item in value
    )


def _check_tiling(
    tensors: dict[str, TensorEntry], data_bytes: int, path: str | os.PathLike[str]
) -> None:
    position = 0
    for name, entry in sorted(tensors.items(), key=lambda pair: (pair[1].begin, pair[1].end)):
        if entry.begin != position:
            what = "overlaps another tensor" if entry.begin < position else "follows a hole"
            raise BadCheckpoint(
                f"{what}: begins at byte {entry.begin:,} of the data",
                file=path,
                field=f"tensor {foreign(name)}",
                expected=f"{position:,}",
            )
        position = entry.end
    if position != data_bytes:
        what = "bytes follow the last tensor" if position < data_bytes else "bytes are missing"
        raise BadCheckpoint(f"{abs(data_bytes - position):,} {what}", file=path)
