"""One chunk as bytes: exact both ways, and nothing is decoded that is not what it should be."""

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numcodecs.zstd import Zstd

from ditscope.errors import BadRun
from ditscope.runs.arrays import ArraySpec
from ditscope.runs.chunks import declared_size, decode, encode, widen


def spec_of(block):
    dims = tuple(f"axis{i}" for i in range(block.ndim))
    return ArraySpec("a", dims, block.shape, block.shape, str(block.dtype))


def sealed(packed):
    """`packed` with the checksum that a chunk file ends in."""
    return packed + google_crc32c.value(packed).to_bytes(4, "little")


@given(
    hnp.arrays(
        st.sampled_from(["float32", "float16", "uint16"]),
        hnp.array_shapes(max_dims=4, max_side=6),
        elements={"allow_nan": False},
    )
)
def test_round_trip(block):
    found = decode(encode(block), spec_of(block), "f")
    assert found.dtype == block.dtype and np.array_equal(found, block)


def test_numbers_are_little_endian_and_views_are_packed():
    block = np.arange(6, dtype=">f4").reshape(2, 3).T
    raw = Zstd().decode(encode(block)[:-4])
    assert raw == block.astype("<f4").tobytes()


@given(st.one_of(st.integers(0, 600), st.sampled_from([65535, 65536, 65791, 65792, 200_000])))
def test_declared_size_is_what_the_frame_says(size):
    assert declared_size(Zstd(level=1).encode(bytes(size))) == size


def test_declared_size_of_what_is_no_frame():
    frame = Zstd(level=1).encode(bytes(70_000))
    unknown_size = frame[:4] + bytes([frame[4] & 0b00011111]) + frame[5:]
    for data in (b"", b"\x28\xb5\x2f\xfd", frame[:6], b"PK\x03\x04" + frame, unknown_size):
        assert declared_size(data) is None


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    def explode(*arguments, **keywords):
        raise AssertionError("decoded")

    monkeypatch.setattr("numcodecs.zstd.Zstd.decode", explode)
    bomb = sealed(Zstd(level=1).encode(bytes(800_000_000 // 100)))
    with pytest.raises(BadRun, match="declares 8000000 bytes; expected 16"):
        decode(bomb, spec_of(np.zeros(4, np.float32)), "chunk")


def test_a_frame_that_lies_about_its_size_cannot_write_beyond_it():
    honest = Zstd(level=1).encode(np.arange(300, dtype=np.uint8))
    assert declared_size(honest) == 300
    width = 2  # the size field of this frame: the size less 256
    lie = honest[:5] + (8 - 0).to_bytes(width, "little") + honest[5 + width :]
    spec = spec_of(np.zeros(66, np.float32))
    assert declared_size(lie) == spec.chunk_nbytes == 264
    with pytest.raises(BadRun, match="not a zstd chunk of the right size"):
        decode(sealed(lie), spec, "chunk")


@pytest.mark.parametrize("data", [b"", b"abc", b"\0" * 4, sealed(b""), sealed(b"\x28\xb5\x2f\xfd")])
def test_what_is_no_chunk(data):
    with pytest.raises(BadRun, match="chunk"):
        decode(data, spec_of(np.zeros(4, np.float32)), "chunk")


def test_every_bfloat16_and_float16_widens_exactly():
    bits = np.arange(2**16, dtype=np.uint16)
    wide = widen(bits, "bfloat16")
    assert np.array_equal(wide.view(np.uint32) >> 16, bits)
    assert not (wide.view(np.uint32) & 0xFFFF).any()
    half = bits.view(np.float16)
    assert np.array_equal(widen(half, "float16"), half.astype(np.float32), equal_nan=True)
