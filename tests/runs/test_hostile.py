"""Run directories made to do harm: digests, sizes and seal are right, something else is not.

Cases S4 to S9, S11, S14 and S16 of docs/hardening.md.
"""

import io
import json
import shutil

import google_crc32c
import numpy as np
import psutil
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numcodecs.zstd import Zstd
from PIL import Image

from ditscope.core.manifest import SCHEMA_VERSION
from ditscope.errors import BadRun
from ditscope.runs.chunks import encode
from ditscope.runs.reader import open_run
from tests.runs.damage import edit_document, edit_manifest, forge, refused, seal
from tests.runs.toy import Toy, manifest_of

LATENTS = "data.zarr/latents/zarr.json"
CHUNK = "data.zarr/latents/c.1.0.0.0.0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Toy(manifest_of()).write(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def folder(tmp_path, whole):
    return shutil.copytree(whole, tmp_path / "run")


# --- chunks


def test_chunk_bomb(folder):
    """S4. Declares 400 MB where 864 B belong; nothing of it is ever unpacked."""
    packed = Zstd(level=1).encode(bytearray(400_000_000))
    data = packed + google_crc32c.value(packed).to_bytes(4, "little")
    forge(folder, CHUNK, data)
    process = psutil.Process()
    before = process.memory_info().rss
    run = open_run(folder)
    with pytest.raises(BadRun, match=r"c.1.0.0.0.0: a chunk that declares 400000000 bytes"):
        run.latents.load()
    assert process.memory_info().rss - before < 100_000_000


@pytest.mark.parametrize("data", [b"", b"\x28\xb5\x2f\xfd\x20", bytes(100)])
def test_chunk_of_nonsense(folder, data):
    """S4."""
    forge(folder, CHUNK, data)
    with pytest.raises(BadRun, match=r"c.1.0.0.0.0: "):
        open_run(folder).latents.load()


def test_chunk_larger_than_any_chunk(folder):
    """S4. A sparse file, so that the disk does not notice."""
    with (folder / CHUNK).open("wb") as stream:
        stream.truncate(10**11)
    edit_manifest(folder, lambda m: m["files"][CHUNK].update(size=10**11))
    assert "100,000,000,000 bytes long; expected" in refused(folder)


# --- zarr.json


def codecs(*names):
    return [{"name": name} if isinstance(name, str) else name for name in names]


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
BIG = {"name": "bytes", "configuration": {"endian": "big"}}
BLOSC = {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 5}}
PICKLE = {"name": "numcodecs.pickle", "configuration": {"protocol": 5}}

DOCUMENTS = {
    "S5 huge": ({"shape": [10**15, 2, 3, 4, 6]}, "shape: found .1000000000000000"),
    "S6 negative": ({"shape": [-3, 2, 3, 4, 6]}, "shape: found .-3"),
    "S6 zero": ({"shape": [0, 2, 3, 4, 6]}, "shape: found .0"),
    "S6 float": ({"shape": [3.0, 2, 3, 4, 6]}, "shape: found .3.0"),
    "S6 text": ({"shape": "3"}, "shape: found"),
    "S6 chunk": (
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [9, 2, 3, 4, 6]}}},
        "chunk_grid: found",
    ),
    "S6 grid": ({"chunk_grid": {"name": "rectangular"}}, "chunk_grid: found"),
    "S8 v2": ({"zarr_format": 2}, "zarr_format: found 2; expected 3"),
    "S8 v2 as true": ({"zarr_format": True}, "zarr_format: found true; expected 3"),
    "S8 group": ({"node_type": "group"}, "node_type: found"),
    "S8 pickle": ({"codecs": [PICKLE, *codecs("zstd", "crc32c")]}, "codecs: found"),
    "S8 filters": ({"filters": [{"id": "pickle"}]}, "unknown field filters"),
    "S8 vlen": ({"data_type": "string", "codecs": codecs("vlen-utf8")}, "codecs: found"),
    "S8 type": ({"data_type": "float64"}, "data_type: found"),
    "S9 blosc": ({"codecs": [BYTES, BLOSC, *codecs("crc32c")]}, 'codecs: found .*"blosc"'),
    "S9 no crc": ({"codecs": [BYTES, *codecs("zstd")]}, "codecs: found"),
    "S9 endian": ({"codecs": [BIG, *codecs("zstd", "crc32c")]}, "codecs: found"),
    "S9 text": ({"codecs": "zstd"}, "codecs: found"),
    "keys": ({"chunk_key_encoding": {"name": "v2"}}, "chunk_key_encoding: found"),
    "names": ({"dimension_names": list("abcde")}, "dimension_names: found"),
    "transformer": ({"storage_transformers": [{"name": "x"}]}, "storage transformers"),
    "unknown": ({"must_understand": True}, "unknown field must_understand"),
}


@pytest.mark.parametrize(("change", "message"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_array_that_is_not_the_one_that_belongs_there(folder, change, message):
    edit_document(folder, LATENTS, lambda document: document.update(change))
    with pytest.raises(BadRun, match=f"{LATENTS}: {message}"):
        open_run(folder)


@pytest.mark.parametrize("name", ["data.zarr/zarr.json", LATENTS])
@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": 1, "a": 2}', b'{"a": NaN}', b"[" * 10**5]
)
def test_zarr_json_that_is_none(folder, name, data):
    """S7."""
    forge(folder, name, data)
    assert f"{folder / name}: " in refused(folder)


def test_group_that_is_an_array(folder):
    """S8."""
    edit_document(folder, "data.zarr/stats/zarr.json", lambda d: d.update(node_type="array"))
    assert "stats/zarr.json: node_type: found" in refused(folder)


# --- manifests


def drop_chunk(manifest):
    del manifest["files"][CHUNK]


def climb(manifest):
    manifest["files"]["../../etc/passwd"] = manifest["files"][CHUNK]


MANIFESTS = {
    "S2 unlisted": (drop_chunk, r"files: does not list data.zarr/latents/c.1.0.0.0.0"),
    "S11 outside": (climb, r"files: lists \.\./\.\./etc/passwd"),
    "S5 huge": (lambda m: m.update(latent_shape=[10**5] * 3), "latents: .* numbers"),
    "S6 zero": (lambda m: m.update(latent_shape=[0, 4, 6]), "latent_shape: a size below 1"),
    "S6 float": (lambda m: m.update(latent_shape=[3.5, 4, 6]), "latent_shape.0: "),
    "S14 surrogate": (lambda m: m["labels"][0].update(name="\ud800"), "Invalid JSON"),
    "S16 labels": (lambda m: m["labels"].pop(), "sample_seeds: 2 seeds for 1 samples"),
    "newer": (
        lambda m: m.update(schema_version=SCHEMA_VERSION + 1, versions={"ditscope": "9.9"}),
        "schema_version: 2, made by ditscope 9.9; expected 1, .*\n  update ditscope",
    ),
    "older": (lambda m: m.update(schema_version=0), "schema_version: 0, made by ditscope 0.1.0"),
    "format": (lambda m: m.update(format="other"), "format: .*'other'"),
    "unknown": (lambda m: m.update(lables=[]), "lables: unknown field\n  did you mean labels"),
    "missing": (lambda m: m.pop("seed"), "seed: Field required"),
    "text": (lambda m: m.update(seed="8"), "seed: "),
    "digest": (lambda m: m["files"][CHUNK].update(sha256="0"), "sha256: "),
    "size": (lambda m: m["files"][CHUNK].update(size=-1), "size: "),
    "fewer": (lambda m: m.update(committed_steps=[0, 1]), "2 of 3 steps are whole"),
    "none": (lambda m: m.update(committed_steps=[]), "0 of 3 steps are whole"),
}


@pytest.mark.parametrize(("edit", "message"), MANIFESTS.values(), ids=MANIFESTS)
def test_manifest_that_does_not_hold(folder, edit, message):
    edit_manifest(folder, edit)
    with pytest.raises(BadRun, match=message):
        open_run(folder)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[1]",
        b'{"format": "ditscope-run", "format": "x"}',
        b'{"seed": NaN}',
        b'{"a":' * 10**5,
        b'{"a": "' + b"x" * 16_000_001,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "null", "list", "twice", "nan", "deep", "large", "digits"],
)
def test_manifest_that_is_none(folder, data):
    (folder / "run.json").write_bytes(data)
    seal(folder)
    assert "run.json: " in refused(folder)


GOOD = json.dumps(json.loads(Toy(manifest_of()).manifest.model_dump_json())).encode()


@given(st.data())
def test_mutated_manifest_is_refused_or_read(tmp_path_factory, data):
    """Without a seal nothing vouches for it: any text is still a typed error or a run."""
    folder = tmp_path_factory.mktemp("mutated")
    text = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text) - 1))
        stop = data.draw(st.integers(start, min(len(text), start + 20)))
        text[start:stop] = data.draw(st.binary(max_size=4) | st.just(bytes(text[:30])))
    (folder / "run.json").write_bytes(text)
    with pytest.raises(BadRun):  # there is nothing beside it
        open_run(folder, allow_partial=True)


# --- right bytes, wrong numbers


NOISE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def png(pixels, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a PNG picture"),
        (b"GIF89a" + bytes(50), "not a PNG picture"),
        (png(np.zeros((8, 12, 3), np.uint8), format="JPEG"), "not a PNG picture"),
        (png(NOISE, format="PNG")[:150], "a damaged PNG picture"),
        (png(np.zeros((8, 12, 4), np.uint8), format="PNG"), "not RGB"),
        (png(np.zeros((8, 12), np.uint8), format="PNG"), "not RGB"),
        (png(np.zeros((8, 11, 3), np.uint8), format="PNG"), "pictures of different sizes"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\xff" * 40, "at most 64 Mpx"),
    ],
    ids=["empty", "gif", "jpeg", "cut", "alpha", "grey", "size", "bomb"],
)
def test_picture_that_is_none(folder, data, message):
    forge(folder, "images/0001.png", data)
    run = open_run(folder)
    with pytest.raises(BadRun, match=message):
        _ = run.images
    (problem,) = run.verify().problems
    assert "images/0001.png" in problem and message in problem


def test_attention_that_does_not_sum_to_one(folder):
    """S16. The log-sum-exp belongs to other Q and K."""
    run = open_run(folder)
    name = "data.zarr/qk/lse/c.0.0.0.1.0.0"
    lse = run.files.chunk(run.layout.qk["lse"], name)
    forge(folder, name, encode(lse + np.float32(0.01)))
    run = open_run(folder)
    assert run.attention(0, 0, 1, (0, 0)).sum() == pytest.approx(1)
    with pytest.raises(BadRun, match=r"sums to 1 with an error of 1\.0e-02"):
        run.attention(1, 0, 1, (0, 0))
    assert "layer 1: attention of query" in run.verify().problems[0]


@pytest.mark.parametrize(
    ("statistic", "value", "message"),
    [
        ("entropy", -0.1, "a value outside 0 to 1.792"),
        ("entropy", 1.9, "a value outside 0 to 1.792"),
        ("entropy", np.nan, "a value outside"),
        ("rms_distance", 2.3, "a value outside 0 to 2.236"),
        ("received_max", 1.2, "a value outside 0 to 1"),
        ("received_max", np.inf, "a value outside 0 to 1"),
    ],
)
def test_statistic_out_of_bounds(folder, statistic, value, message):
    """S16."""
    run = open_run(folder)
    name = f"data.zarr/stats/{statistic}/c.2.0.0.0.0"
    values = run.files.chunk(run.layout.stats[statistic], name).copy()
    values[0, 1, 0, 1, 0] = value
    forge(folder, name, encode(values))
    (problem,) = open_run(folder).verify().problems
    assert message in problem
    assert f"{statistic} of uncond, blocks.1.attn, step 2" in problem


def test_statistic_of_a_branch_that_was_not_evaluated(tmp_path):
    """S16."""
    toy = Toy(manifest_of(branches=lambda step: ("cond",) if step else ("cond", "uncond")))
    folder = toy.write(tmp_path / "run")
    name = "data.zarr/stats/entropy/c.1.0.0.0.0"
    forge(folder, name, encode(np.full((1, 2, 2, 2, 2), 0.5, np.float32)))
    problems = open_run(folder).verify().problems
    assert len(problems) == 2 and "a value where nothing was measured" in problems[0]


def test_latents_that_are_not_finite(folder):
    """S16."""
    forge(folder, CHUNK, encode(np.full((1, 2, 3, 4, 6), np.nan, np.float32)))
    (problem,) = open_run(folder).verify().problems
    assert problem.endswith("NaN or Inf in latents")


# --- a run that somebody else wrote


def test_a_run_written_by_the_zarr_library_opens(folder):
    """The format is not our writer: the same arrays from zarr-python are the same run."""
    run = open_run(folder)
    arrays = {spec.name: spec for spec in run.layout.arrays}
    values = {name: zarr.open_array(folder / "data.zarr" / name)[:] for name in arrays}
    shutil.rmtree(folder / "data.zarr")
    root = zarr.create_group(folder / "data.zarr")
    for name, spec in arrays.items():
        array = root.create_array(
            name,
            shape=spec.shape,
            chunks=spec.chunks,
            dtype=spec.dtype,
            compressors=[zarr.codecs.ZstdCodec(level=5), zarr.codecs.Crc32cCodec()],
            dimension_names=spec.dims,
            chunk_key_encoding={"name": "default", "separator": "."},
            config={"write_empty_chunks": True},
        )
        array[:] = values[name]
    for name in list(run.manifest.files):
        forge(folder, name, (folder / name).read_bytes())
    theirs = open_run(folder)
    assert theirs.verify().ok
    toy = Toy(manifest_of())
    assert np.array_equal(theirs.stats.entropy, [stats["entropy"] for stats in toy.stats])
    expected = toy.probabilities(1, 0, "cond", 0)[0, 4]
    np.testing.assert_allclose(theirs.attention(0, 0, 1, 4).values.ravel(), expected, atol=1e-6)
