"""Run directories that were damaged by accident: cases S1 to S3, S10, S11 of docs/hardening.md."""

import os
import shutil

import numpy as np
import pytest

from ditscope.errors import BadRun
from ditscope.runs.reader import open_run
from tests.runs.damage import refused
from tests.runs.toy import Toy, manifest_of

LATENTS = "data.zarr/latents/zarr.json"
CHUNK = "data.zarr/latents/c.1.0.0.0.0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Toy(manifest_of()).write(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    manifest = manifest_of(steps=1, samples=1, layers=1, statistics=("entropy",), qk_steps=(0,))
    return Toy(manifest).write(tmp_path_factory.mktemp("small") / "run")


@pytest.fixture
def folder(tmp_path, whole):
    return shutil.copytree(whole, tmp_path / "run")


# --- accidents


def test_partial_needs_asking(folder):
    """S1."""
    (folder / "COMPLETE").unlink()
    assert "a partial run: 3 of 3 steps are whole, and it is not sealed" in refused(folder)
    run = open_run(folder, allow_partial=True)
    assert not run.complete and run.has_images and run.images.size and run.verify().ok


@pytest.mark.parametrize("name", [CHUNK, LATENTS, "images/0001.png", "run.json"])
def test_missing_file(folder, name):
    """S2."""
    (folder / name).unlink()
    assert f"{folder / name}: is missing" in refused(folder)


def test_chunk_that_vanishes_later(folder):
    """S2."""
    run = open_run(folder)
    (folder / CHUNK).unlink()
    with pytest.raises(BadRun, match=r"c.1.0.0.0.0: is missing"):
        run.latents.load()
    assert not run.verify().ok
    assert np.isfinite(run.latents.isel(step=0)).all()


def test_every_flipped_byte_of_a_chunk(small):
    """S3."""
    run, random = open_run(small), np.random.default_rng(0)
    for name, load in {
        "data.zarr/latents/c.0.0.0.0.0": lambda: open_run(small).latents.load(),
        "data.zarr/stats/entropy/c.0.0.0.0.0": lambda: open_run(small).stats,
        "data.zarr/qk/k/c.0.0.0.0.0.0.0": lambda: open_run(small).attention(0, 0, 0, (0, 0)),
    }.items():
        good = (small / name).read_bytes()
        for place in range(len(good)):
            bad = bytearray(good)
            bad[place] ^= 1 << int(random.integers(8))
            (small / name).write_bytes(bad)
            with pytest.raises(BadRun, match="not the ones that were written"):
                run.files.read(name)
            if place % 50 == 0:
                with pytest.raises(BadRun, match="not the ones that were written"):
                    load()
        (small / name).write_bytes(good)
        load()


@pytest.mark.parametrize("name", ["run.json", "COMPLETE"])
def test_every_flipped_byte_of_manifest_and_seal(small, name):
    """S3."""
    good, random = (small / name).read_bytes(), np.random.default_rng(0)
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << int(random.integers(8))
        (small / name).write_bytes(bad)
        with pytest.raises(BadRun, match="does not hold the digest of"):
            open_run(small)
    (small / name).write_bytes(good)
    assert open_run(small).verify().ok


def test_a_flip_in_any_file_is_found(folder):
    """S3."""
    random = np.random.default_rng(0)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        good = path.read_bytes()
        bad = bytearray(good)
        bad[random.integers(len(bad))] ^= 1 << int(random.integers(8))
        path.write_bytes(bad)
        try:
            problems = open_run(folder).verify().problems
        except BadRun as error:
            problems = (str(error),)
        assert len(problems) == 1 and path.name in problems[0]
        path.write_bytes(good)
    assert open_run(folder).verify().ok


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0"])
def test_cut_or_longer_chunk(folder, change):
    """S3."""
    data = change((folder / CHUNK).read_bytes())
    (folder / CHUNK).write_bytes(data)
    assert f"{CHUNK}: {len(data)} bytes long; expected" in refused(folder)


def test_leftover_files_are_ignored(folder):
    """S10."""
    (folder / "run.json.tmp").write_text("half a manif")
    (folder / "data.zarr/latents/c.3.0.0.0.0").write_bytes(b"a step that was never committed")
    (folder / "figures").mkdir()
    assert open_run(folder).verify().ok


# --- links, devices, folders


@pytest.mark.parametrize("name", [CHUNK, LATENTS, "run.json", "COMPLETE"])
def test_link_in_place_of_a_file(folder, tmp_path, name):
    """S11."""
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    assert f"{folder / name}: is something else; expected a regular file" in refused(folder)


@pytest.mark.parametrize("name", ["data.zarr", "data.zarr/latents", "images"])
def test_link_in_place_of_a_folder(folder, tmp_path, name):
    """S11."""
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    assert f"{folder / name}: is something else; expected a folder" in refused(folder)


def test_pipe_in_place_of_a_file_does_not_hang(folder):
    """S11."""
    (folder / CHUNK).unlink()
    os.mkfifo(folder / CHUNK)
    assert "is something else" in refused(folder)


def test_link_made_after_opening(folder, tmp_path):
    """S11."""
    run = open_run(folder)
    (folder / CHUNK).rename(tmp_path / "elsewhere")
    (folder / CHUNK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadRun, match="something else"):
        run.latents.load()
