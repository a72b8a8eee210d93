"""`repair_run`: everything whole is kept, everything else is named, whatever interrupts it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ditscope.errors import BadRun, ResourceError
from ditscope.runs.reader import open_run
from ditscope.runs.repair import repair_run
from ditscope.runs.writer import RunWriter
from tests.runs.damage import edit_manifest
from tests.runs.toy import Toy, manifest_of

LATENT, STAT = "data.zarr/latents/c.1.0.0.0.0", "data.zarr/stats/entropy/c.2.0.0.0.0"
KEYS, IMAGE = "data.zarr/qk/k/c.0.0.0.1.0.0.0", "images/0001.png"
GROUP, ARRAY = "data.zarr/stats/zarr.json", "data.zarr/latents/zarr.json"
TOY = Toy(manifest_of())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return TOY.write(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def folder(tmp_path, whole):
    return shutil.copytree(whole, tmp_path / "run")


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "missing": Path.unlink,
    "flipped": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "link": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


def test_a_whole_run_is_left_alone(folder):
    before = content(folder)
    found = repair_run(folder)
    assert content(folder) == before and os.listdir(folder.parent) == ["run"]
    assert found.complete and not found.changed and found.kept_files == len(before) - 2


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [LATENT, STAT, KEYS, IMAGE])
def test_a_lost_file_is_named_and_all_else_kept(folder, damage, name):
    good = {path: data for path, data in content(folder).items() if path != folder / name}
    DAMAGE[damage](folder / name)
    found = repair_run(folder)
    assert found.lost == (name,) and found.changed and not found.rebuilt
    assert found.lost_steps == {LATENT: (1,), STAT: (2,), KEYS: (1,)}.get(name, ())
    assert all(
        path.read_bytes() == data
        for path, data in good.items()
        if path.name not in ("run.json", "COMPLETE")
    )
    run = open_run(folder)
    assert run.complete and tuple(run.manifest.lost) == (name,) and "1 files were lost" in repr(run)
    assert run.verify().ok
    again = content(folder) if damage != "link" else None
    assert not repair_run(folder).changed and repair_run(folder).lost == (name,)
    assert again is None or content(folder) == again


def test_what_is_lost_reads_as_nan_or_is_an_error(folder):
    for name in (LATENT, STAT, KEYS, IMAGE):
        (folder / name).unlink()
    repair_run(folder)
    run = open_run(folder)
    assert len(run.steps) == 3 and not run.has_images
    assert np.isnan(run.latents[1]).all() and np.array_equal(run.latents[[0, 2]], TOY.latents[::2])
    assert np.isnan(run.stats.entropy[2]).all()
    for name in ("entropy", "rms_distance"):
        assert np.array_equal(run.stats[name][:2], [stats[name] for stats in TOY.stats[:2]])
    assert np.array_equal(run.final, TOY.final)
    assert np.array_equal(run.files.image("images/0000.png"), TOY.images[0])
    with pytest.raises(BadRun, match=r"0001.png: was lost before the run was repaired"):
        run.images  # noqa: B018
    assert run.attention(0, 0, 1, (0, 0)).attrs["source"] == "stored"
    with pytest.raises(BadRun, match="step 1 cannot be run again: its latent was lost"):
        run.attention(1, 0, 1, (0, 0))


def test_an_original_that_comes_back_is_taken_back(folder, whole):
    (folder / LATENT).unlink()
    flip(folder / IMAGE)
    assert set(repair_run(folder).lost) == {LATENT, IMAGE}
    shutil.copyfile(whole / LATENT, folder / LATENT)
    found = repair_run(folder)
    assert found.regained == (LATENT,) and found.lost == (IMAGE,)
    assert np.array_equal(open_run(folder).latents, TOY.latents)
    shutil.copyfile(whole / IMAGE, folder / IMAGE)
    assert repair_run(folder).complete
    assert np.array_equal(open_run(folder).images, TOY.images)


@pytest.mark.parametrize("damage", [*DAMAGE])
@pytest.mark.parametrize("name", [GROUP, ARRAY])
def test_metadata_is_written_again(folder, damage, name):
    before = content(folder)
    DAMAGE[damage](folder / name)
    found = repair_run(folder)
    assert found.rebuilt == (name,) and found.complete and content(folder) == before


def test_a_folder_that_is_gone(folder):
    shutil.rmtree(folder / "data.zarr/stats")
    found = repair_run(folder)
    assert len(found.lost) == 9 and found.lost_steps == (0, 1, 2) and len(found.rebuilt) == 4
    run = open_run(folder)
    assert np.isnan(run.stats.entropy).all() and np.array_equal(run.latents, TOY.latents)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_that_was_cut_short_opens_with_its_steps(tmp_path, steps):
    with RunWriter(tmp_path / "run", TOY.manifest) as writer:
        for step in range(steps):
            TOY.write_step(writer, step)
    found = repair_run(tmp_path / "run")
    assert (found.steps, found.planned, found.lost) == (steps, 3, ())
    assert found.never_written == tuple(range(steps, 3)) and found.changed
    run = open_run(tmp_path / "run")
    assert not run.complete and not run.has_images and len(run.steps) == steps
    assert np.array_equal(run.latents, TOY.latents[:steps]) and run.verify().ok
    with pytest.raises(BadRun, match="a partial run has no images"):
        run.images  # noqa: B018
    assert not repair_run(tmp_path / "run").changed


def test_damage_in_a_run_that_was_cut_short(tmp_path):
    TOY.write(tmp_path / "run", steps=2)
    flip(tmp_path / "run" / LATENT)
    found = repair_run(tmp_path / "run")
    assert found.lost == (LATENT,) and found.lost_steps == (1,) and found.never_written == (2,)
    run = open_run(tmp_path / "run")
    assert np.array_equal(run.stats.entropy, [stats["entropy"] for stats in TOY.stats[:2]])


@pytest.mark.parametrize("change", [lambda seal: seal[:20], lambda seal: b"0" + seal[1:]])
def test_a_damaged_seal_is_made_again(folder, change):
    before = content(folder)
    (folder / "COMPLETE").write_bytes(change((folder / "COMPLETE").read_bytes()))
    assert repair_run(folder).complete and content(folder) == before


def damaged_manifest(folder):
    data = (folder / "run.json").read_bytes().replace(b'"seed": 0', b'"seed": 1')
    (folder / "run.json").write_bytes(data)


def linked_folder(folder):
    (folder / "data.zarr/stats").rename(folder.parent / "elsewhere")
    (folder / "data.zarr/stats").symlink_to(folder.parent / "elsewhere")


def nothing_whole(folder):
    for path in folder.glob("data.zarr/**/c.*"):
        path.unlink()


REFUSED = {
    "no run": (shutil.rmtree, "does not exist"),
    "no manifest": (lambda folder: (folder / "run.json").unlink(), "run.json: is missing"),
    "another manifest": (damaged_manifest, "not the one that was sealed"),
    "a manifest cut short": (lambda folder: DAMAGE["cut"](folder / "run.json"), "run.json: "),
    "a link for a folder": (linked_folder, "data.zarr/stats: is something else"),
    "nothing whole": (nothing_whole, "no file of any step is whole"),
    "never lost": (
        lambda folder: edit_manifest(
            folder, lambda tree: tree["lost"].update({GROUP: tree["files"].pop(GROUP)})
        ),
        "lost: names what cannot be lost",
    ),
    "lost elsewhere": (
        lambda folder: edit_manifest(
            folder, lambda tree: tree["lost"].update({"../x": tree["files"][GROUP]})
        ),
        r"files: lists \.\./x",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_repaired_is_left_alone(folder, case):
    change, message = REFUSED[case]
    change(folder)
    before = content(folder)
    with pytest.raises(BadRun, match=message):
        repair_run(folder)
    assert content(folder) == before and not (folder.parent / "run.lock").exists()


def test_links_are_not_followed(folder, tmp_path):
    """A link where a file belongs is lost, and what it leads to stays as it is."""
    for name in (LATENT, ARRAY):
        shutil.copyfile(folder / name, tmp_path / Path(name).name)
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / Path(name).name)
    before = {name: (tmp_path / Path(name).name).read_bytes() for name in (LATENT, ARRAY)}
    found = repair_run(folder)
    assert found.lost == (LATENT,) and found.rebuilt == (ARRAY,)
    assert (folder / LATENT).is_symlink() and not (folder / ARRAY).is_symlink()
    assert all((tmp_path / Path(name).name).read_bytes() == data for name, data in before.items())


def test_refused_while_it_is_written(tmp_path):
    with RunWriter(tmp_path / "run", TOY.manifest) as writer:
        TOY.write_step(writer, 0)
        with pytest.raises(ResourceError, match="the run is being written"):
            repair_run(tmp_path / "run")
        TOY.write_step(writer, 1)
        TOY.write_step(writer, 2)
        TOY.write_end(writer)
    assert open_run(tmp_path / "run").verify().ok and repair_run(tmp_path / "run").complete


def test_an_older_run_without_its_name_gets_it_back(folder):
    folder.rename(folder.parent / "run.old-host-1-0123abcd")
    assert repair_run(folder).complete and os.listdir(folder.parent) == ["run"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("how", ["kill", "fail", "limit"])
@pytest.mark.parametrize("scenario", ["damaged", "short"])
def test_breaking_a_repair_anywhere_leaves_the_old_state_or_the_new(how, scenario):
    done = subprocess.run(
        [sys.executable, "-m", "tests.runs.crash_repair", how, scenario],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {report["found"] for report in found} == {"old", "new"}
    assert all(report["repaired"] and report["kept"] for report in found)
    ends = {"kill": {-9, 98}, "fail": {3, 4, 0, 98}, "limit": {4, 98}}[how]
    assert {report["status"] for report in found} <= ends
