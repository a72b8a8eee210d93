"""One chunk as bytes and back: little-endian values, zstd, CRC-32C (the codecs of Zarr v3).

Decoding trusts nothing: the checksum and the size that the frame declares are looked at before the
decoder runs, and it writes into an array of the size the manifest asks for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ditscope.errors import BadRun
from ditscope.runs.arrays import ZSTD_LEVEL, ArraySpec

_CRC_BYTES = 4
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def encode(block: NDArray[np.generic]) -> bytes:
    """The chunk file of `block`."""
    from google_crc32c import value
    from numcodecs.zstd import Zstd

    little = np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("<"))
    packed = Zstd(level=ZSTD_LEVEL).encode(little)
    return packed + value(packed).to_bytes(_CRC_BYTES, "little")


def decode(data: bytes, spec: ArraySpec, file: str) -> NDArray[np.generic]:
    """The values of a chunk file of `spec`, of shape `spec.chunks`.

    Raises:
        BadRun: the checksum is wrong, the frame declares another size, or it does not decode.
    """
    from google_crc32c import value
    from numcodecs.zstd import Zstd

    packed, checksum = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
    if value(packed).to_bytes(_CRC_BYTES, "little") != checksum:
        raise BadRun("its checksum does not match its bytes", file=file)
    declared = declared_size(packed)
    if declared != spec.chunk_nbytes:
        raise BadRun(
            f"a chunk that declares {declared if declared is not None else 'no'} bytes",
            file=file,
            expected=f"{spec.chunk_nbytes}",
        )
    block = np.empty(spec.chunks, dtype=np.dtype(spec.dtype).newbyteorder("<"))
    try:
        Zstd().decode(packed, out=block)
    except (RuntimeError, ValueError):
        raise BadRun("not a zstd chunk of the right size", file=file) from None
    return block.astype(spec.dtype, copy=False)


def declared_size(frame: bytes) -> int | None:
    """Size in bytes that a zstd frame (RFC 8878, 3.1.1) says it expands to; None if it does not."""
    if frame[:4] != _ZSTD_MAGIC or len(frame) < 5:
        return None
    descriptor = frame[4]
    size_flag, single_segment = descriptor >> 6, descriptor >> 5 & 1
    width = (single_segment, 2, 4, 8)[size_flag]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    if width == 0 or len(frame) < start + width:
        return None
    size = int.from_bytes(frame[start : start + width], "little")
    return size + 256 if width == 2 else size


def widen(bits: NDArray[np.generic], numbers: str) -> NDArray[np.float32]:
    """Stored Q or K as float32, exactly; `numbers` is the type it was computed in.

    Float32 is handed on as it is: not to be written to.
    """
    if numbers == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.astype(np.float32, copy=False)
