"""`ditscope sample`: what it makes, and what it refuses before it computes anything."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from ditscope.core.statistics import DEFAULT_METRICS
from ditscope.runs.reader import open_run


@pytest.fixture
def sample(cli, pipeline_folder, tmp_path, monkeypatch):
    """`ditscope sample` with the small pipeline, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, model=pipeline_folder):
        return cli("sample", "--model", str(model), "--dtype", "float32", *arguments)

    return call


def test_records_a_run_and_says_where(sample, tmp_path):
    code, out, err = sample(
        *("--class", "bee", "--class", "2", "--num-samples", "3", "--steps", "4"),
        *("--attention-debug", "--out", "bees", "--json"),
    )
    assert (code, err) == (0, "")
    said = json.loads(out)
    run = open_run(said["run"])
    assert run.path == tmp_path / "bees"
    assert [label.name for label in run.manifest.labels] == ["bee", "cat", "bee"]
    assert run.stats["entropy"].sizes == {
        "step": 4, "branch": 2, "sample": 3, "layer": 3, "head": 2,
    }  # fmt: skip
    assert all(os.path.getsize(picture) for picture in said["pictures"])
    assert sorted(os.listdir()) == ["bees"]  # nothing else is left lying about


def test_same_seed_same_bits_with_and_without_attention(sample):
    common = ("--num-samples", "2", "--steps", "3", "--seed", "5")
    assert sample(*common, "--out", "plain").code == 0
    assert sample(*common, "--out", "watched", "--attention-debug", "--qk-steps", "1").code == 0
    plain, watched = open_run("plain"), open_run("watched")
    assert np.array_equal(plain.final, watched.final)
    assert sample(*common[:-1], "6", "--out", "other").code == 0
    assert not np.array_equal(plain.final, open_run("other").final)


def test_a_selection_is_recorded_and_shown(sample, cli):
    common = ("--class", "bee", "--steps", "3", "--seed", "5")
    assert sample(*common, "--out", "plain").code == 0
    chosen = ("--record-layers", "0,blocks.2*", "--record-heads", "1", "--record-steps", "1-2")
    assert sample(*common, *chosen, "--record-queries", "8", "--out", "part").code == 0
    plain, part = open_run("plain"), open_run("part")
    assert np.array_equal(plain.final, part.final)
    assert part.manifest.only.layers == (0, "blocks.2*")
    assert part.stats["entropy_error"].notnull().sum() == 2 * 2 * 2  # steps, branches, layers
    said = cli("info", "part").out
    assert "layers 0, blocks.2*; heads 1; steps 1-2; 8 queries of each head" in said
    assert cli("info", "part", "--verify").code == 0
    for option, text, message in (
        ("--record-layers", "9", "no layer 9"),
        ("--record-layers", "2-", "--record-layers"),
        ("--record-heads", "blocks", "--record-heads"),
        ("--record-steps", "-1", "--record-steps"),
        ("--record-branches", "both", "--record-branches"),
        ("--record-queries", "7", "--record-queries: should be even"),
    ):
        code, _, err = sample(*common, option, text, "--out", "none")
        assert code == 2 and message in err, (option, text, err)


def test_edits_are_recorded_and_shown(sample, cli):
    common = ("--class", "bee", "--steps", "3", "--seed", "5")
    assert sample(*common, "--out", "plain").code == 0
    assert sample(*common, "--temperature", "1", "--ablate-steps", "0", "--out", "no").code == 2
    assert sample(*common, "--temperature", "1", "--out", "neutral").code == 0
    assert np.array_equal(open_run("plain").final, open_run("neutral").final)
    options = "--temperature 1.3 --temperature-layers 0,2 --temperature-heads 1 "
    options += "--temperature-steps 1-2 --ablate-heads 1:0,0-1:1,1:1 --ablate-steps 2"
    assert sample(*common, *options.split(), "--out", "edited").code == 0
    edited = open_run("edited")
    assert edited.manifest.edits == (
        {
            "kind": "temperature",
            "temperature": 1.3,
            "layers": [0, 2],
            "heads": [1],
            "steps": [1, 2],
        },
        {"kind": "ablate_heads", "layers": [1], "heads": [0, 1], "steps": [2]},
        {"kind": "ablate_heads", "layers": [0], "heads": [1], "steps": [2]},
    )
    assert np.array_equal(open_run("plain").latents[1], edited.latents[1])
    assert not np.array_equal(open_run("plain").latents[2], edited.latents[2])
    told = cli("info", "edited").out
    assert "temperature 1.3 (layers 0, 2, heads 1, steps 1-2)" in told
    assert "ablate heads (layers 1, heads 0-1, steps 2)" in told


def test_metrics_by_name_beside_the_default_ones(sample):
    asked = ("--metrics", "mean_distance, sink_mass,entropy", "--detail", "tokens")
    assert sample("--steps", "1", "--out", "run", *asked).code == 0
    run = open_run("run")
    assert list(run.stats) == [*DEFAULT_METRICS, "mean_distance", "sink_mass"]
    assert set(run.tokens) == set(run.stats)
    code, out, err = sample("--metrics", "mean_distanse", "--out", "other")
    assert (code, out) == (2, "")
    assert "no metric mean_distanse" in err and "did you mean mean_distance" in err
    assert sample("--metrics", "entropy", "--detail", "words", "--out", "other").code == 2
    assert not os.path.exists("other")


def test_names_a_new_folder_each_time(sample):
    for _ in range(2):
        assert sample("--class", "bee", "--steps", "1").code == 0
    assert sorted(os.listdir("runs")) == ["bee-1", "bee-2"]


def test_two_commands_at_the_same_moment_choose_two_names(pipeline_folder, tmp_path, monkeypatch):
    from ditscope.cli.sample_options import run_folder
    from ditscope.pipeline import load
    from ditscope.sampling.job import make_job

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "bee-2.parts").mkdir(parents=True)  # of a run that is not finished
    job = make_job(load(pipeline_folder), ["bee"], {})
    chosen, together = [], threading.Barrier(8)

    def choose():
        together.wait()
        with run_folder(None, job) as folder:
            chosen.append(folder.name)
            together.wait()

    threads = [threading.Thread(target=choose) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(chosen) == sorted(f"bee-{number}" for number in (1, *range(3, 10)))
    assert os.listdir("runs") == ["bee-2.parts"]  # nothing was drawn, nothing stays


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--out", ""], 2, "out: found an empty name"),
        (["--out", "."], 2, "out: found an empty name, or the folder you are in"),
        (["--class", "bumblebee"], 2, "bee"),
        (["--class", "99"], 2, "99"),
        (["--class", ""], 2, "class"),
        (["--class", "x" * 100_000], 2, "class"),
        (["--class", "[red]\x1b]0;owned\x07"], 2, r"\u001b]0;owned\u0007"),
        (["--steps", "0"], 2, "steps"),
        (["--steps", "lots"], 2, "steps"),
        (["--sampler", "dpm"], 2, "dpm++"),
        (["--sampler", "ddpm"], 2, "ddpm"),  # of another noise process
        (["--cfg-scale", "nan"], 2, "cfg_scale"),
        (["--cfg-scale", "-1"], 2, "cfg_scale"),
        (["--cfg-channels", "9"], 2, "cfg_channels"),
        (["--cfg-interval", "0.9", "0.1"], 2, "cfg_interval"),
        (["--seed", "-1"], 2, "seed"),
        (["--batch-size", "0"], 2, "batch"),
        (["--num-samples", "0"], 2, "--num-samples"),
        (["--class", "bee", "--class", "2", "--num-samples", "1"], 2, "1 for 2 classes"),
        (["--qk-steps", "99", "--steps", "2"], 2, "qk"),
        (["--temperature", "0"], 2, "Temperature.temperature"),
        (["--temperature", "nan"], 2, "Temperature.temperature"),
        (["--temperature-layers", "0"], 2, "has no --temperature"),
        (["--temperature-steps", "0"], 2, "has no --temperature"),
        (["--ablate-steps", "0"], 2, "has no --ablate-heads"),
        (["--temperature", "2", "--temperature-layers", "2-5"], 2, "there is no layer 3"),
        (["--temperature", "2", "--temperature-layers", "5-2"], 2, "--temperature-layers"),
        (["--temperature", "2", "--temperature-layers", ""], 2, "--temperature-layers"),
        (["--temperature", "2", "--temperature-heads", "-1"], 2, "--temperature-heads"),
        (["--temperature", "2", "--temperature-heads", "2"], 2, "has no head 2"),
        (["--temperature", "2", "--temperature-steps", "0-999999999999"], 2, "0 to 99999"),
        (["--temperature", "2", "--temperature-steps", "٣"], 2, "--temperature-steps"),
        (["--ablate-heads", "5"], 2, "LAYER:HEAD"),
        (["--ablate-heads", "0:0,"], 2, "LAYER:HEAD"),
        (["--ablate-heads", "0:x"], 2, "'x'"),
        (["--ablate-heads", "3:0"], 2, "there is no layer 3"),
        (["--ablate-heads", "0:2"], 2, "blocks.0.attn has no head 2"),
        (["--ablate-heads", "0:0", "--ablate-steps", "4", "--steps", "4"], 2, "no step 4"),
        (["--dtype", "float8"], 2, "bfloat16"),
        (["--device", "nonsense"], 2, "device"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_refuses_and_leaves_nothing(sample, arguments, code, words):
    result = sample(*arguments)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("error: ")
    assert words in result.err
    assert len(result.err) < 2000
    assert not os.path.exists("runs") or os.listdir("runs") == []


def test_cuda_that_is_not_there(sample, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = sample("--device", "cuda")
    assert result.code == 4
    assert "`cpu` works" in result.err


def test_a_run_is_replaced_only_on_request(sample):
    assert sample("--steps", "1", "--seed", "1", "--out", "run").code == 0
    before = open_run("run").final
    refused = sample("--steps", "1", "--seed", "2", "--out", "run")
    assert refused.code == 4
    assert "run" in refused.err
    assert np.array_equal(open_run("run").final, before)
    assert sample("--steps", "1", "--seed", "2", "--out", "run", "--overwrite").code == 0
    assert not np.array_equal(open_run("run").final, before)


@pytest.mark.parametrize("place", ["missing/run", "file", "full"])
def test_a_place_that_cannot_be_written_is_known_before_loading(sample, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    result = sample("--out", place, "--overwrite", model="no-such-model")
    assert result.code == 4
    assert place.split("/")[0] in result.err
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("model", ["no-such-model", "emojis", "DiT-XL/2"])
def test_a_model_that_is_not_there(sample, model):
    result = sample(model=model)
    assert result.code == 2
    assert model in result.err


def test_json_error(sample):
    result = sample("--class", "bumblebee", "--json")
    assert (result.code, result.out) == (2, "")
    assert json.loads(result.err)["error"] == "BadRequest"


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupt_leaves_the_whole_steps(pipeline_folder, tmp_path):
    run = tmp_path / "run"
    line = [sys.executable, "-m", "ditscope", "sample", "--model", str(pipeline_folder)]
    line += ["--steps", "2000", "--dtype", "float32", "--out", str(run)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not run.exists() and process.poll() is None:  # it appears with its first whole step
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    partial = open_run(run, allow_partial=True)
    assert not partial.complete
    assert 1 <= len(partial.manifest.committed_steps) < 2000
    partial.verify()
    assert os.listdir(tmp_path) == ["run"]


def test_what_an_interruption_leaves_is_said(sample, monkeypatch):
    def update(self, task, **fields):
        if fields.get("completed") == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("rich.progress.Progress.update", update)
    code, out, err = sample("--steps", "4", "--attention-debug", "--out", "run")
    assert (code, out) == (130, "")
    assert "the steps so far are kept in run; --overwrite draws it anew" in " ".join(err.split())
    assert len(open_run("run", allow_partial=True).steps) == 2


def test_tokens_are_recorded_without_another_option(sample):
    assert sample("--steps", "1", "--out", "run", "--detail", "tokens").code == 0
    assert set(open_run("run").tokens) == set(DEFAULT_METRICS)
