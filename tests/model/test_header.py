"""Bad weight files, made byte by byte. C1 to C12 of docs/hardening.md."""

import json
import os
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from ditscope.errors import BadCheckpoint
from ditscope.model.header import Header, TensorEntry, read_header
from ditscope.model.weights import load_weights


def entry(begin, end, shape=None, dtype="F32"):
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def packed(header, data=b"", length=None):
    """A safetensors file with this header (text or tree), whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return size.to_bytes(8, "little") + text + data


GOOD = {"a": entry(0, 8), "b": entry(8, 12)}

BAD_FILES = {
    "C1 empty": (b"", "empty file"),
    "C2 too short": (b"\x01\x02\x03\x04\x05\x06\x07", "7 bytes, too short"),
    "C3 header of 2**63 bytes": (packed(b"{}", length=2**63), "claims 9,223,372,036,854,775,808"),
    "C4 header longer than the file": (packed(b"{}", length=99), "claims 99 bytes where 2 follow"),
    "C5 header is not JSON": (packed(b"{not json}"), "not JSON"),
    "C5 header is not an object": (packed(b"[1, 2]"), "not JSON; this is not safetensors"),
    "C5 header is not UTF-8": (packed(b'{"\xff": 1}'), "not UTF-8"),
    "C5 header is nested": (packed(b'{"a":' * 50_000), "nested too deep"),
    "C6 overlap": (
        packed({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
        "tensor b: overlaps another tensor",
    ),
    "C6 the same bytes twice": (
        packed({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)),
        "tensor b: overlaps another tensor",
    ),
    "C7 hole": (
        packed({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)),
        "tensor b: follows a hole: begins at byte 8 of the data; expected 4",
    ),
    "C7 trailing bytes": (packed(GOOD, bytes(13)), "1 bytes follow the last tensor"),
    "C7 cut": (packed(GOOD, bytes(11)), "1 bytes are missing"),
    "C7 starts late": (packed({"a": entry(4, 8)}, bytes(8)), "tensor a: follows a hole"),
    "C8 shape is not the bytes": (
        packed({"a": entry(0, 8, [3])}, bytes(8)),
        "tensor a: F32 [3] needs 12 bytes, has 8",
    ),
    "C8 shape overflows": (packed({"a": entry(0, 8, [2**62, 4])}, bytes(8)), "tensor a: F32"),
    "C8 shape wraps around to the bytes": (
        packed({"a": entry(0, 8, [2**62 + 2, 4])}, bytes(8)),
        "tensor a: F32",
    ),
    "C8 side beyond 64 bits": (packed({"a": entry(0, 8, [2**70])}, bytes(8)), "bad shape"),
    "C8 negative side": (packed({"a": entry(0, 8, [-2])}, bytes(8)), "bad shape [-2]"),
    "C8 fractional side": (packed({"a": entry(0, 8, [2.0])}, bytes(8)), "bad shape [2.0]"),
    "C8 true for a side": (packed({"a": entry(0, 4, [True])}, bytes(4)), "bad shape [True]"),
    "C8 shape is text": (packed({"a": entry(0, 8, "2")}, bytes(8)), "bad shape '2'"),
    "C8 nine sides": (packed({"a": entry(0, 4, [1] * 9)}, bytes(4)), "bad shape"),
    "C8 offsets backwards": (packed({"a": entry(8, 0, [2])}, bytes(8)), "has -8"),
    "C8 three offsets": (
        packed({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}, bytes(4)),
        "bad data_offsets",
    ),
    "C9 a tensor twice": (
        packed(b'{"a":' + json.dumps(entry(0, 8)).encode() + b',"a":{}}', bytes(8)),
        "key 'a' appears twice",
    ),
    "C9 a field twice": (
        packed(b'{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "key 'dtype' appears twice",
    ),
    "C10 pickle in a zip": (b"PK\x03\x04" + bytes(60), "looks like a pickle"),
    "C10 bare pickle": (b"\x80\x02\x8a\x0al\xfc\x9cF" + bytes(60), "use `ditscope convert`"),
    "C11 path as a name": (
        packed({"../../etc/x": entry(0, 4)}, bytes(4)),
        "tensor ../../etc/x: the name is not that of a parameter",
    ),
    "C11 control characters as a name": (
        packed({"a\x1b]0;pwn\x07\u202e": entry(0, 4)}, bytes(4)),
        "tensor a\\u001b]0;pwn\\u0007\\u202e: the name",
    ),
    "C11 empty name": (packed({"": entry(0, 4)}, bytes(4)), "the name is not that of a parameter"),
    "entry is a number": (packed({"a": 1}), "not dtype, shape and data_offsets"),
    "entry with another field": (
        packed({"a": {**entry(0, 4), "auto_map": "x"}}, bytes(4)),
        "not dtype, shape and data_offsets",
    ),
    "unknown type": (packed({"a": entry(0, 4, [1], "F33")}, bytes(4)), "unknown type 'F33'"),
    "type is a list": (packed({"a": entry(0, 4, [1], ["F32"])}, bytes(4)), "unknown type"),
    "metadata is a list": (packed({"__metadata__": ["x"]}), "__metadata__: is not text to text"),
    "metadata holds a number": (packed({"__metadata__": {"x": 1}}), "is not text to text"),
}


@pytest.mark.parametrize(("content", "problem"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_refused_before_anything_is_allocated(tmp_path, content, problem):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(BadCheckpoint) as caught:
        load_weights(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert problem in str(caught.value)
    assert str(caught.value).startswith(str(file))
    assert str(caught.value).isprintable() or "\n  " in str(caught.value)
    assert peak < 20e6


def test_a_header_over_the_cap_is_not_read(tmp_path):
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write((20_000_000).to_bytes(8, "little"))
        stream.truncate(30_000_000)  # a hole: takes no space
    with pytest.raises(BadCheckpoint, match="20,000,000 bytes; expected at most 16 MB"):
        read_header(file)


def test_places_that_are_no_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", "/dev/null"):
        with pytest.raises(BadCheckpoint, match="not a regular file"):
            read_header(place)
    with pytest.raises(BadCheckpoint, match="No such file"):
        read_header(tmp_path / "none")


def test_a_good_file_is_described(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(packed({"__metadata__": {"made": "by us"}, **GOOD}, bytes(12)))
    header = read_header(file)
    tensors = {"a": TensorEntry("F32", (2,), 0, 8), "b": TensorEntry("F32", (1,), 8, 12)}
    assert header == Header(tensors, {"made": "by us"})
    assert header.elements == 3


def test_what_the_library_writes_is_accepted(tmp_path):
    tensors = {
        "scalar": torch.tensor(1.5),
        "none": torch.empty(0, 3),
        "half.weight": torch.ones(2, 3, dtype=torch.float16),
        "brain": torch.ones(5, dtype=torch.bfloat16),
    }
    file = tmp_path / "model.safetensors"
    file.write_bytes(save(tensors, {"format": "pt"}))
    found = load_weights(file)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_header_that_begins_like_a_pickle_is_still_read(tmp_path):
    """Its length, 640, is the bytes 80 02: the start of a pickle of protocol 2."""
    text = json.dumps(GOOD).encode().ljust(640)
    file = tmp_path / "model.safetensors"
    file.write_bytes(packed(text, bytes(12)))
    assert set(read_header(file).tensors) == {"a", "b"}


WHOLE = save({"w": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}, {"format": "pt"})


@st.composite
def damaged(draw):
    data = bytearray(WHOLE)
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["flip", "cut", "insert", "double"]))
        place = draw(st.integers(0, len(data) - 1)) if data else 0
        if kind == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[place : place + draw(st.integers(1, 40))]
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
        else:
            data[place:place] = data[place : place + 30]
    return bytes(data)


@given(damaged())
def test_a_damaged_file_is_refused_or_means_what_the_library_says(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    file.write_bytes(data)
    try:
        found = load_weights(file)
    except BadCheckpoint:
        return
    expected = load(data)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) or tensor.isnan().any()
