"""What a writer leaves on disk: a whole run, a whole prefix, or nothing."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import xarray
import zarr

from ditscope.errors import BadRequest, BadRun, NumericalError, ResourceError
from ditscope.runs import target as targets
from ditscope.runs import writer as writers
from ditscope.runs.reader import open_run
from ditscope.runs.target import check_target
from ditscope.runs.writer import RunWriter
from tests.runs.toy import BOTH, COND, Toy, manifest_of


def contents(folder):
    """Every file below `folder` with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def toy():
    return Toy(manifest_of())


def test_a_run_holds_what_it_lists_and_nothing_else(tmp_path, toy):
    folder = toy.write(tmp_path / "run")
    found = contents(folder)
    manifest = json.loads(found.pop("run.json"))
    found.pop("COMPLETE")
    assert manifest["files"] == {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in found.items()
    }
    assert manifest["committed_steps"] == [0, 1, 2]
    assert os.listdir(tmp_path) == ["run"]


def test_fifty_steps_of_xl_take_less_than_five_megabytes(tmp_path):
    """Replay and statistics of DiT-XL/2, 256 tokens, with guidance; the numbers are noise."""
    sizes = {"steps": 50, "samples": 1, "layers": 28, "heads": 16, "grid": (16, 16), "width": 72}
    folder = Toy(manifest_of(**sizes, latent_shape=(4, 32, 32), qk_steps=())).write(
        tmp_path / "run"
    )
    parts = contents(folder)
    assert sum(len(part) for name, part in parts.items() if not name.startswith("images")) < 5e6


def test_the_seal_is_what_sha256sum_checks(tmp_path, toy):
    folder = toy.write(tmp_path / "run")
    done = subprocess.run(["sha256sum", "-c", "COMPLETE"], cwd=folder, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"run.json: OK\n")


@pytest.mark.parametrize("qk_dtype", ["float32", "float16", "bfloat16"])
def test_any_zarr_reader_finds_the_numbers(tmp_path, qk_dtype):
    toy = Toy(manifest_of(qk_dtype=qk_dtype, qk_steps=(0, 2)))
    group = zarr.open_group(toy.write(tmp_path / "run") / "data.zarr", mode="r")
    assert np.array_equal(group["latents"][:], toy.latents)
    assert np.array_equal(group["final"][:], toy.final)
    for name in toy.manifest.statistics:
        assert np.array_equal(group["stats"][name][:], [stats[name] for stats in toy.stats])
    for position, step in enumerate((0, 2)):
        for layer in range(2):
            for name, values in zip(("q", "k", "lse"), toy.qk[step, layer][0], strict=True):
                assert np.array_equal(group["qk"][name][position, :, :, layer], values)


def test_xarray_finds_names_and_units(tmp_path, toy):
    path = toy.write(tmp_path / "run") / "data.zarr"
    stats = xarray.open_zarr(path, group="stats", consolidated=False)
    assert stats.entropy.dims == ("step", "branch", "sample", "layer", "head")
    assert stats.entropy.attrs["units"] == "nats"
    qk = xarray.open_zarr(path, group="qk", consolidated=False)
    assert qk.q.dims == ("step", "branch", "sample", "layer", "head", "query", "head_width")
    assert qk.k.dims == ("step", "branch", "sample", "layer", "head", "key", "head_width")


def test_a_chunk_is_one_step_deep_and_in_qk_one_layer(tmp_path, toy):
    folder = toy.write(tmp_path / "run") / "data.zarr"
    names = {array.name: len([*array.glob("c.*")]) for array in folder.rglob("*") if array.is_dir()}
    steps, kept_layers = 3, 2
    assert names["latents"] == names["entropy"] == steps
    assert names["q"] == names["k"] == names["lse"] == kept_layers


def test_samples_are_split_only_where_a_chunk_would_be_large(tmp_path, monkeypatch):
    monkeypatch.setattr("ditscope.runs.layout.SHARED_CHUNK_BYTES", 3 * 4 * 6 * 4 * 2)
    toy = Toy(manifest_of(samples=6))
    folder = toy.write(tmp_path / "run")
    assert len([*(folder / "data.zarr/latents").glob("c.*")]) == 3 * 3  # two samples in each
    run = open_run(folder)
    assert np.array_equal(run.latents, toy.latents)
    expected = toy.probabilities(1, 0, "cond", 5)[1, 3]
    found = run.attention(0, 1, 1, query=3, sample=5)
    np.testing.assert_allclose(found.values.ravel(), expected, atol=1e-6)


def test_branches_that_are_not_evaluated_are_nan(tmp_path):
    toy = Toy(manifest_of(branches=lambda step: BOTH if step == 1 else COND))
    run = open_run(toy.write(tmp_path / "run"))
    assert np.isnan(run.stats.entropy.sel(branch="uncond", step=[0, 2])).all()
    assert np.array_equal(run.stats.entropy.sel(step=1), toy.stats[1]["entropy"])
    assert np.array_equal(run.stats.entropy.sel(step=0, branch="cond"), toy.stats[0]["entropy"][0])
    assert run.verify().ok
    with pytest.raises(BadRequest, match="uncond was not evaluated at step 0; expected cond"):
        run.attention(0, 0, 0, (0, 0), branch="uncond")


def test_a_run_without_guidance_has_one_branch(tmp_path):
    run = open_run(Toy(manifest_of(branches=lambda step: COND)).write(tmp_path / "run"))
    assert run.stats["branch"].values.tolist() == ["cond"]


def test_a_run_may_have_no_statistics(tmp_path):
    toy = Toy(manifest_of(layers=0, statistics=(), qk_steps=()))
    run = open_run(toy.write(tmp_path / "run"))
    assert run.complete and run.verify().ok and not run.stats.data_vars


# --- what is refused before anything is computed


def refused(path, **options):
    with pytest.raises(ResourceError) as caught:
        check_target(path, **options)
    assert caught.value.exit_code == 4
    with pytest.raises(ResourceError), RunWriter(path, manifest_of(), **options):
        pass
    return str(caught.value)


def test_missing_parent(tmp_path):
    assert "its parent folder does not exist" in refused(tmp_path / "no" / "run")


def test_a_file_in_its_place(tmp_path):
    (tmp_path / "run").write_text("x")
    assert "is a file" in refused(tmp_path / "run", overwrite=True)


def test_a_folder_of_other_files(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    assert "holds other files" in refused(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "thesis.tex").exists()


def test_a_run_in_its_place(tmp_path, toy):
    before = contents(toy.write(tmp_path / "run"))
    assert "already holds a run" in refused(tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_a_parent_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a superuser may write anywhere
    assert "its parent folder is not writable" in refused(tmp_path / "run")


def test_an_empty_folder_is_taken(tmp_path, toy):
    (tmp_path / "run").mkdir()
    assert open_run(toy.write(tmp_path / "run")).complete


def test_too_little_space(tmp_path, toy, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ResourceError, match="free"), RunWriter(tmp_path / "run", toy.manifest):
        pass
    assert os.listdir(tmp_path) == []


def test_two_writers_of_one_name(tmp_path, toy):
    with RunWriter(tmp_path / "run", toy.manifest) as writer:
        for _ in range(2):  # neither before nor after the first step has given it its name
            with (
                pytest.raises(ResourceError, match=rf"by process {os.getpid()} on "),
                RunWriter(tmp_path / "run", toy.manifest, overwrite=True),
            ):
                pass
            if not (tmp_path / "run").exists():
                toy.write_step(writer, 0)
    assert len(open_run(tmp_path / "run", allow_partial=True).steps) == 1


def test_a_run_at_once_shows_when_it_is_whole(tmp_path, toy):
    """Its steps are committed as ever; a death before the end leaves nothing under its name."""
    for ends_well in (False, True):
        with RunWriter(tmp_path / "run", toy.manifest, at_once=True) as writer:
            for step in range(3):
                toy.write_step(writer, step)
                assert not (tmp_path / "run").exists()
            if ends_well:
                toy.write_end(writer)
        assert os.listdir(tmp_path) == (["run"] if ends_well else [])
    assert contents(toy.write(tmp_path / "other")) == contents(tmp_path / "run")


def test_an_adopted_file_is_listed_and_outlives_its_source(tmp_path, toy):
    source = toy.write(tmp_path / "source")
    records = open_run(source).manifest.files
    with RunWriter(tmp_path / "run", toy.manifest) as writer:
        for step in range(3):
            toy.write_step(writer, step)
        writer.write_final(toy.final)
        writer.write_image(1, toy.images[1])
        with pytest.raises(ResourceError, match="No such file"):
            writer.adopt("images/0000.png", source / "nothing.png", records["images/0000.png"])
        with pytest.raises(BadRequest, match=r"not written yet: images/0000\.png"):
            writer.complete()
        writer.adopt("images/0000.png", source / "images/0000.png", records["images/0000.png"])
        writer.complete()
    shutil.rmtree(source)
    found, expected = contents(tmp_path / "run"), contents(toy.write(tmp_path / "again"))
    for each in (found, expected):  # the order in which files were written shows in these
        del each["run.json"], each["COMPLETE"]
    assert found == expected
    assert open_run(tmp_path / "run").manifest == open_run(tmp_path / "again").manifest
    assert open_run(tmp_path / "run").verify().ok


# --- misuse


def test_steps_come_in_order_and_whole(tmp_path, toy):
    with RunWriter(tmp_path / "run", toy.manifest) as writer:
        with pytest.raises(BadRequest, match="expected step 0"):
            writer.write_step(1, toy.latents[1], toy.stats[1])
        with pytest.raises(BadRequest, match=r"not written yet: .*latents"):
            writer.commit_step(0)
        toy.write_step(writer, 0)
        with pytest.raises(BadRequest, match="expected step 1"):
            writer.commit_step(0)
        writer.write_step(1, toy.latents[1], toy.stats[1])
        writer.write_qk(1, 0, *toy.qk[1, 0][0])
        with pytest.raises(BadRequest, match=r"not written yet: data.zarr/qk/q/c.0.0.0.1.0.0.0"):
            writer.commit_step(1)
        with pytest.raises(BadRequest, match="1 of 3 steps are committed"):
            writer.complete()


def test_shapes_types_and_names_are_checked(tmp_path, toy):
    latent, stats, (q, k, lse) = toy.latents[0], toy.stats[0], toy.qk[1, 0][0]
    with RunWriter(tmp_path / "run", toy.manifest) as writer:
        with pytest.raises(BadRequest, match=r"latents: float64 .* expected float32 of shape"):
            writer.write_step(0, latent.astype(float), stats)
        with pytest.raises(BadRequest, match="latents: float32 of shape"):
            writer.write_step(0, latent[:1], stats)
        with pytest.raises(BadRequest, match="statistics entropy; expected entropy, received_max"):
            writer.write_step(0, latent, {"entropy": stats["entropy"]})
        with pytest.raises(BadRequest, match="step 0: 1 branches; expected cond, uncond"):
            writer.write_step(0, latent, {name: part[:1] for name, part in stats.items()})
        with pytest.raises(BadRequest, match="Q and K of step 0; expected a step of 1"):
            writer.write_qk(0, 0, q, k, lse)
        toy.write_step(writer, 0)
        with pytest.raises(BadRequest, match="layer 2 is outside qk/q"):
            writer.write_qk(1, 2, q, k, lse)
        with pytest.raises(BadRequest, match="qk/q: uint16"):
            writer.write_qk(1, 0, q.view(np.uint16)[..., ::2], k, lse)
        with pytest.raises(BadRequest, match="pixels: float32"):
            writer.write_image(0, toy.images[0].astype(np.float32))
        with pytest.raises(BadRequest, match="sample 2; expected 0 to 1"):
            writer.write_image(2, toy.images[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_latents_that_are_not_finite_end_the_run(tmp_path, toy, bad):
    toy.latents[1][0, 0, 0, 0] = bad
    with pytest.raises(NumericalError, match="NaN or Inf in step 1"):
        toy.write(tmp_path / "run")
    run = open_run(tmp_path / "run", allow_partial=True)
    assert len(run.steps) == 1 and run.verify().ok


def test_some_images_are_not_all(tmp_path, toy):
    with RunWriter(tmp_path / "run", toy.manifest) as writer:
        for step in range(3):
            toy.write_step(writer, step)
        writer.write_final(toy.final)
        writer.write_image(0, toy.images[0])
        with pytest.raises(BadRequest, match=r"not written yet: images/0001.png"):
            writer.complete()


# --- the end that was not planned


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, None])
@pytest.mark.parametrize("steps", [0, 2])
def test_an_interrupted_run_keeps_its_whole_steps(tmp_path, toy, error, steps):
    def stop():
        if error:
            raise error

    try:
        with RunWriter(tmp_path / "run", toy.manifest) as writer:
            for step in range(steps):
                toy.write_step(writer, step)
            writer.write_step(steps, toy.latents[steps], toy.stats[steps])
            stop()
    except (RuntimeError, KeyboardInterrupt) as caught:
        assert type(caught) is error
    if not steps:
        assert os.listdir(tmp_path) == []
        return
    assert os.listdir(tmp_path) == ["run"]
    found = contents(tmp_path / "run")
    assert found.keys() == {"run.json", *json.loads(found["run.json"])["files"]}
    with pytest.raises(BadRun, match="2 of 3 steps are whole, and it is not sealed"):
        open_run(tmp_path / "run")
    run = open_run(tmp_path / "run", allow_partial=True)
    assert not run.complete and run.verify().ok
    assert [step.index for step in run.steps] == run.stats.step.values.tolist() == [0, 1]
    assert np.array_equal(run.latents, toy.latents[:2])


def test_full_disk_keeps_what_is_committed(tmp_path, toy, monkeypatch):
    writes = []

    def full(path, *arguments):
        writes.append(path)
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(ResourceError, match="No space left on device") as caught,
        RunWriter(tmp_path / "run", toy.manifest) as writer,
    ):
        toy.write_step(writer, 0)
        monkeypatch.setattr(writers, "flush", full)
        toy.write_step(writer, 1)
    assert writes and caught.value.exit_code == 4
    assert len(open_run(tmp_path / "run", allow_partial=True).steps) == 1
    assert not [*tmp_path.rglob("*.tmp")]


# --- overwriting


def test_overwriting_swaps_whole_runs(tmp_path, toy):
    old = contents(toy.write(tmp_path / "run"))
    new = Toy(manifest_of(steps=2, qk_steps=()), seed=1)
    with RunWriter(tmp_path / "run", new.manifest, overwrite=True) as writer:
        for step in range(2):
            new.write_step(writer, step)
            assert contents(tmp_path / "run") == old
        new.write_end(writer)
    assert np.array_equal(open_run(tmp_path / "run").latents, new.latents)
    assert os.listdir(tmp_path) == ["run"]


def test_overwriting_that_fails_keeps_the_old_run(tmp_path, toy):
    old = contents(toy.write(tmp_path / "run"))
    Toy(manifest_of(), seed=1).write(tmp_path / "run", steps=2, overwrite=True)
    assert contents(tmp_path / "run") == old
    assert os.listdir(tmp_path) == ["run"]


def test_overwriting_nothing_is_writing(tmp_path, toy):
    toy.write(tmp_path / "run", steps=1, overwrite=True)
    assert len(open_run(tmp_path / "run", allow_partial=True).steps) == 1


def test_a_swap_cut_in_two_is_read_and_repaired(tmp_path, toy, monkeypatch):
    old = contents(toy.write(tmp_path / "run"))
    (tmp_path / "run").rename(tmp_path / "run.old-host-1-0123abcd")  # killed between two renames
    (tmp_path / "run.tmp-host-1-4567cdef").mkdir()
    assert np.array_equal(open_run(tmp_path / "run").latents, toy.latents)
    assert "already holds a run" in refused_after_repair(tmp_path / "run")
    assert contents(tmp_path / "run") == old
    assert os.listdir(tmp_path) == ["run"]


def refused_after_repair(path):
    with pytest.raises(ResourceError) as caught, RunWriter(path, manifest_of()):
        pass
    return str(caught.value)


def test_leftovers_go_and_namesakes_stay(tmp_path, toy):
    left = tmp_path / "run.tmp-host-1-0123abcd"
    left.mkdir()
    (left / "chunk").write_bytes(b"x")
    others = ["run.tmp-notes", "run.old-host-1-zzzz", "rerun.tmp-host-1-0123abcd"]
    for name in others:
        (tmp_path / name).mkdir()
    assert open_run(toy.write(tmp_path / "run")).complete
    assert sorted(os.listdir(tmp_path)) == sorted(["run", *others])


def test_a_swap_that_fails_puts_the_old_run_back(tmp_path, toy, monkeypatch):
    old = contents(toy.write(tmp_path / "run"))
    rename = targets.Path.rename

    def fail_to_publish(self, to):
        if ".tmp-" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(targets.Path, "rename", fail_to_publish)
    with pytest.raises(ResourceError, match="Input/output error"):
        toy.write(tmp_path / "run", overwrite=True)
    assert contents(tmp_path / "run") == old
    assert os.listdir(tmp_path) == ["run"]
