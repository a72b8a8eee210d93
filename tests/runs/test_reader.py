"""Reading a run: named axes, exact attention, and nothing on disk changed."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from ditscope.core.manifest import MetricRecord
from ditscope.core.sites import Site, TokenGrid
from ditscope.errors import BadRequest, BadRun
from ditscope.runs.reader import open_run
from ditscope.runs.writer import RunWriter
from tests.runs.damage import edit_manifest
from tests.runs.toy import Toy, manifest_of


@pytest.fixture(scope="module")
def toy():
    return Toy(manifest_of(qk_steps=(0, 1, 2)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, toy):
    return toy.write(tmp_path_factory.mktemp("reader") / "run")


@pytest.fixture
def run(folder):
    return open_run(folder)


def test_everything_comes_back(run, toy):
    assert run.complete and run.steps == toy.manifest.steps
    assert run.manifest.model_copy(update={"committed_steps": (), "files": {}}) == toy.manifest
    assert np.array_equal(run.latents, toy.latents)
    assert np.array_equal(run.final, toy.final)
    assert np.array_equal(run.images, toy.images)
    for name in toy.manifest.statistics:
        assert np.array_equal(run.stats[name], [stats[name] for stats in toy.stats])


def test_a_run_from_before_metrics_had_names_of_their_own(tmp_path):
    """Their manifests hold no definitions, no frames and no segments: the names say enough."""
    toy = Toy(manifest_of())
    folder = toy.write(tmp_path / "run")

    def older(manifest):
        del manifest["metrics"], manifest["token_statistics"]
        for site in manifest["sites"]:
            del site["segments"], site["grid"]["frames"]

    edit_manifest(folder, older)
    run = open_run(folder)
    assert run.stats.entropy.attrs["units"] == "nats"
    assert np.array_equal(run.stats.entropy, [stats["entropy"] for stats in toy.stats])
    assert not run.tokens.data_vars and run.verify().ok


def test_a_metric_that_this_process_does_not_know(tmp_path):
    """The manifest says what it is."""
    about = MetricRecord(long_name="made elsewhere", unit="parsec", formula="x", source="y")
    toy = Toy(manifest_of(statistics=("entropy", "elsewhere"), metrics={"elsewhere": about}))
    run = open_run(toy.write(tmp_path / "run"))
    assert run.stats["elsewhere"].attrs["units"] == "parsec"
    assert run.stats["elsewhere"].attrs["long_name"] == "made elsewhere"
    assert run.verify().ok


def test_every_axis_has_a_name(run):
    assert run.stats.entropy.dims == ("step", "branch", "sample", "layer", "head")
    assert run.latents.dims == ("step", "sample", "channel", "y", "x")
    assert run.final.dims == ("sample", "channel", "y", "x")
    assert run.images.dims == ("sample", "y", "x", "channel")
    assert run.stats.sel(branch="uncond", layer=1).site == "blocks.1.attn"
    assert run.stats.noise_level.values.tolist() == [step.noise_level for step in run.steps]
    assert run.latents.label.values.tolist() == ["class 0", "class 1"]
    assert run.stats.rms_distance.attrs["units"] == "patches"
    assert run.stats.entropy.attrs["long_name"] == "attention entropy, mean over queries"


def test_latents_are_read_step_by_step(folder, toy, monkeypatch):
    run, read = open_run(folder), []
    chunk = run.files.chunk
    monkeypatch.setattr(run.files, "chunk", lambda *at: (read.append(at[1]), chunk(*at))[1])
    assert np.array_equal(run.latents.sel(step=2, sample=1), toy.latents[2][1])
    assert read == ["data.zarr/latents/c.2.0.0.0.0"]
    picked = run.latents.isel(step=slice(None, None, -2), x=[4, 0], channel=1)
    assert np.array_equal(picked, np.stack(toy.latents)[::-2, :, 1][..., [4, 0]])
    assert run.latents.isel(step=slice(0)).values.shape == (0, 2, 3, 4, 6)


@pytest.mark.parametrize("qk_dtype", ["float32", "float16", "bfloat16"])
def test_attention_is_exact(tmp_path, qk_dtype):
    toy = Toy(manifest_of(qk_dtype=qk_dtype))
    run = open_run(toy.write(tmp_path / "run"))
    for layer, head, sample, branch in [(0, 0, 0, "cond"), (1, 1, 1, "uncond")]:
        expected = toy.probabilities(1, layer, branch, sample)[head]
        for y, x in [(0, 0), (1, 2)]:
            place = {"layer": layer, "head": head, "step": 1, "sample": sample, "branch": branch}
            row = run.attention(**place, query=(y, x))
            assert row.dims == ("y", "x") and row.shape == (2, 3) and row.dtype == np.float32
            np.testing.assert_allclose(row.values.ravel(), expected[3 * y + x], atol=1e-6)
            assert row.attrs["source"] == "stored" and row.attrs["row_sum_error"] < 1e-6
            column = run.attention(**place, received=(y, x))
            np.testing.assert_allclose(column.values.ravel(), expected[:, 3 * y + x], atol=1e-6)


def test_mean_head_site_name_and_token(run, toy):
    expected = toy.probabilities(2, 1, "cond", 0).mean(axis=0)
    row = run.attention("blocks.1.attn", "mean", 2, query=4)
    np.testing.assert_allclose(row.values.ravel(), expected[4], atol=1e-6)
    column = run.attention("blocks.1.attn", "mean", 2, received=4)
    np.testing.assert_allclose(column.values.ravel(), expected[:, 4], atol=1e-6)


def test_tokens_that_are_no_patches(tmp_path):
    """A class token before the patches, then no known patches at all."""
    manifest = manifest_of(layers=1)
    place = {"index": 0, "name": "a", "heads": 2, "queries": 7, "keys": 7, "head_width": 4}
    grid = TokenGrid(height=2, width=3, start=1)
    toy = Toy(manifest.model_copy(update={"sites": (Site(**place, grid=grid),)}))
    run = open_run(toy.write(tmp_path / "grid"))
    expected = toy.probabilities(1, 0, "cond", 0)[0, 1 + 2]
    row = run.attention(0, 0, 1, query=(0, 2))
    np.testing.assert_allclose(row.values.ravel(), expected[1:], atol=1e-6)
    assert row.attrs["outside_grid"] == pytest.approx(expected[0], abs=1e-6)

    toy = Toy(manifest.model_copy(update={"sites": (Site(**place),)}))
    with pytest.raises(BadRequest, match="a has no known patches; expected the index of a token"):
        open_run(toy.write(tmp_path / "flat")).attention(0, 0, 1, query=(0, 2))
    row = open_run(tmp_path / "flat").attention(0, 0, 1, query=3)
    assert row.dims == ("key",) and row.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 2}, "layer 2; expected an index from 0 to 1"),
        ({"layer": -1}, "layer -1; expected an index from 0 to 1"),
        ({"layer": "blocks.9.attn"}, "0 sites are called 'blocks.9.attn'; expected .* blocks.0"),
        ({"head": 2}, "head 2; expected an index from 0 to 1"),
        ({"head": "max"}, 'head max; expected an index from 0 to 1, several, "all" or "mean"'),
        ({"step": 3}, "step 3; expected an index from 0 to 2"),
        ({"step": 0.5}, "step 0.5; expected an index from 0 to 2"),
        ({"step": True}, "step True; expected an index from 0 to 2"),
        ({"head": True}, "head True; expected an index from 0 to 1"),
        ({"layer": False}, "layer False; expected an index from 0 to 1"),
        ({"query": (True, 0)}, r"patch \(True, 0\)"),
        ({"sample": 2}, "sample 2; expected an index from 0 to 1"),
        ({"branch": "both"}, "both was not evaluated; expected cond, uncond"),
        ({"query": (2, 0)}, r"patch \(2, 0\); expected \(y, x\) from \(0, 0\) to \(1, 2\)"),
        ({"query": (0, -1)}, r"patch \(0, -1\); expected \(y, x\) from"),
        ({"query": (0, 1, 2)}, r"patch \(0, 1, 2\); expected \(y, x\) from"),
        ({"query": 6}, "query 6; expected an index from 0 to 5"),
    ],
)
def test_what_is_out_of_range_is_named_with_its_range(run, change, message):
    place = {"layer": 0, "head": 0, "step": 1, "query": (0, 0), **change}
    with pytest.raises(BadRequest, match=message):
        run.attention(**place)


def test_operands_are_read_once_while_they_are_kept(folder, monkeypatch):
    run, read = open_run(folder), []
    chunk = run.files.chunk
    monkeypatch.setattr(run.files, "chunk", lambda *at: (read.append(at[1]), chunk(*at))[1])
    for head in (0, 1):
        run.attention(0, head, 1, (0, 0))
    assert len(read) == 3
    monkeypatch.setattr("ditscope.runs.operands.CACHE_BYTES", 0)
    run.attention(1, 0, 1, (0, 0))  # only the last one stays
    run.attention(1, 1, 1, (0, 0))
    run.attention(0, 0, 1, (0, 0))
    assert len(read) == 9


def test_reader_while_writing_sees_whole_steps(tmp_path, toy):
    path = tmp_path / "run"
    with RunWriter(path, toy.manifest) as writer:
        with pytest.raises(BadRun, match="does not exist"):
            open_run(path, allow_partial=True)
        toy.write_step(writer, 0)
        first = open_run(path, allow_partial=True)
        for step in (1, 2):
            writer.write_step(step, toy.latents[step], toy.stats[step])
            assert len(open_run(path, allow_partial=True).steps) == step
            for layer in range(2):
                writer.write_qk(step, layer, *toy.qk[step, layer][0])
            writer.commit_step(step)
        assert len(first.steps) == 1 and np.array_equal(first.latents, toy.latents[:1])
        run = open_run(path, allow_partial=True)
        assert not run.complete
        with pytest.raises(BadRun, match="a partial run has no final latents"):
            _ = run.final
        with pytest.raises(BadRun, match="a partial run has no images"):
            _ = run.images
        toy.write_end(writer)
    assert open_run(path).complete


def test_a_moved_run_opens(tmp_path, toy, folder):
    toy.write(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    run = open_run(tmp_path / "there")
    assert run.verify().ok and run.images.shape == (2, 8, 12, 3)


def test_reading_writes_nothing(folder):
    def state():
        entries = [folder, folder.parent, *sorted(folder.parent.rglob("*"))]
        return [(str(entry), entry.stat().st_mtime_ns, entry.stat().st_size) for entry in entries]

    before = state()
    run = open_run(folder)
    run.attention(0, 0, 1, (0, 0))
    assert run.verify().ok and run.images.size and run.latents.sum() and run.stats.entropy.sum()
    assert state() == before


def test_reading_needs_no_torch(folder):
    code = f"""
import sys
from ditscope.runs.reader import open_run
assert not {{"xarray", "zarr", "matplotlib"}} & set(sys.modules), "opening needs none of them"
run = open_run({str(folder)!r})
assert "xarray" not in sys.modules
run.stats.load(), run.latents.load(), run.final, run.images, run.verify()
run.attention(0, "mean", 1, (0, 0)), run.attention(0, 0, 1, received=(0, 0))
assert not {{"torch", "diffusers"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_says_what_it_is(run, tmp_path, toy):
    assert repr(run) == f"<Run {run.path}: class 0, class 1; 3 steps>"
    partial = open_run(toy.write(tmp_path / "part", steps=2), allow_partial=True)
    assert repr(partial).endswith("3 steps, partial: 2 steps are whole>")


def test_hostile_names_are_only_text(tmp_path):
    """Class and site names of a stranger: any text that JSON can hold comes back as it was."""
    label = "</script>\u2028\x1b]0;x\x07[bold]\x00"
    manifest = manifest_of(samples=1)
    renamed = manifest.labels[0].model_copy(update={"name": label})
    toy = Toy(manifest.model_copy(update={"labels": (renamed,)}))
    run = open_run(toy.write(tmp_path / "run"))
    assert run.manifest.labels[0].name == label == run.latents.label.item()
    assert "\x1b" not in repr(run) and "\x00" not in repr(run)


def test_nothing_there(tmp_path):
    for name in ("none", "file"):
        (tmp_path / "file").write_text("x")
        with pytest.raises(BadRun, match=r"does not exist|is not a folder"):
            open_run(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadRun, match=r"run.json: is missing"):
        open_run(tmp_path / "empty")
    assert json.dumps(os.listdir(tmp_path / "empty")) == "[]"
